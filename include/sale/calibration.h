/* SALE: what was measured about one model, once, so that SALE can run it well: a threshold per layer and query head,
 * the estimator they belong to, the projections of a reduced one. Reading and writing such files, and making them.
 *
 * On disk a calibration is one JSON file and, where it holds more than thresholds, a second file beside it, named in
 * the first, in the safetensors format but with the ending .tensors: engines take every *.safetensors of a model's
 * folder for weights. Its tensors are F32, for every layer N or for none:
 *
 *     layer.N.q_projection   [kv_heads, head_dim, rank]   both, when rank is below head_dim
 *     layer.N.k_projection   [kv_heads, head_dim, rank]
 *     layer.N.smoothing      [kv_heads, head_dim]         optional: the vectors that keys are smoothed by
 *     layer.N.scales         [kv_heads]                   optional, with smoothing: the scale of the codes
 *
 * The JSON (schema 1):
 *
 *     {"schema": 1, "library": "0.1.0",
 *      "model": {"name", "layers", "q_heads", "kv_heads", "head_dim", "fingerprint"},
 *      "estimator": {"format": "int4" | "fp4" | "int8" | "fp8", "rank"},
 *      "projections": null | {"file", "fingerprint"},
 *      "blocks": {"query": 64, "key": 32, "sink", "local", "dense_below"},
 *      "thresholds": [[one per query head], one row per layer],
 *      "provenance": {"prompts": [{"text", "tokens"}], "command", "date", "note"},
 *      "error": {"relative_l1_limit", "relative_l1", "retained_mass", "density"}}
 *
 * Fingerprints are 16 hexadecimal digits, "file" a name without folders. A threshold is a number, 0 to 1e6: 0 is a
 * dense head; or "local": a head that sees its sink and local keys alone.
 *
 * Files are not trusted. Missing, unknown and repeated fields, wrong counts, numbers out of range (NaN and infinity
 * included) and files above the size limits are refused with a sentence that names the file and the field:
 * SALE_INVALID_ARGUMENT.
 *
 * Structs begin with struct_size. One smaller than this header's is accepted, as of an older header: what it lacks is
 * taken for zero, or not written. A larger one is refused.
 */
#ifndef SALE_CALIBRATION_H
#define SALE_CALIBRATION_H

#include "sale/sale.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- fingerprints -------------------------------------------------------------------------------------------- */

/* FNV-1a, 64 bits: the hash so far (at first SALE_FINGERPRINT_START) with these bytes after it.
 *
 * A model's fingerprint is taken over, for each tensor of its safetensors file(s) in ascending order of the names'
 * bytes: the name, a zero byte, the type as safetensors spells it ("BF16"), a zero byte, every extent in decimal
 * followed by a comma, and the tensor's first min(64, size) bytes. It tells models of one shape apart without reading
 * their weights through. */
#define SALE_FINGERPRINT_START UINT64_C(0xcbf29ce484222325)
SALE_API uint64_t sale_fingerprint(uint64_t hash, const void* bytes, size_t count);

/* ---- a calibration ------------------------------------------------------------------------------------------- */

typedef struct sale_model {
  size_t struct_size;
  const char* name; /* for people; not compared. NULL: "" */
  int32_t layers, q_heads, kv_heads, head_dim;
  uint64_t fingerprint; /* 0: unknown */
} sale_model;

typedef struct sale_calibration_text {
  const char* text; /* a file's name, or words for what was generated */
  int64_t tokens;
} sale_calibration_text;

/* All of it, to make one from or as it was read. Arrays and texts that were read are valid as long as the calibration;
 * those to make one from are copied. Texts may be NULL where they are given: "". */
