/* SALE: sparse attention by low-bit estimation, for the prefill of long prompts.
 *
 * This header is the C ABI, the only binary interface of the library; `sale.hpp` is a thin C++20 layer over it.
 *
 *     tensors -> check -> plan -> index(K) -> select(Q, index) -> attend(Q, K, V, blocks) -> out, lse, stats
 *
 * Three lifetimes, three objects:
 *     layer   sale_estimator   how one layer's keys and queries are coded, and its thresholds: made once, uploaded once
 *     step    sale_plan        lengths, offsets, batch: one for all layers of a step, cheap to make
 *     call    sale_call        one layer's pointers: a plain struct
 *
 * Conventions
 *  - Sizes, strides and offsets are 64-bit and counted in elements unless a name says bytes.
 *  - Functions that can fail return a sale_status. On anything but SALE_OK the outputs are untouched, and
 *    sale_last_error() (per thread) holds one sentence naming the argument, its value and what is allowed.
 *  - Every struct that is passed by address begins with struct_size: sizeof of the struct as the caller's header has
 *    it. One of an older header is smaller: what it lacks counts as 0. A larger one is refused, for what it may ask
 *    for.
 *  - An estimator and a plan are immutable: any number of threads may use one at once, each with its own workspace.
 *    An index is not: one writer, or many readers, at a time.
 *  - sale_run, sale_select and sale_attend allocate nothing; they use the estimator's threads and the caller's
 *    workspace.
 *  - Results are the same bits for any number of threads, any composition of the batch and any stream.
 *  - Host or device: `device` says where tensors, indexes, block lists and workspace are. On a CUDA device runs and
 *    index updates are put on the caller's stream (a cudaStream_t as void*; NULL is the legacy default stream) and
 *    return at once: they allocate nothing, wait for nothing (unless statistics are asked for) and can be captured into
 *    a graph; so does making a plan. What such a call refers to must live until it has run. The current device is left
 *    as it was. In host memory the stream must be NULL.
 *
 * Notation and the method itself: docs/method.md. Numbers to the bit: docs/numerics.md.
 */
#ifndef SALE_SALE_H
#define SALE_SALE_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#if defined(SALE_SHARED) && defined(_WIN32)
#define SALE_API __declspec(dllimport)
#elif defined(__GNUC__)
#define SALE_API __attribute__((visibility("default")))
#else
#define SALE_API
#endif

#define SALE_VERSION_MAJOR 0
#define SALE_VERSION_MINOR 1
#define SALE_VERSION_PATCH 0

/* What is inline is compiled with each of its callers: the structs it makes are of the caller's header. */
#ifdef __cplusplus
#define SALE_ZEROS \
  {                \
  }
#else
#define SALE_ZEROS {0}
#endif

/* Enumerations hold any int, so that a wrong value is an argument to refuse and not undefined behaviour. */
#ifdef __cplusplus
#define SALE_INT : int
#else
#define SALE_INT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ------------------------------------------------------------------------------------------------- */

typedef enum sale_status SALE_INT {
  SALE_OK = 0,
  SALE_INVALID_ARGUMENT = 1, /* an argument is wrong; the message names it */
  SALE_UNSUPPORTED = 2,      /* a valid request that this library, build or machine cannot honour; says which and why */
  SALE_OUT_OF_MEMORY = 3,
  SALE_INTERNAL = 4 /* a bug in SALE */
} sale_status;

/* One sentence about the last failure on this thread; "" when there was none. Never NULL; valid until the next SALE
 * call on this thread that fails. */
SALE_API const char* sale_last_error(void);
SALE_API const char* sale_status_name(sale_status status);
/* "0.1.0" */
SALE_API const char* sale_version(void);

/* ---- what is asked ------------------------------------------------------------------------------------------ */

typedef enum sale_dtype SALE_INT { SALE_F32 = 0, SALE_F16 = 1, SALE_BF16 = 2 } sale_dtype;
/* What keys and values are stored as. SALE_KV_E4M3: bytes, floats of 4 bits of exponent (bias 7) and 3 of mantissa,
 * 0x7f and 0xff not numbers, as PyTorch's float8_e4m3fn; in pages only, and on CPU backends only. Such an element
 * stands for its product with a scale (sale_call.k_scales, v_scales) in f32, rounded to dtype: all else is as if it
 * had been given so. */
