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

// FP8's scale of a query row: 32 steps to its largest coordinate, so that no sum of coded products leaves the range
// that three e4m3 pieces of a threshold cover.
struct RowCode {
  float scale, factor;
};
__device__ __forceinline__ RowCode row_code(float largest) {
  if (!(largest >= 0x1p-100f)) return {0.0f, 0.0f};
  return {largest / 32.0f, 32.0f / largest};
}
// T over what one step of a coded sum is worth; where that is nothing, far on the side that decides the same.
__device__ __forceinline__ float limit_in_code_units(float threshold, float row_scale, float key_scale, float scale) {
  const float step = row_scale * key_scale * scale;
  if (step == 0) return threshold > 0 ? 1e30f : -1e30f;
  return fminf(fmaxf(threshold / step, -1e30f), 1e30f);
}

}  // namespace sale::sm90