typedef struct sale_calibration_data {
  size_t struct_size;
  const char* library; /* the version that wrote it; ignored where one is made */
  const char* name;    /* of the model, as in sale_model */
  int32_t layers, q_heads, kv_heads, head_dim;
  uint64_t fingerprint;
  sale_format format;
  int32_t rank;        /* head_dim: all coordinates */
  int32_t sink, local; /* keys; as in sale_options */
  int64_t dense_below;
  const float* thresholds;    /* [layers, q_heads]: 0 .. 1e6, or SALE_TAU_LOCAL */
  const float* q_projections; /* [layers, kv_heads, head_dim, rank]; NULL when rank is head_dim */
  const float* k_projections; /* the same */
  const float* smoothing;     /* [layers, kv_heads, head_dim], or NULL */
  const float* scales;        /* [layers, kv_heads], all above 0, or NULL; only with smoothing */
  /* Where it came from, and what it reached on that text: for people. */
  const sale_calibration_text* prompts; /* [n_prompts] */
  int64_t n_prompts;
  const char *command, *date, *note;
  double relative_l1_limit, relative_l1, retained_mass, density;
} sale_calibration_data;

/* What an estimator of one layer takes; pointers as in sale_calibration_data, of this layer. */
typedef struct sale_calibration_layer_data {
  size_t struct_size;
  sale_format format;
  int32_t rank; /* head_dim: all coordinates */
  int32_t sink, local;
  int64_t dense_below;
  const float* thresholds;   /* [q_heads] */
  const float* q_projection; /* [kv_heads, head_dim, rank], or NULL */
  const float* k_projection; /* the same */
  const float* smoothing;    /* [kv_heads, head_dim], or NULL */
  const float* scales;       /* [kv_heads], or NULL */
} sale_calibration_layer_data;

/* Immutable: any number of threads may read one. */
typedef struct sale_calibration sale_calibration;

/* Reads the JSON file and the file it names, in the same folder. */
SALE_API sale_status sale_calibration_open(const char* path, sale_calibration** calibration);
/* The same from memory. tensors: the second file's bytes; NULL and 0 when there is none. where: what messages call it;
 * NULL: "calibration". */
SALE_API sale_status sale_calibration_open_memory(const char* json, size_t json_bytes, const void* tensors,
                                                  size_t tensors_bytes, const char* where,
                                                  sale_calibration** calibration);
/* From values; refuses what a reader would. */
SALE_API sale_status sale_calibration_create(const sale_calibration_data* data, sale_calibration** calibration);
SALE_API void sale_calibration_close(sale_calibration* calibration); /* NULL is fine */

/* data and values: struct_size is set by the caller. */
SALE_API sale_status sale_calibration_get(const sale_calibration* calibration, sale_calibration_data* data);
SALE_API sale_status sale_calibration_layer(const sale_calibration* calibration, int32_t layer,
                                            sale_calibration_layer_data* values);
/* "" when it was made for this model, else a sentence that names the first thing that differs: layers, heads, head
 * dimension, fingerprint (unless the model's is 0). Valid until the next SALE call on this thread. */
SALE_API const char* sale_calibration_why_not(const sale_calibration* calibration, const sale_model* model);

/* Writes the JSON file and, where it is needed, the other beside it, of the same name with the ending .tensors. Each
 * appears whole or not at all. */
SALE_API sale_status sale_calibration_write(const sale_calibration* calibration, const char* path);
/* The same to memory. json_bytes and tensors_bytes hold the room there is at json and tensors, and afterwards what is
 * needed; nothing is written where it is too little (SALE_OK all the same), so that 0 asks for the sizes. file: the
 * name that the second file will have. */
SALE_API sale_status sale_calibration_print(const sale_calibration* calibration, const char* file, char* json,
                                            size_t* json_bytes, void* tensors, size_t* tensors_bytes);

/* ---- making one ---------------------------------------------------------------------------------------------- */