typedef enum sale_kv_dtype SALE_INT { SALE_KV_DTYPE = 0 /* dtype */, SALE_KV_E4M3 = 1 } sale_kv_dtype;

/* Element strides of a tensor [batch, head, token, head_dim]; head_dim is contiguous. Any order of the first three is
 * fine ([B,H,L,D], [B,L,H,D], views into a fused QKV buffer). Strides of out may not make two elements share a place;
 * those of q, k and v may be 0 on the batch and head axes to repeat a tensor. */
typedef struct sale_strides {
  int64_t batch, head, token;
} sale_strides;

#define SALE_AUTO (-1)
#define SALE_HOST (-1)

/* Query i of a sequence sits at key position i + q_offset and sees keys 0 .. min(k_len, i + q_offset + 1) - 1.
 *   whole prompt         q_len == k_len, q_offset 0
 *   chunked prefill      q_len <  k_len, q_offset k_len - q_len (what SALE_AUTO means)
 *   not causal           q_offset = k_len
 *   sliding window       window: of those keys a row sees the last ones alone
 * Ragged batches: give per-sequence arrays [batch] (host memory, copied by sale_plan_create). Sequence b then starts at
 * token q_starts[b] of q and out, and k_starts[b] of k and v, so packed tensors (stride batch = 0) and padded ones
 * (starts NULL) are the same thing.
 * Paged keys and values: key j of sequence b is token j % page_size of page page_table[b * pages +
 * j / page_size], the table being a call's; k.batch and v.batch are then the strides between pages, the same page
 * numbers serve both tensors, and k_starts stays NULL. Devices read pages where they lie; CPU backends copy a call's
 * pages into its workspace first.
 * Keys that are a part of a sequence's (part = 1): what decides on a block is a row's weight on the sink and local
 * keys, and those may be in other parts. Calls then bring a reference, see sale_call. The layer's sink is that of this
 * part, 0 where it does not begin the sequence, and q_offset may put rows beyond the part's end: local keys are those
 * within reach of a row's true position. Outputs of parts are merged by lse. */
typedef struct sale_problem {
  size_t struct_size; /* sizeof(sale_problem) */
  int32_t batch;      /* 1 .. 65536 */
  int32_t q_heads;    /* a multiple of kv_heads; query head h reads kv head h / (q_heads / kv_heads) */
  int32_t kv_heads;
  int32_t head_dim;                           /* a multiple of 16, 16 .. 256 */
  sale_dtype dtype;                           /* of q and out, and unless kv_dtype says otherwise of k and v */
  int64_t q_len;                              /* rows of every sequence, unless q_lens is given; at least 1 */
  int64_t k_len;                              /* keys of every sequence, unless k_lens is given; at least 1 */
  int64_t q_offset;                           /* >= 0, or SALE_AUTO; unless q_offsets is given */
  float scale;                                /* > 0 and finite; 0 means 1/sqrt(head_dim) */
  sale_strides q, k, v, out;                  /* what a call uses that brings none of its own */
  const int64_t *q_lens, *k_lens, *q_offsets; /* each NULL or [batch] */
  const int64_t *q_starts, *k_starts;         /* each NULL (all 0) or [batch] */
  int32_t device;                             /* SALE_HOST, or the ordinal of the CUDA device whose memory is used */
  int32_t page_size;                          /* 0: not paged; else keys of a page, a multiple of 16 */
  int64_t pages;                              /* entries of the table per sequence; 0 when not paged */
  int32_t part;                               /* 1: the keys are a part of a sequence's; else 0 */
  sale_kv_dtype kv_dtype;                     /* of k and v */
  const int64_t* k_coded; /* with SALE_INDEX_PAGES: NULL or [batch], 0 .. k_len each: first keys whose codes are in the
                             pages already. NULL: those before the first row, min(q_offset, k_len) */
  int64_t window;      /* 0, or how many keys a row sees: the last ones up to its position, its own among them. Blocks
                          that a tile's windows have left behind are neither scanned nor listed nor counted */
  int32_t window_sink; /* with a window, 1: rows see the layer's sink besides; 0: only while it is in their windows */
  int32_t reserved;    /* 0 */
} sale_problem;

