// What the host sees of the Hopper kernels, beside those that all GPU backends share (cuda/common/kernels.hpp, where
// the rules are).
//
//     mean ─▶ range ─▶ index        keys: smoothing vector, largest coordinate, codes            index.cu
//     prepare ─▶ scan               queries: thresholds and codes; then the vote per block      prepare.cu, scan.cu
//     attend                        attention over the kept blocks                               attend.cu, attend8.cu
//     audit                         sampled rows over all keys, compared with out                audit.cu
#pragma once

#include <cuda.h>  // CUtensorMap, CUstream: types only
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/kernels.hpp"

namespace sale::sm90 {

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

constexpr int64_t tile_rows = 128;  // rows of a query tile: the block list is the union of its two halves of 64 rows

// Of an Estimator:
//   FP8 projected   rank <= width - 4; the last four coordinates carry the threshold      width 32, 64
//   FP8, INT8       rank = head_dim                                                        width = rank
//   q_projection    uint16_t, tensors' dtype, [kv_heads, width, head_dim]: transposed, zero rows beyond rank

// ---- index ---------------------------------------------------------------------------------------------------

size_t index_scratch_bytes(int32_t kv_heads, int32_t head_dim);
cudaError_t launch_index(const IndexCall& call, cudaStream_t stream);

// ---- tensor maps ---------------------------------------------------------------------------------------------

// A tensor [batch or page, head, token, head_dim] seen by the copy engine in boxes of `rows` tokens x 64 elements.
struct MapSpec {
  const void* base;
  int32_t head_dim;
  int64_t tokens, heads, outer;                     // extents
  int64_t token_stride, head_stride, outer_stride;  // elements; multiples of 8
  int32_t rows;                                     // of a box
};
// Empty, or why the copy engine cannot read such a tensor.
const char* why_not_map(const MapSpec& spec, int32_t dtype);
// encode: the driver's cuTensorMapEncodeTiled.
using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
CUresult make_map(EncodeTiled encode, const MapSpec& spec, int32_t dtype, CUtensorMap* map);

// ---- select --------------------------------------------------------------------------------------------------

// The tensors themselves, for thresholds that must be exact (INT8).
struct ExactCall {
  const void *q, *k;
  int64_t q_batch, q_head, q_token, k_batch, k_head, k_token;  // strides, elements; k_batch: of pages when paged
};

struct SelectCall {
  Common common;
  Estimator estimator;
  ExactCall exact;
  CUtensorMap q64, k32;  // boxes of 64 and 32 rows (paged: min(32, page_size) rows)
  // Or null: given for every row, [batch, q_heads, reference_rows]. The keys are a part of a sequence's.
  const float* reference;
  int64_t reference_rows;
  // Scratch, device. Rows of head h, tile t of item i: see select_scratch().
  uint8_t* q_codes;   // coded queries of a slice of the items
  float* row_limits;  // their thresholds in code units
  int64_t slice;      // items handled at a time
};
// Bytes of scratch for slices of `items` items: q_codes, then row_limits.
struct SelectScratch {
  size_t q_codes, row_limits;
};
SelectScratch select_scratch(const Estimator& estimator, int32_t q_heads, int64_t items);
// Writes every row of bits of the call's sequences.
cudaError_t launch_select(const SelectCall& call, int32_t multiprocessors, cudaStream_t stream);

// ---- attend --------------------------------------------------------------------------------------------------

struct AttendCall {
  Common common;
  CUtensorMap q64, k32, k128, v32, v128;
  // Compensation: means [kv_heads, all means, head_dim] seen in boxes of 128 rows.
  int32_t compensate;
  CUtensorMap k_means, v_means;
  LowBit low;
  void* out;
  int64_t out_batch, out_head, out_token;  // strides, elements
  float* lse;                              // or null: [batch, q_heads, lse_rows]
  int64_t lse_rows;
  int32_t* counter;  // device scratch, one int; set to 0 by the launch
};
cudaError_t launch_attend(const AttendCall& call, int32_t multiprocessors, cudaStream_t stream);

// ---- statistics ----------------------------------------------------------------------------------------------

// The partials of an audit.
cudaError_t launch_audit(const AuditCall& call, cudaStream_t stream);

// Raises the kernels' shared-memory limits on the current device. Once per device.
cudaError_t prepare_device();

}  // namespace sale::sm90
