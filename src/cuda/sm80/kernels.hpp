// What the host sees of the Ampere and Ada kernels, beside those that all GPU backends share (cuda/common/kernels.hpp,
// where the rules are).
//
//     mean ─▶ index        keys: smoothing vector, codes              common/mean.cu, index.cu
//     mean ─▶ bias         INT4 queries: their means, and what those
//                          add to every key's score                   common/mean.cu, queries.cu
//     code, reference      queries: codes, thresholds                 queries.cu, reference.cu
//     scan                 the vote per block                         scan.cu
//     attend               attention over the kept blocks             attend.cu, attend8.cu
//     audit                sampled rows over all keys                 audit.cu
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/kernels.hpp"

namespace sale::sm80 {

using cuda::AuditCall;
using cuda::block_keys;
using cuda::code_offset;
using cuda::Common;
using cuda::Estimator;
using cuda::IndexCall;
using cuda::Item;
using cuda::key_of_place;
using cuda::LowBit;
using cuda::max_keys;
using cuda::Sequence;
using cuda::Tokens;

constexpr int64_t tile_rows = 64;  // rows of a query tile, as on CPUs: the lists are the same bits

// Of an Estimator: codes of `rank` coordinates, zeros up to whole products.
//   INT4   two coordinates a byte, the even one low; width = 32 or 64
//   INT8   width = 64 or 128
//   q_projection   float, [kv_heads, head_dim, rank]

// A tensor's first element and its strides in elements; outer: batch, or pages where keys are paged.
struct Strided {
  const void* base;
  int64_t outer, head, token;
};

// ---- index ---------------------------------------------------------------------------------------------------

cudaError_t launch_index(const IndexCall& call, cudaStream_t stream);

// ---- select --------------------------------------------------------------------------------------------------

// Tiles of one sequence that are selected together, sharing its keys: tile, tile + 1, ... chunk_tiles() of them.
constexpr int32_t scan_warps = 8;  // a warp a (tile, head)
// Query heads of one kv head that a thread block takes, and tiles.
SALE_BOTH constexpr int32_t chunk_heads(int32_t group) { return group % 4 == 0 ? 4 : group % 2 == 0 ? 2 : 1; }
SALE_BOTH constexpr int32_t chunk_tiles(int32_t group) { return scan_warps / chunk_heads(group); }

struct SelectCall {
  Common common;
  Estimator estimator;
  Strided q, k;
  // Or null: given for every row, [batch, q_heads, reference_rows]. The keys are a part of a sequence's.
  const float* reference;
  int64_t reference_rows;
  const Item* chunks;  // device, [n_chunks]: a sequence and the first tile of a chunk, longest first
  int32_t n_chunks;
  // INT4. q_means [batch, q_heads, head_dim]; bias: q_mean . smoothed key, [q_heads, bias_keys], a sequence's keys from
  // bias_at[its number in the launch] on, 32 a block in the order of bias_place().
  float *q_means, *bias;
  int64_t bias_keys;
  int64_t bias_at[cuda::max_sequences];
  // Scratch of a slice of the chunks: coded queries and their limits, see QueryPlace.
  uint8_t* q_codes;
  float* limits;
  int64_t slice;  // chunks handled at a time
  void* scratch;  // mean_scratch_bytes() of the query heads
};
struct SelectScratch {
  size_t q_codes, limits;
};
SelectScratch select_scratch(const Estimator& estimator, int32_t q_heads, int32_t group, int64_t chunks);
// Writes every row of bits of the call's sequences.
cudaError_t launch_select(const SelectCall& call, cudaStream_t stream);

// ---- attend --------------------------------------------------------------------------------------------------

// compute   SALE_COMPUTE_EXACT   products of the tensors' own type
//           SALE_COMPUTE_INT8    low.k: INT8 Q K, exact sums; P V in the tensors' own type, f32 sums
//           SALE_COMPUTE_FP8     low.k and low.v: as on Hopper; compute capability 8.9 only
//           SALE_COMPUTE_F16     low.k and low.v: P V in f16, summed in f16 over a step, then in f32
struct AttendCall {
  Common common;
  Strided q, k, v;
  // Compensation: means [kv_heads, all blocks, head_dim], a sequence's from its block_at on; null without.
  const uint16_t *k_means, *v_means;
  int64_t means_head;  // stride, elements
  int32_t compute;     // sale_compute
  LowBit low;
  void* out;
  int64_t out_batch, out_head, out_token;  // strides, elements
  float* lse;                              // or null: [batch, q_heads, lse_rows]
  int64_t lse_rows;
};
cudaError_t launch_attend(const AttendCall& call, cudaStream_t stream);
cudaError_t allow_attend();  // raises shared-memory limits on the current device

// ---- statistics ----------------------------------------------------------------------------------------------

// The partials of an audit.
cudaError_t launch_audit(const AuditCall& call, cudaStream_t stream);

// Raises the kernels' shared-memory limits on the current device. Once per device.
cudaError_t prepare_device();

}  // namespace sale::sm80