/* A problem of one sequence, its tensors contiguous [batch, heads, tokens, head_dim] in host memory. */
static inline sale_problem sale_problem_init(int32_t q_heads, int32_t kv_heads, int32_t head_dim, sale_dtype dtype,
                                             int64_t q_len, int64_t k_len) {
  sale_problem p = SALE_ZEROS;
  /* Sizes are unchecked until a plan is made: unsigned products wrap. */
  const uint64_t d = (uint64_t)head_dim, q_head = (uint64_t)q_len * d, k_head = (uint64_t)k_len * d;
  p.struct_size = sizeof p;
  p.batch = 1;
  p.q_heads = q_heads;
  p.kv_heads = kv_heads;
  p.head_dim = head_dim;
  p.dtype = dtype;
  p.q_len = q_len;
  p.k_len = k_len;
  p.q_offset = SALE_AUTO;
  p.device = SALE_HOST;
  p.q.batch = (int64_t)(q_head * (uint64_t)q_heads);
  p.q.head = (int64_t)q_head;
  p.k.batch = (int64_t)(k_head * (uint64_t)kv_heads);
  p.k.head = (int64_t)k_head;
  p.q.token = p.k.token = head_dim;
  p.out = p.q;
  p.v = p.k;
  return p;
}

/* ---- layer --------------------------------------------------------------------------------------------------- */

typedef enum sale_format SALE_INT {
  SALE_INT4 = 4, /* CPUs; sm80 */
  SALE_FP4 = 5,  /* e2m1, a scale for every block of keys and an exponent for every 32 coordinates; CPUs */
  SALE_INT8 = 8, /* CPUs; sm80, sm100; sm90 over all coordinates, for agreement with CPUs rather than for speed */
  SALE_FP8 = 9   /* e4m3; sm90 */
} sale_format;

/* "int4", "fp4", "int8", "fp8": what problem lines and calibration files call them; "" for no format. */
SALE_API const char* sale_format_name(sale_format format);
/* Such a name's format; SALE_INVALID_ARGUMENT names those there are. */
SALE_API sale_status sale_format_from_name(const char* name, sale_format* format);

/* Who does the items of a CPU backend's work in place of the library's threads: calls item(data, i, thread) once for
 * every i in [0, items), with 0 <= thread < threads and no two calls of one thread number at the same time, and returns
 * when all have returned. It is called from the thread that calls into the library, and must not throw. */
typedef void (*sale_parallel_for)(void* context, int64_t items, void (*item)(void* data, int64_t i, int32_t thread),
                                  void* data);

/* The threshold of a local head: sink and local keys are all that is kept, whatever the others hold; it is not scanned,
 * and keys that local and dense heads alone read are coded only into indexes and pages that are kept. */
#define SALE_TAU_LOCAL FLT_MAX

/* What belongs to a layer of a model. Arrays are host memory, copied by sale_estimator_create. */
typedef struct sale_layer {
  size_t struct_size;                  /* sizeof(sale_layer) */
  int32_t q_heads, kv_heads, head_dim; /* as in sale_problem */
  sale_dtype dtype;
  int32_t device;            /* as in sale_problem */
  const float* thresholds;   /* tau >= 0 per query head [n_thresholds]; 0 = dense head, SALE_TAU_LOCAL = local head */
  int64_t n_thresholds;      /* 1 (all heads) or q_heads */
  sale_format format;        /* of the estimate */
  int32_t rank;              /* coordinates scanned: 0 or head_dim = all, without projection (the paper); else, with
                                projections and below head_dim: FP8: a multiple of 4 up to 60; others: of 16 */
  const float* q_projection; /* [kv_heads, head_dim, rank], see docs/method.md; both NULL when rank is 0 or head_dim */
  const float* k_projection;
  const float* smoothing;  /* [kv_heads, head_dim]: what is taken from keys before they are coded, the mean of many
                                keys of this layer. NULL: the mean of the sequence's own keys (of an index's first
                                update). With it, codes of a block of keys are a function of these keys alone */
  const float* key_scales; /* SALE_FP8, with smoothing: the scale of each kv head [kv_heads], > 0: largest magnitude of
                                a coordinate scanned / 112; a key beyond four times that is always kept. NULL: from up to
                                8192 of the sequence's (an index's first) keys. With both, the code of a key is a function of
                                that key alone */
  int32_t sink;            /* keys at the start that are always kept: a multiple of 32, 32 .. 256; 0 only for parts */
  int32_t local;           /* keys before each row that are always kept: a multiple of 32, 32 .. 1024. A row sees local
                                to local + 94 of them, because whole tiles and blocks are kept */
  const char* backend; /* NULL: environment SALE_BACKEND, else the first usable of the list. A name forces that one */
  int32_t threads;     /* of CPU backends; 0: one per available CPU. With parallel_for: how many it has, at least 1 */
  sale_parallel_for parallel_for; /* NULL: the library's own threads */
  void* parallel_context;
} sale_layer;

