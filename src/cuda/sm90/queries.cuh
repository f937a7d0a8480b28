// Coded queries: what prepare writes and scan reads.
#pragma once

#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

// Per (item of the slice, head): 128 coded rows; 128 limits, then INT8's scale of the two halves.
constexpr int64_t limits_per_item = tile_rows + 4;

struct QueryPlace {
  uint8_t* codes;
  float* limits;
};
__device__ __forceinline__ QueryPlace query_place(const SelectCall& c, int64_t item, int32_t head) {
  const int64_t at = item * c.common.q_heads + head;
  return {c.q_codes + at * tile_rows * c.estimator.width, c.row_limits + at * limits_per_item};
}

// A given reference of a row that exists.
__device__ __forceinline__ float given_reference(const SelectCall& c, const Sequence& s, int32_t head, int64_t row) {
  return c.reference[(int64_t{s.batch} * c.common.q_heads + head) * c.reference_rows + row];
}

// FP8's scale of a query row: `top`, the code of its largest coordinate, keeps sums of coded products within the range
// that three e4m3 pieces of a threshold cover; and where sums in f16 take two products (32 coordinates each), the first
// one's within f16.
constexpr float code_top = 32.0f, code_top_of_two = 4.0f;
struct RowCode {
  float scale, factor;
};
__device__ __forceinline__ RowCode row_code(float largest, float top) {
  if (!(largest >= 0x1p-100f)) return {0.0f, 0.0f};
  return {largest / top, top / largest};
}
// T over what one step of a coded sum is worth; where that is nothing, far on the side that decides the same.
__device__ __forceinline__ float limit_in_code_units(float threshold, float row_scale, float key_scale, float scale) {
  const float step = row_scale * key_scale * scale;
  if (step == 0) return threshold > 0 ? 1e30f : -1e30f;
  return fminf(fmaxf(threshold / step, -1e30f), 1e30f);
}

}  // namespace sale::sm90