/* A calibrator is shown a model's attention by whoever runs the model, prompt after prompt, and finds the thresholds:
 *
 *     sale_calibrator_create(&options, &c);
 *     for (;;) {
 *       sale_calibrator_get(c, &state);
 *       if (state.pass == SALE_PASS_DONE) break;
 *       sale_calibrator_begin(c, "a book", tokens);          a prompt; state.prompt says which of the pass
 *       (every layer of the model: dense attention, and) sale_calibrator_feed(c, &layer);
 *       sale_calibrator_end(c);
 *     }
 *     sale_calibrator_result(c, goal, &calibration);         for each goal
 *
 * It goes over options.prompts prompts in each of its passes; the same ones again where they can be run again, others
 * where they cannot:
 *
 *     SALE_PASS_PROJECT   moments of keys and queries, for projections and smoothing: when rank is below head_dim and
 *                         no projections were given, or smoothing is asked for
 *     SALE_PASS_MEASURE   every head's error and kept blocks at a ladder of thresholds, on sampled rows, and what
 *                         attention over them costs; then one choice for each goal
 *     SALE_PASS_CHECK     the same at exactly what was chosen
 *
 * With a progress file, prompts that were finished are found there by the next calibrator of the same options, so that
 * interrupted work goes on with the next prompt. A file of other work is refused and left alone.
 *
 * One thread at a time. A refusal (SALE_INVALID_ARGUMENT) leaves it as it was. */
typedef struct sale_calibrator sale_calibrator;

typedef enum sale_goal_kind SALE_INT {
  SALE_GOAL_BUDGET = 0, /* one error budget for the model: root mean square over heads of the L1 error on sampled rows
                           as a share of what the heads of the layer put out on average, spent where it saves most
                           blocks; no head loses more than four times the budget of its own output. 0 .. 1 */
  SALE_GOAL_ERROR = 1,  /* every head at most this share of its own output. 0 .. 1 */
  SALE_GOAL_TIME = 2,   /* attention's own time at most this share of the dense one, by the measured cost. 0 .. 1 */
  SALE_GOAL_PAPER = 3   /* the paper's procedure: from 0.008, halved while the L1 error per token passes this on any
                           prompt, below 0.0001 dense; a goal on its own. Above 0 */
} sale_goal_kind;
typedef struct sale_goal {
  sale_goal_kind kind;
  double value;
} sale_goal;

typedef enum sale_pass SALE_INT {
  SALE_PASS_DONE = 0,
  SALE_PASS_PROJECT = 1,
  SALE_PASS_MEASURE = 2,
  SALE_PASS_CHECK = 3
} sale_pass;

/* All is copied. Where zero is no value of its own it means what it says in brackets. */
typedef struct sale_calibrator_options {
  size_t struct_size;
  const sale_model* model;
  sale_dtype dtype;    /* of what is fed */
  int32_t device;      /* where index and selection are computed: SALE_HOST or a device's ordinal */
  const char* backend; /* as in sale_options */
  int32_t threads;     /* of the CPU's part; 0: one per available CPU */
  sale_format format;
  int32_t rank;               /* 0 or head_dim: all coordinates */
  const float* q_projections; /* made before: [layers, kv_heads, head_dim, rank]; NULL: made here */
  const float* k_projections;
  int32_t sink, local;    /* [32, 128] */
  int64_t dense_below;    /* [1024]; as short a prompt is refused */
  const sale_goal* goals; /* at most 64; none: projections alone, and 0.004 for every head */
  int64_t n_goals;
  int32_t prompts;      /* of every pass [1], at most 1000 */
  int32_t rows;         /* sampled of every head and prompt [48], 4 .. 4096; besides, seven near its end */
  uint64_t seed;        /* chooses them */
  int32_t local_heads;  /* 1: heads that lose no more than the goal's share of their own output by seeing sink and
                           local keys alone become local */
  const char* progress; /* file; NULL: none is kept */
  const char *command, *date, *note; /* for the file; date NULL: today. A progress file is of one command */
  int32_t smoothing;                 /* 1: also the layers' own smoothing vectors, means over all prompts' keys, and
                                        for SALE_FP8 scales; thresholds are measured with them. Codes are then functions
                                        of the keys alone, as index pages need */
  int32_t compensate; /* 1: errors are those of attention that is compensated (sale_options.compensate), as the
                         thresholds are then to be used; not with SALE_GOAL_PAPER */
} sale_calibrator_options;

static inline sale_calibrator_options sale_calibrator_options_init(void) {
  sale_calibrator_options o = SALE_ZEROS;
  o.struct_size = sizeof o;
  o.dtype = SALE_BF16;
  o.device = SALE_HOST;
  o.format = SALE_INT8;
  o.sink = 32;
  o.local = 128;
  o.dense_below = 1024;
  o.prompts = 1;
  o.rows = 48;
  o.seed = 1;
  return o;
}