/* tau = 0.004 for every head, INT8 over all coordinates, sink 32, local 128, host memory. */
static inline sale_layer sale_layer_init(int32_t q_heads, int32_t kv_heads, int32_t head_dim, sale_dtype dtype) {
  static const float threshold = 0.004f;
  sale_layer l = SALE_ZEROS;
  l.struct_size = sizeof l;
  l.q_heads = q_heads;
  l.kv_heads = kv_heads;
  l.head_dim = head_dim;
  l.dtype = dtype;
  l.device = SALE_HOST;
  l.thresholds = &threshold;
  l.n_thresholds = 1;
  l.format = SALE_INT8;
  l.sink = 32;
  l.local = 128;
  return l;
}

typedef struct sale_estimator sale_estimator;

/* Checks a layer, picks its backend and puts its thresholds and projections where the backend wants them. On a device
 * this allocates and copies, and may wait: it belongs where weights are loaded. Plans, indexes and block lists keep
 * what they need of it, so it may be destroyed before them. */
SALE_API sale_status sale_estimator_create(const sale_layer* layer, sale_estimator** estimator);
SALE_API void sale_estimator_destroy(sale_estimator* estimator); /* NULL is fine */
SALE_API const char* sale_estimator_backend(const sale_estimator* estimator);
/* Query rows of a tile of its block lists: 64 on CPUs, sm80 and sm100, 128 on sm90, whose lists are the union of two
 * tiles of 64. */
SALE_API int64_t sale_estimator_q_block(const sale_estimator* estimator);

/* ---- plan ---------------------------------------------------------------------------------------------------- */

typedef enum sale_compute SALE_INT {
  SALE_COMPUTE_EXACT = 0, /* bf16 products for bf16 tensors, f32 products for f16 and f32; f32 accumulation */
  SALE_COMPUTE_INT8 = 1,  /* Q K^T from INT8 codes (SageAttention style), P V as above; CPUs, sm80, sm100 */
  SALE_COMPUTE_FP8 = 2,   /* Q K^T from INT8 codes, P V in e4m3 with a scale per value coordinate; GPUs */
  SALE_COMPUTE_F16 = 3    /* Q K^T from INT8 codes, P V in f16 summed in f16 over 64 keys, then in f32; a scale per
                             value coordinate; sm80, sm100 */
} sale_compute;

/* Where a step's calls find the codes of its keys. */
typedef enum sale_index_source SALE_INT {
  SALE_INDEX_OF_CALL = 0, /* each call makes its own in the workspace and forgets it */
  SALE_INDEX_GIVEN = 1,   /* calls bring one sale_index per sequence */
  SALE_INDEX_PAGES = 2    /* calls bring pages of codes, which stand beside those of the keys: sale_index_pages */
} sale_index_source;

/* How a step is to be done. */
typedef struct sale_options {
  size_t struct_size;  /* sizeof(sale_options) */
  int64_t dense_below; /* sequences with fewer keys run dense; SALE_AUTO: where sparse attention is not faster yet on
                          this backend, see sale_backend_facts */
  sale_compute compute;
  int32_t compensate;  /* 1: pseudo-keys stand in for dropped blocks: mean key and mean value of 256 keys each, in the
                          place of those that were dropped; lse counts them. GPUs; CPUs with exact products */
  int32_t audit;       /* rows of every sequence and query head computed again over all keys they see, 0 .. 65536; more
                          than there are: all. sale_stats.audits has what was found */
  int32_t with_index;  /* a sale_index_source */
  uint64_t audit_seed; /* chooses the rows: one in each of `audit` equal parts, docs/numerics.md section 8 */
} sale_options;

/* Dense below SALE_AUTO, exact products, nothing else. */
static inline sale_options sale_options_init(void) {
  sale_options o = SALE_ZEROS;
  o.struct_size = sizeof o;
  o.dense_below = SALE_AUTO;
  o.compute = SALE_COMPUTE_EXACT;
  return o;
}

