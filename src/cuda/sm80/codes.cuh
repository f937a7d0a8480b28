// Codes of rows: docs/numerics.md, sections 1 and 2, to the bit. A warp works on rows together, each lane on the same
// few neighbouring coordinates of all of them.
#pragma once

#include "cuda/common/element.cuh"
#include "cuda/common/fixed.cuh"
#include "cuda/sm80/kernels.hpp"

namespace sale::sm80 {

using cuda::not_a_number;
using cuda::smallest;

// D / 32 coordinates of a row in 16 bits.
template <int D>
__device__ __forceinline__ void load_part(const uint16_t* row, int lane, bool bf16, float (&x)[D / 32]) {
  if constexpr (D == 128) {
    const uint2 v = *reinterpret_cast<const uint2*>(row + 4 * lane);
    x[0] = cuda::low_element(v.x, bf16), x[1] = cuda::high_element(v.x, bf16);
    x[2] = cuda::low_element(v.y, bf16), x[3] = cuda::high_element(v.y, bf16);
  } else {
    const uint32_t v = *reinterpret_cast<const uint32_t*>(row + 2 * lane);
    x[0] = cuda::low_element(v, bf16), x[1] = cuda::high_element(v, bf16);
  }
}

// y of R rows, W coordinates, those beyond `rank` 0. Projected by m [D, rank], every product and sum rounded,
// ascending. stage: the warp's own shared memory.
template <int D, int W, int R, bool projected>
__device__ __forceinline__ void coordinates(const float (&x)[R][D / 32], float (*stage)[D], const float* m, int rank,
                                            float (&y)[R][W / 32]) {
  const int lane = threadIdx.x % 32;
  if constexpr (!projected) {
    static_assert(W == D);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < W / 32; ++e) y[r][e] = x[r][e];
  } else {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < D / 32; ++e) stage[r][lane * (D / 32) + e] = x[r][e];
    __syncwarp();
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int e = 0; e < W / 32; ++e) y[r][e] = 0;
    const int first = lane * (W / 32);
    if (first >= rank) return;  // rank is a multiple of 16: a lane has all of its coordinates or none
#pragma unroll 4
    for (int a = 0; a < D; ++a)
#pragma unroll
      for (int e = 0; e < W / 32; ++e) {
        const float by = m[a * rank + first + e];
#pragma unroll
        for (int r = 0; r < R; ++r) y[r][e] = __fadd_rn(y[r][e], __fmul_rn(stage[r][a], by));
      }
  }
}

// max |y| of a group, infinity where something is not finite.
template <int R, int N>
__device__ __forceinline__ float range_of(const float (&y)[R][N]) {
  float most = 0;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int e = 0; e < N; ++e) most = isfinite(y[r][e]) ? fmaxf(most, fabsf(y[r][e])) : INFINITY;
  return most;
}
__device__ __forceinline__ float over_warp(float most) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, o));
  return most;
}

struct Quantizer {
  float scale, factor;  // factor 0: codes are 0
  __device__ Quantizer(float range, float levels) : scale(0), factor(0) {
    if (isinf(range)) {
      scale = not_a_number();
    } else if (range >= smallest) {
      scale = __fdiv_rn(range, levels);
      factor = __fdiv_rn(levels, range);
    }
  }
  __device__ uint32_t code(float x) const {
    return factor == 0 ? 0u : static_cast<uint32_t>(__float2int_rn(__fmul_rn(x, factor)));
  }
};

// Writes the lane's N codes of a coded row to row + their place; place(byte) permutes 16-byte pieces.
template <bool int4, int N, class Place>
__device__ __forceinline__ void write_codes(const Quantizer& z, const float (&y)[N], Place&& place) {
  const int lane = threadIdx.x % 32;
  constexpr int bits = int4 ? 4 : 8;
  uint32_t packed = 0;
#pragma unroll
  for (int e = 0; e < N; ++e) packed |= (z.code(y[e]) & ((1u << bits) - 1)) << bits * e;
  uint8_t* to = place(lane * N * bits / 8);
  if constexpr (N * bits == 8)
    *to = static_cast<uint8_t>(packed);
  else if constexpr (N * bits == 16)
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(packed);
  else
    *reinterpret_cast<uint32_t*>(to) = packed;
}

// f(D, W, int4, projected) as compile-time numbers, for an estimator and a head dimension.
template <int N>
struct Number {
  static constexpr int value = N;
};
template <class F>
cudaError_t with_shape(const Estimator& e, int32_t head_dim, bool projected, F&& f) {
  const int coordinates = e.format == SALE_INT4 ? 2 * e.width : e.width;
  const auto typed = [&](auto d, auto w, auto p) {
    return e.format == SALE_INT4 ? f(d, w, Number<1>{}, p) : f(d, w, Number<0>{}, p);
  };
  if (head_dim == 64)
    return projected ? typed(Number<64>{}, Number<64>{}, Number<1>{}) : typed(Number<64>{}, Number<64>{}, Number<0>{});
  if (!projected) return typed(Number<128>{}, Number<128>{}, Number<0>{});
  return coordinates == 64 ? typed(Number<128>{}, Number<64>{}, Number<1>{})
                           : typed(Number<128>{}, Number<128>{}, Number<1>{});
}

}  // namespace sale::sm80
