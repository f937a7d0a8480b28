// What the host sees of the kernels that GPU backends share: plain structs passed by value and one launch function a
// stage. Nothing here allocates, synchronises or changes the current device; everything runs on the given stream and
// can be captured. Each backend's own kernels: its kernels.hpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernel.hpp"
#include "sale/sale.h"

namespace sale::cuda {

constexpr int64_t block_keys = 32;              // keys of a block
constexpr int32_t max_sequences = 64;           // of one launch; larger batches take several
constexpr int64_t max_keys = int64_t{1} << 21;  // of a sequence: a row of block bits must fit shared memory

// One sequence of the batch.
struct Sequence : Sight {
  int64_t q_start, k_start;  // first token in q and out, k and v
  int64_t bits_at, words;    // block list: head h's rows at bits + bits_at + h * words
  int64_t row_word_at;       // tile t's words begin row_word[row_word_at + t] after that
  int32_t batch;             // its place on the tensors' batch axis (and in lse and the page table)
  int32_t dense;             // every head dense: keeps all blocks, needs no index
  // Key index, null when dense; kv head h's part at h times the stride.
  uint8_t* codes;                   // [keys rounded up to 32, width] bytes, laid out by code_offset()
  float* scales;                    // INT8: [blocks]; INT4: [blocks, 4]; FP8: one number
  float* smoothing;                 // [head_dim]
  int64_t codes_head, scales_head;  // strides: bytes, floats
  // In the arrays of a call's means and 8-bit blocks: its first mean, its first block, the first of its coded means.
  int64_t mean_at, block_at, mean_block_at;
};

struct Item {
  int32_t sequence, tile;
};

// The same for every kernel of a call.
struct Common {
  Sequence sequences[max_sequences];
  const Item* items;        // device, [n_items]: every (sequence, tile), longest first
  const int64_t* row_word;  // device
  const float* thresholds;  // device, [q_heads]: tau
  uint64_t* bits;           // device: the block list
  int32_t n_sequences, n_items;
  int32_t q_heads, kv_heads, group, head_dim;
  int32_t dtype;  // sale_dtype: SALE_F16 or SALE_BF16
  int32_t sink, local;
  int32_t windowed;  // some sequence's rows have left keys behind
  float scale;
  int32_t page_size;          // 0: not paged
  int64_t pages;              // page table row length
  const int32_t* page_table;  // device, [batch, pages]
};

// How keys and queries are coded. width: bytes of a coded row, 32, 64 or 128.
struct Estimator {
  int32_t format;  // sale_format
  int32_t rank, width;
  const float* k_projection;  // device, [kv_heads, head_dim, rank], or null
  const void* q_projection;   // device, as the backend keeps it, or null
};

// Byte `at` of key j's codes in a head's: rows in order, their 16-byte pieces permuted the way the tensor cores (wgmma,
// ldmatrix) read shared memory, so that plain copies will do.
SALE_BOTH int64_t code_offset(int64_t key, int64_t at, int64_t width) {
  const int64_t swizzle = width == 32 ? (key >> 2) & 1 : width == 64 ? (key >> 1) & 3 : key & 7;
  return key * width + ((at / 16) ^ swizzle) * 16 + at % 16;
}

// The keys or the values of a sequence: [kv head, token, head_dim], device. Queries too.
struct Tokens {
  const void* base;           // first token, kv head 0; paged: page 0's
  int64_t head, token;        // strides in elements
  int32_t page_size;          // token j of the sequence is in page page_table[j / page_size]; 0: not paged
  int64_t page;               // stride between pages, elements
  const int32_t* page_table;  // device, this sequence's row
};

// ---- tables --------------------------------------------------------------------------------------------------

// What a plan knows of the sequences of a launch, computed where it is used: `prepare` puts it into the workspace.
struct LayoutCall {
  Sight sights[max_sequences];
  int64_t row_word_at[max_sequences];                         // first of each sequence
  int64_t audited[max_sequences], audited_at[max_sequences];  // rows, and the first of each sequence
  int32_t n_sequences;
  int32_t tile_rows, chunk_tiles;  // chunk_tiles: 0 without chunks
  Item* items;                     // every (sequence, tile), those that see the most blocks first
  Item* chunks;                    // every (sequence, first tile of chunk_tiles), in the same order
  int64_t* row_word;               // tile t's words begin row_word[row_word_at + t] after the sequence's
  int64_t* audit_rows;             // ascending
  uint64_t audit_seed;
};
cudaError_t launch_layout(const LayoutCall& call, cudaStream_t stream);

// ---- index ---------------------------------------------------------------------------------------------------

// What a backend's key index is made from; its kernels are the backend's own.
struct IndexCall {
  Tokens k;
  int32_t dtype, head_dim, kv_heads;
  Estimator estimator;
  uint8_t* codes;
  float *scales, *smoothing;
  int64_t codes_head, scales_head;
  int64_t k_len;            // keys of the sequence
  int64_t first_key;        // codes from this key (a multiple of 32) on are made
  int32_t fix;              // != 0: also fix smoothing (unless given) and FP8's scale, by keys [0, k_len)
  int32_t smoothing_given;  // != 0: the vectors are set already
  const int32_t* blocks;    // device: how many blocks are coded, then their numbers; null: those from first_key on
  void* scratch;            // device, mean_scratch_bytes()
};

// Blocks [first, end) of a sequence's index between its place in order and the pages that hold it, of `page_blocks`
// each.
struct PagesCall {
  char* pages;
  int64_t page_bytes;
  const int32_t* table;                                                    // device, this sequence's row
  int64_t page_blocks, page_scales_at, page_codes_head, page_scales_head;  // in a page, bytes
  uint8_t* codes;
  float* scales;                    // null: a block has none
  int64_t codes_head, scales_head;  // bytes, floats
  int32_t code_bytes, scale_bytes;  // of a block: multiples of 1024, and 0, 4 or 16
  int32_t kv_heads;
  int64_t first, end;
  // Pages that say themselves what they hold (sale_index_pages.coded); null: first and end say it.
  int32_t* coded;
  int32_t*
      uncoded;  // device: reading writes how many of the blocks are not coded, then their numbers; writing reads it
  unsigned long long* made;  // or null
  int64_t k_len;
};
constexpr int64_t uncoded_bytes(int64_t k_len) { return 4 * (1 + Sight::blocks_of(k_len)); }
cudaError_t launch_read_pages(const PagesCall& call, cudaStream_t stream);   // pages to order
cudaError_t launch_write_pages(const PagesCall& call, cudaStream_t stream);  // order to pages
cudaError_t launch_forget(const sale_index_slots& slots, cudaStream_t stream);

// Mean of the tokens of every head to mean [heads, head_dim], f32 of a double sum; scratch: mean_scratch_bytes().
struct MeanCall {
  Tokens tokens;
  int32_t dtype, head_dim, heads;
  int64_t n;
  float* mean;
  void* scratch;
};
size_t mean_scratch_bytes(int32_t heads, int32_t head_dim);
cudaError_t launch_mean(const MeanCall& call, cudaStream_t stream);

// ---- what stands for keys and values --------------------------------------------------------------------------------

// Compensation: the mean key and the mean value of every mean_keys keys. A mean that is not finite is written as 0.
struct MeansCall {
  Tokens k, v;
  int32_t dtype, head_dim, kv_heads;
  int64_t k_len;
  uint16_t *k_means, *v_means;  // tensors' dtype; the sequence's first of kv head 0
  int64_t means_head;           // stride in elements
};
// For every sequence of a call with compensation, the dense ones too: a step may look beyond a sequence's last mean.
cudaError_t launch_means(const MeansCall& call, cudaStream_t stream);

// K and V in few bits. Per kv head: blocks of 32 keys, then the coded means, 32 a block.
//   k  [32, head_dim] INT8 of smoothed keys, laid out by code_offset(), a scale a block
//   v  FP8 form: [head_dim, 32] e4m3 of v * 448 / (largest |v| of the coordinate), laid out by code_offset(coordinate,
//      place, 32); key_of_place() says whose value stands at a place
//      F16 form: [32, head_dim] f16 of v / (largest |v| of the coordinate), laid out by code_offset(key, byte,
//      2 head_dim)
struct LowBit {
  uint8_t* k;        // null: low-bit attention is not wanted
  uint8_t* v;        // null: values stay as they are
  int32_t v_bytes;   // of a coded value: value_bytes()
  float* k_scales;   // [kv_heads, blocks]
  float* v_most;     // [batch, kv_heads, head_dim]
  float* smoothing;  // [batch, kv_heads, head_dim]
  int64_t blocks;    // of a kv head
};
// Of a coded value: e4m3, f16, or 0 where values stay as they are.
constexpr int32_t value_bytes(sale_compute compute) {
  return compute == SALE_COMPUTE_FP8 ? 1 : compute == SALE_COMPUTE_F16 ? 2 : 0;
}
// The order in which products take probabilities out of the registers where scores are made.
SALE_BOTH int key_of_place(int place) { return place / 16 * 16 + place % 4 / 2 * 8 + place % 16 / 4 * 2 + place % 2; }
struct LowBitCall {
  Tokens k, v;
  int32_t dtype, head_dim, kv_heads, batch;  // batch: the sequence's place in v_most and smoothing
  int64_t k_len;
  const uint16_t *k_means, *v_means;  // or null: as in MeansCall
  int64_t means_head;
  LowBit low;
  int64_t block_at, mean_block_at;
  void* scratch;  // device, mean_scratch_bytes()
};
// Blocks that the coded means of so many keys take: whole steps of four.
constexpr int64_t coded_mean_blocks(int64_t k_len) { return (k_len + 128 * mean_keys - 1) / (128 * mean_keys) * 4; }
cudaError_t launch_low_bit(const LowBitCall& call, cudaStream_t stream);

// ---- statistics ----------------------------------------------------------------------------------------------

// Kept blocks of the call's sequences, all heads: kept[sequence.batch * q_heads + head], device memory.
cudaError_t launch_count(const Common& common, int64_t* kept, cudaStream_t stream);

// Rows of one sequence, for all query heads. A lane is a (row, head of the group): row lane / group, ascending.
struct AuditCall {
  Tokens k, v;
  const uint16_t *q, *out;  // the sequence's first row, head 0
  int64_t q_head, q_token, out_head, out_token;
  int32_t dtype, head_dim, kv_heads, group;
  Sight sight;
  const uint64_t* bits;  // the sequence's: head h's at bits + h * words,
  int64_t words;
  const int64_t* row_word;  // tile t's at row_word[t] after that
  int64_t tile_rows;
  float scale;
  const int64_t* rows;  // device, [n_rows], ascending
  int32_t n_rows;
  int32_t ranges;  // of keys, worked on at a time; each of `range_steps` steps of 128, a multiple of 16
  int64_t range_steps;
  float* partials;  // device scratch, [kv_heads, lanes, ranges, head_dim + 3]: sum, maximum, weight, kept weight
  AuditedRow* to;   // device, lane l of kv head h at h * to_head + l
  int64_t to_head;
};
// Once a backend's kernel has made the partials; then, once all of a sequence's rows have been, heads [kv_heads *
// group].
cudaError_t launch_audit_compare(const AuditCall& call, cudaStream_t stream);
cudaError_t launch_audit_total(const AuditCall& all, sale_head_audit* heads, cudaStream_t stream);

}  // namespace sale::cuda