typedef struct sale_plan sale_plan;

/* Bytes a caller provides. total = tables + key_index + selection + scratch, exact; one byte less is refused. Where
 * layers differ, of the layer that takes the most. */
typedef struct sale_workspace {
  size_t struct_size; /* sizeof(sale_workspace) */
  size_t total;
  size_t tables;    /* devices: what the plan knows of tiles and rows */
  size_t key_index; /* 0 for sequences that come with an index of their own; from pages codes are put in order here */
  size_t selection; /* one bit per candidate block, rounded up to 64 per row of blocks */
  size_t scratch;   /* CPUs: per thread, independent of the lengths; INT4 adds 4 bytes per key and query head. Devices:
                       coded queries, at most some 256 MB; compensation adds 1 / 256 of the bytes of K and V, 8-bit
                       products half of them. CPUs: paged keys and values once more */
} sale_workspace;

/* Checks everything that does not depend on pointers. estimators [n_estimators]: all that calls with this plan will
 * use; of one backend, one number of threads and the problem's heads. Allocates host memory only, and waits for
 * nothing. */
SALE_API sale_status sale_plan_create(const sale_problem* problem, const sale_options* options,
                                      const sale_estimator* const* estimators, int64_t n_estimators, sale_plan** plan);
SALE_API void sale_plan_destroy(sale_plan* plan); /* NULL is fine */
/* Fills in `workspace`, whose struct_size is set. */
SALE_API sale_status sale_plan_workspace(const sale_plan* plan, sale_workspace* workspace);
SALE_API const char* sale_plan_backend(const sale_plan* plan);
SALE_API int64_t sale_plan_q_block(const sale_plan* plan); /* as of its estimators */
/* Text for people, one fact a line: backend chosen, why the others were not, block shape, estimator, bytes, items; of
 * the first estimator. Valid as long as the plan. */
SALE_API const char* sale_plan_explain(const sale_plan* plan);

/* ---- key index ----------------------------------------------------------------------------------------------- */

/* What is remembered of one sequence's keys: low-bit codes, their scales, the smoothing vector. Lives beside the KV
 * cache, appended to chunk by chunk, used by every later query chunk. */
typedef struct sale_index sale_index;

typedef struct sale_index_options {
  size_t struct_size; /* sizeof(sale_index_options) */
  int64_t capacity;   /* keys there is room for, 1 .. 2^31 (devices: 2^21) */
  int32_t page_size;  /* 0: keys are read from one tensor; else from pages, as in sale_problem */
  void* memory;       /* the index's own memory, of its layer's device: at least sale_index_memory bytes, aligned to 64.
                         NULL: allocated here */
  size_t memory_bytes;
} sale_index_options;

/* Bytes that an index of `capacity` keys takes in caller's memory; 0 when there is no such index. */
SALE_API size_t sale_index_memory(const sale_estimator* estimator, int64_t capacity);
SALE_API sale_status sale_index_create(const sale_estimator* estimator, const sale_index_options* options,
                                       sale_index** index);
SALE_API void sale_index_destroy(sale_index* index); /* NULL is fine; caller's memory stays */
/* Brings the index up to `k_len` keys of the sequence whose keys start at k (all of them, strides as given; those
 * already indexed are not read again, except the last, partial block). Smoothing vector and FP8 scale that the layer
 * does not give are fixed by the first call, from its keys. k_len below the present length is refused. pages: NULL
 * unless the index was made with a page_size; then this sequence's row of the page table (in the keys' memory), k is
 * page 0's first key and strides.batch the stride between pages. */
SALE_API sale_status sale_index_update(sale_index* index, const void* k, sale_strides k_strides, int64_t k_len,
                                       const int32_t* pages, void* stream);
/* Forgets keys from `k_len` on (rollback of a KV cache). Smoothing vector and scale stay, also at length 0. */
SALE_API sale_status sale_index_truncate(sale_index* index, int64_t k_len);
SALE_API int64_t sale_index_length(const sale_index* index);
SALE_API size_t sale_index_bytes(const sale_index* index);
/* For tests and tools: the codes [k_len, rank] and scales of kv head `head`, in host memory. Scale of key j is
 * scales[(j / 32) * groups + group(j)], groups = 4 for INT4 (group(j) = (j % 8) / 2), 1 for FP4 and INT8; FP8 has one
 * scale. FP4: a key has rank / 2 bytes of codes, two a byte, the lower half first, then a byte of exponent for every 32
 * coordinates, docs/numerics.md section 1.
 * From a device they are copies, made after waiting for it and valid until the next call with this index: there it
 * counts as a writer. */