/* Causal attention of one layer, or of a part of its rows: the last q_len of k_len tokens; strides in elements, batch
 * is not used. Parts of a prompt (chunked prefill) follow each other; their queries are kept until the last one. */
typedef struct sale_calibrator_layer {
  size_t struct_size;
  int32_t layer;
  int32_t
      device; /* where these tensors are: SALE_HOST, or the options' device. Complete: what makes them is waited for */
  int64_t q_len, k_len;
  const void *q, *k, *v;
  sale_strides q_strides, k_strides, v_strides;
  float scale; /* 0: 1/sqrt(head_dim) */
} sale_calibrator_layer;

typedef struct sale_calibrator_state {
  size_t struct_size;
  sale_pass pass;
  int32_t prompt, prompts; /* prompts of this pass that are finished, of how many */
  int32_t layer, layers;   /* layers of the prompt begun that were seen, of how many */
  double done;             /* of all the work, 0 .. 1 */
  int32_t resumed;         /* prompts that were found in the progress file */
} sale_calibrator_state;

/* One head at the thresholds of a goal, over the prompts of the check. */
typedef struct sale_calibrator_head {
  double error, relative;              /* L1 error on sampled rows of the worst prompt, as a share of the layer's mean
                                          output, and of the head's own */
  double mass;                         /* mean share of the rows' attention that was kept */
  int64_t kept_blocks, visible_blocks; /* of all rows and prompts */
} sale_calibrator_head;

/* Valid as long as the calibrator. */
typedef struct sale_calibrator_findings {
  size_t struct_size;
  const sale_calibrator_head* heads; /* [layers, q_heads]; NULL without goals */
  const char* goal;                  /* in words */
  /* Attention by the cost measured, over all prompts: at these thresholds, dense, and of one block. 0: not measured. */
  double attention_s, dense_attention_s, seconds_per_block;
  const double*
      left_out; /* [layers]: share of the scores' energy that projections leave out; NULL when none were made */
} sale_calibrator_findings;

SALE_API sale_status sale_calibrator_create(const sale_calibrator_options* options, sale_calibrator** calibrator);
SALE_API void sale_calibrator_destroy(sale_calibrator* calibrator); /* NULL is fine */
SALE_API sale_status sale_calibrator_get(const sale_calibrator* calibrator, sale_calibrator_state* state);
/* A prompt of that many tokens; text says what it is, for the file. */
SALE_API sale_status sale_calibrator_begin(sale_calibrator* calibrator, const char* text, int64_t tokens);
/* Rows of the prompt begun, said before it is fed: tokens from which what a question asks for is read. Ascending. Every
 * head's error on them, as a share of what heads put out there, is taken apart from the error on sampled rows, and the
 * larger of both is the prompt's. Of more rows than the options sample, as many, evenly spread. None: no questions. */
SALE_API sale_status sale_calibrator_asks(sale_calibrator* calibrator, const int64_t* rows, int64_t count);
SALE_API sale_status sale_calibrator_feed(sale_calibrator* calibrator, const sale_calibrator_layer* layer);
/* Every layer was fed. The last prompt's end chooses the thresholds, or finishes. */
SALE_API sale_status sale_calibrator_end(sale_calibrator* calibrator);
/* Forgets the prompt begun, if any. */
SALE_API sale_status sale_calibrator_cancel(sale_calibrator* calibrator);
/* When all is done: goal 0 .. n_goals - 1; 0 without goals. */
SALE_API sale_status sale_calibrator_result(const sale_calibrator* calibrator, int64_t goal,
                                            sale_calibration** calibration);
SALE_API sale_status sale_calibrator_findings_of(const sale_calibrator* calibrator, int64_t goal,
                                                 sale_calibrator_findings* findings);
/* Removes the progress file, once results are written. */
SALE_API sale_status sale_calibrator_forget(sale_calibrator* calibrator);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* SALE_CALIBRATION_H */
