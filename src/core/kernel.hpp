// What a kernel sees: plain structs, no standard library. Kernel files are compiled with instruction-set flags, and an
// inline function of a shared header compiled there could be the copy the linker keeps for everyone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/visibility.hpp"
#include "sale/sale.h"

namespace sale {

constexpr int64_t q_block = SALE_Q_BLOCK;
constexpr int64_t k_block = SALE_K_BLOCK;
static_assert(k_block == Sight::block);
// Compensation: a pseudo-key is the mean of so many blocks and weighs, of each dropped one of them, as much as 2^5.5
// keys.
constexpr int64_t mean_blocks = Sight::mean_blocks, mean_keys = mean_blocks * k_block;

// The same for all heads of a plan.
struct Shape {
  sale_dtype dtype;
  int32_t head_dim, group, rank;  // rank: coordinates scanned
  int32_t row_bytes;              // of a coded key
  sale_format format;
  sale_compute compute;
  int32_t sink, local;
  float scale;
};

// The low-bit side of one kv head: codes [keys rounded up to 32, row_bytes], scales [blocks, 4 or 1], smoothing
// [head_dim].
struct IndexView {
  int8_t* codes;
  float* scales;
  const float* smoothing;
  const float* projection;  // [head_dim, rank] for keys, or null
};

// One kv head of one sequence and the query heads that share it. Pointers stand at the sequence's first token and the
// group's first head; strides in elements; head_dim is contiguous.
struct HeadGroup : Sight {
  Shape shape;
  const void *q, *k, *v;
  void* out;
  float* lse;  // or null; row r of head g at lse[g * lse_head + r]
  int64_t q_token, q_head, k_token, v_token, out_token, out_head, lse_head;
  const float* thresholds;  // [group]; 0: dense head
  bool dense;               // every head dense, whatever its threshold
  uint64_t* bits;           // head g's rows of blocks at bits + g * head_words
  int64_t head_words;
  const int64_t* row_word;  // [tiles + 1]
  IndexView index;
  const float* q_projection;  // [head_dim, rank] or null
  const float* q_mean;        // INT4: [group, head_dim], smoothing of the queries
  float* bias;                // INT4: [group, keys rounded up to 32], q_mean . smoothed key
  const float* k_mean;        // INT8 products: [head_dim], smoothing of the keys
  const float* reference;  // or null: keys are a part of a sequence's; row r of head g at reference[g * lse_head + r]
  const void *k_means, *v_means;  // compensation: [k_len / mean_keys rounded up, head_dim], the tensors' type; or null

  // Whether codes of the keys are looked at at all.
  SALE_BOTH bool scanned() const {
    for (int32_t g = 0; !dense && g < shape.group; ++g)
      if (is_scanned(thresholds[g])) return true;
    return false;
  }
  int64_t rows(int64_t tile) const { return end_row(tile, q_block) - first_row(tile, q_block); }
  int64_t first_block(int64_t tile) const { return Sight::first_block(tile, q_block); }
  int64_t end_block(int64_t tile) const { return Sight::end_block(tile, q_block); }
  int64_t local_block(int64_t tile) const { return Sight::local_block(tile * q_block, shape.local); }
  int64_t sink_end(int64_t tile) const { return Sight::sink_end(tile, q_block, shape.sink); }
  Candidates candidates(int64_t tile) const { return Sight::candidates(tile, q_block, shape.sink, shape.local); }
  int64_t mean_begin(int64_t tile) const { return Sight::mean_begin(tile, q_block); }
  int64_t mean_end(int64_t tile) const { return Sight::mean_end(tile * q_block, shape.local); }
  int64_t bias_stride() const { return (k_len + k_block - 1) / k_block * k_block; }
};

// One row of one head, computed again over every key it sees.
struct AuditedRow {
  double error, size;  // |out - exact|_1, |exact|_1
  double mass;         // share of its softmax weight in kept blocks
};

// The stages for one instruction set. Scratch is per thread, aligned to 64 bytes.
struct Kernels {
  size_t (*select_scratch)(const Shape&, int64_t tiles);
  size_t (*attend_scratch)(const Shape&, int64_t tiles);
  // Key codes of blocks [begin, end).
  void (*index)(const HeadGroup&, int64_t begin, int64_t end);
  // INT4: the bias of blocks [begin, end).
  void (*bias)(const HeadGroup&, int64_t begin, int64_t end);
  // Kept blocks of tiles [begin, end), all heads of the group.
  void (*select)(const HeadGroup&, int64_t begin, int64_t end, void* scratch);
  void (*attend)(const HeadGroup&, int64_t begin, int64_t end, void* scratch);
  size_t (*audit_scratch)(const Shape&);
  // Lanes [begin, end), at most audit_lanes; lane i is row rows[i / group], ascending, of the group's head i % group.
  // Reads out; writes `to`, one a lane.
  void (*audit)(const HeadGroup&, const int64_t* rows, int64_t begin, int64_t end, AuditedRow* to, void* scratch);
};
constexpr int64_t audit_lanes = 64;

}  // namespace sale