SALE_API sale_status sale_index_codes(const sale_index* index, int32_t head, const int8_t** codes, const float** scales,
                                      const float** smoothing);

/* Codes in pages, beside paged keys: codes of the keys of page p of a cache are in page p here, at memory + p *
 * page_bytes, and one page table serves both. They are a function of the page's keys alone, so that whoever shares a
 * page of keys (a common prefix, a fork, a request that was preempted and comes back) shares its codes; nothing else is
 * kept anywhere, so that pages may be copied, moved and forgotten like those of the cache.
 * For that the layer gives smoothing (and key_scales for SALE_FP8) and pages hold whole blocks: page_size is a multiple
 * of 32. Layers of dense heads alone need no pages and their calls may leave them out.
 * sale_run and sale_select put the codes of keys from k_coded (see sale_problem) on into the pages, all of the block
 * that k_coded stands in, whether or not the sequence is long enough to be scanned; earlier ones they read. Two calls
 * may write one page at a time when they write the same keys.
 * Where only the device knows which pages hold codes (a page table that is never on the host, prefixes cached by
 * others), `coded` says so page by page, in place of k_coded. It begins as 0; calls raise it; whoever writes keys
 * lowers it first, by sale_index_forget. Such calls, and what lowers, follow each other: on one stream, or with events
 * between. */
typedef struct sale_index_pages {
  size_t struct_size; /* sizeof(sale_index_pages) */
  void* memory;       /* of the layer's device, aligned to 64 bytes */
  int64_t page_bytes; /* from page to page: a multiple of 64, at least sale_index_page_bytes */
  int64_t pages;      /* how many there are; numbers in page_table are below */
  int32_t* coded; /* NULL, or [pages], of the layer's device: how many keys of a page, from its first on, have codes.
                     Blocks whose keys all have are read, the others made, whatever k_coded says */
  int64_t* made;  /* with coded: NULL, or a number there that is raised by how many keys a call codes */
} sale_index_pages;

/* Slots of a cache that are about to be written. */
typedef struct sale_index_slots {
  size_t struct_size;   /* sizeof(sale_index_slots) */
  int32_t* coded;       /* [layers, pages], of the estimator's device */
  int64_t layers;       /* layers whose caches the slots are of, at least 1 */
  int64_t layer_stride; /* elements from layer to layer, at least pages */
  int64_t pages;        /* 1 .. 2^31 - 1 */
  int32_t page_size;    /* as in sale_problem, a multiple of 32 */
  const int64_t* slots; /* [n_slots], of the same memory: token slot % page_size of page slot / page_size. Negative ones
                           (padding) and those of pages that there are not are passed over */
  int64_t n_slots;      /* 0 .. 2^31 - 1 */
  void* stream;         /* as in sale_call */
} sale_index_slots;

/* Lowers `coded` of every page that a slot is in to the slot's token, so that codes of what stood there no longer
 * count. One launch; allocates nothing, waits for nothing, may be captured. */
SALE_API sale_status sale_index_forget(const sale_estimator* estimator, const sale_index_slots* slots);

/* Bytes of a page of `page_size` keys; 0 when there are none such: the layer gives no smoothing (or key_scales), or
 * page_size is no multiple of 32. */
SALE_API size_t sale_index_page_bytes(const sale_estimator* estimator, int32_t page_size);

/* ---- block list ---------------------------------------------------------------------------------------------- */

#define SALE_Q_BLOCK 64 /* rows of a query tile of the method; a plan's own: sale_plan_q_block */
#define SALE_K_BLOCK 32 /* keys of a key block */

/* The selection: for each (sequence, query head, query tile) the kept key blocks, one bit each, in the memory of the
 * plan's device. Tiles are the plan's. The functions below wait for the device, then copy. */
typedef struct sale_blocks sale_blocks;

/* A row of blocks. */
typedef struct sale_tile {
  int32_t sequence, head;
  int64_t tile;
} sale_tile;
typedef struct sale_row_counts {
  int64_t kept, visible; /* visible: blocks the tile can see at all */
} sale_row_counts;
typedef struct sale_csr_counts {
  int64_t rows, kept;
} sale_csr_counts;

SALE_API sale_status sale_blocks_create(const sale_plan* plan, sale_blocks** blocks); /* all blocks kept */
SALE_API void sale_blocks_destroy(sale_blocks* blocks);
/* Kept block numbers of one row of blocks in ascending order: writes at most `capacity` of them to `out` (may be NULL
 * when capacity is 0), and always the full counts. */
SALE_API sale_status sale_blocks_row(const sale_blocks* blocks, sale_tile at, int32_t* out, int64_t capacity,
                                     sale_row_counts* counts);
/* All rows at once, as a CSR matrix in host memory: row r of [batch, q_heads, tiles of the sequence] (sequence-major,
 * its tiles ascending) has its kept block numbers, ascending, at indices[starts[r]] .. indices[starts[r + 1]] - 1. The
 * counts are always filled in; starts [rows + 1] is written when row_capacity is at least rows, indices when
 * index_capacity is at least kept too; either may be NULL when its capacity is 0. Waits for the device once. */
SALE_API sale_status sale_blocks_csr(const sale_blocks* blocks, int64_t* starts, int64_t row_capacity, int32_t* indices,
                                     int64_t index_capacity, sale_csr_counts* counts);
/* The raw bits, in the memory of the plan's device, for use on a stream: row r's 64-bit words (rows as above) begin
 * word_starts[r] words after *words, block b is bit b % 64 of word b / 64. *rows is always filled in; word_starts, host
 * memory, [rows + 1], is written when row_capacity is at least rows, and may be NULL when it is 0. */
SALE_API sale_status sale_blocks_words(const sale_blocks* blocks, uint64_t** words, int64_t* word_starts,
                                       int64_t row_capacity, int64_t* rows);
/* Replaces one row of blocks; `kept` ascending, without repeats, each below the visible count, at least one. */
SALE_API sale_status sale_blocks_set_row(sale_blocks* blocks, sale_tile at, const int32_t* kept, int64_t count);

/* ---- run ----------------------------------------------------------------------------------------------------- */

/* Statistics of one run. heads may be NULL, else [batch * q_heads], sequence-major. On a device they make the call wait
 * for its stream before and after every stage, so such a call cannot be captured. */
typedef struct sale_head_stats {
  int64_t kept_blocks, visible_blocks; /* density = kept / visible */
} sale_head_stats;
/* What an audit found for one head: sums over its rows, so that those of several calls may be added up.
 *   error / size   relative L1 error of out, what its type rounds off included
 *   mass / rows    mean share of the rows' attention that lies in kept blocks
 * Estimates of the same figures over all rows; NaN where a row is not finite. */
typedef struct sale_head_audit {
  int64_t rows;
  double error;      /* sum of |out - exact|, over rows and coordinates */
  double size;       /* sum of |exact| */
  double mass;       /* sum over rows of the share of softmax weight in kept blocks */
  double least_mass; /* the smallest of them; 1 without rows */
} sale_head_audit;
typedef struct sale_stats {
  size_t struct_size;                 /* sizeof(sale_stats) */
  double index_s, select_s, attend_s; /* wall-clock seconds of the stages */
  int64_t kept_blocks, visible_blocks;
  sale_head_stats* heads;
  double audit_s;          /* written when the plan audits, as is: */
  sale_head_audit* audits; /* [batch * q_heads], sequence-major: required by sale_run and sale_attend then */
} sale_stats;

/* One layer's attention of a step. On a device all pointers but indexes and stats are to device memory, and q, k, v and
 * out are aligned to 16 bytes. Begin with sale_call_init or zeros; what a function does not use may stay 0. */
typedef struct sale_call {
  size_t struct_size; /* sizeof(sale_call) */
  const void *q, *k, *v;
  void* out; /* like q; must overlap nothing else */
  /* NULL, or [batch, q_heads, longest q_len] contiguous: the natural logarithm of the sum of exp of scaled scores, over
   * the keys attended to. */
  float* lse;
  const sale_strides *q_strides, *k_strides, *v_strides, *out_strides; /* each NULL: the plan's */
  const int32_t* page_table;                                           /* [batch, pages]; NULL when not paged */
  /* For parts, else NULL: [batch, q_heads, longest q_len] like lse: the natural logarithm of the sum of exp of each
     row's scaled scores over the sink and local keys of the whole sequence. */
  const float* reference;
  /* [batch] for a plan of SALE_INDEX_GIVEN, each as long as its sequence's k_len and of this estimator or one that
     codes keys alike; else NULL. */
  const sale_index* const* indexes;
  sale_blocks* blocks;    /* written by sale_select, read by sale_attend; unused by sale_run */
  void* workspace;        /* aligned to 64 bytes */
  size_t workspace_bytes; /* at least sale_plan_workspace's total */
  sale_stats* stats;      /* NULL or filled in */
  void* stream;
  /* 1: sale_plan_prepare was called for this workspace on this stream, and nothing but calls with this plan has written
     to it since. 0: the call does it itself. */
  int32_t prepared;
  int32_t reserved;                    /* 0 */
  const sale_index_pages* index_pages; /* for a plan of SALE_INDEX_PAGES, in sale_run and sale_select; else NULL */
  /* With SALE_KV_E4M3: what elements of k and of v are multiplied by, [kv_heads] each where the tensors lie, or NULL:
     1. Else NULL. */
  const float *k_scales, *v_scales;
} sale_call;
static inline sale_call sale_call_init(void) {
  sale_call c = SALE_ZEROS;
  c.struct_size = sizeof c;
  return c;
}

/* Puts what the plan knows into a workspace: once a step instead of once a layer, for calls with `prepared`. Nothing to
 * do in host memory. */
SALE_API sale_status sale_plan_prepare(const sale_plan* plan, void* workspace, size_t workspace_bytes, void* stream);

/* estimator: one of those the plan was made for, or one of the same format, rank, heads, sink and local. */
SALE_API sale_status sale_run(const sale_plan* plan, const sale_estimator* estimator, const sale_call* call);
/* The stages on their own. */
SALE_API sale_status sale_select(const sale_plan* plan, const sale_estimator* estimator, const sale_call* call);
SALE_API sale_status sale_attend(const sale_plan* plan, const sale_estimator* estimator, const sale_call* call);

/* ---- backends ------------------------------------------------------------------------------------------------ */

/* The list, fastest first. */
SALE_API int32_t sale_backend_count(void);
SALE_API const char* sale_backend_name(int32_t i);
SALE_API const char* sale_backend_summary(int32_t i); /* one line: what it runs on and with which instructions */
/* "" when backend i can run on this machine, else the reason in words. Valid until the next call on this thread. */
SALE_API const char* sale_backend_why_not(int32_t i);
/* What to know before choosing one. */
typedef struct sale_backend_facts {
  size_t struct_size;  /* sizeof(sale_backend_facts) */
  int32_t on_device;   /* 1: a CUDA device's memory; 0: host memory */
  int32_t q_block;     /* query rows of a tile of its block lists */
  sale_format format;  /* what it scans fastest, and its default calibration is made for */
  uint32_t formats;    /* those it has at all: bit 1 << format */
  uint32_t projected;  /* of those, over a projection */
  int32_t compensates; /* 1: has sale_options.compensate */
  int32_t reserved;    /* 0 */
  /* What SALE_AUTO stands for in sale_options.dense_below: keys from which sparse attention was faster than dense where
     it was measured (docs/performance.md); over up to 32 coordinates of a projection, and of all others. */
  int64_t dense_below_projected, dense_below;
} sale_backend_facts;
/* Fills in `facts`, whose struct_size is set. */
SALE_API sale_status sale_backend_describe(int32_t i, sale_backend_facts* facts);
/* The first usable backend for tensors in this memory (as in sale_problem), -1 when there is none. */
SALE_API int32_t sale_backend_for(int32_t device);
/* "" when backend i can run this problem for this layer with these options wherever it runs at all, else the first
 * reason. Whether it runs on this machine is sale_backend_why_not's question. */
SALE_API const char* sale_backend_why_not_problem(int32_t i, const sale_problem* problem, const sale_layer* layer,
                                                  const sale_options* options);
/* CPU name, features used by SALE, features hidden by SALE_HIDE; one line. */
SALE_API const char* sale_machine(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SALE_SALE_H */
