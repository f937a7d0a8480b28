// The online softmax of attention, in registers: scores to probabilities, masks, a row's maximum and sum.
//
// Scores stand as the tensor cores put them out. Lane t of a warp holds rows r = t / 4 and r + 8 of the warp's 16,
// columns 8 i + 2 (t % 4) + {0, 1}: s[4 i + 0, 1] of row r, s[4 i + 2, 3] of row r + 8. N scores a lane: N / 16 blocks
// of 32 keys.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/elements.cuh"

namespace sale::cuda {

constexpr float log2e = 1.4426950408889634f;

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<ptx::Bf16>(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
__device__ __forceinline__ uint32_t pack<ptx::F16>(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Of the softmax's probabilities where they become T; see Softmax.
template <class T>
constexpr int shift_of = 0;
template <>
inline constexpr int shift_of<ptx::F16> = 15;

// shift: probabilities are 2^shift times larger than usual, to suit their number format: f16 reaches from 2^15 down to
// 2^-24, and what a row puts out may be made of probabilities far below 1 where the values of its sinks are near 0.
template <int shift>
struct Softmax {
  float most[2], sum[2];
  float scale;  // of scores, in base 2

  __device__ void start() {
    most[0] = most[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
  // S becomes P (f32); shrink: by how much what was summed so far must shrink. bonus: what every score is short of; it
  // is taken off the maximum instead. Two maxima and two sums a row: a warp has few others to hide their latency.
  template <int N>
  __device__ __forceinline__ void step(float (&s)[N], float (&shrink)[2], float bonus = 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = most[r] - bonus;
      float m[2] = {before, -INFINITY};
#pragma unroll
      for (int i = 0; i < N / 2; ++i) m[i % 2] = fmaxf(m[i % 2], s[i / 2 * 4 + 2 * r + i % 2]);
      float base = raise(r, before, fmaxf(m[0], m[1]), bonus, shrink[r]);
      if (!(fabsf(base) < huge)) {
        const float top = most[r] - bonus;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) s[i / 2 * 4 + 2 * r + i % 2] -= top;
        base = -shift;
      }
      float total[2] = {sum[r] * shrink[r], 0};
#pragma unroll
      for (int i = 0; i < N / 2; ++i) {
        float& x = s[i / 2 * 4 + 2 * r + i % 2];
        x = ptx::exp2_approximate(fmaf(x, scale, -base));
        total[i % 2] += x;
      }
      sum[r] = total[0] + total[1];
    }
  }
  // The row's maximum becomes m (over its four threads); returns what scores are lowered by.
  __device__ __forceinline__ float raise(int r, float before, float m, float bonus, float& shrink) {
    m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
    const float top = m == -INFINITY ? 0.0f : m;
    shrink = ptx::exp2_approximate((before - top) * scale);
    most[r] = m + bonus;
    return top * scale - shift;
  }
  // What row r's sums are divided by, and its log-sum-exp less `add`.
  __device__ __forceinline__ void finish(int r, float add, float& inverse, float& lse) const {
    float all = sum[r];
    all += __shfl_xor_sync(0xffffffff, all, 1);
    all += __shfl_xor_sync(0xffffffff, all, 2);
    inverse = all == 0 ? 0.0f : 1.0f / all;
    lse = all == 0 ? -INFINITY : most[r] * (scale / log2e) + (logf(all) - shift / log2e) + add;
  }
  // Scores beyond it: fmaf(s, scale, -base) would add what rounding took off base, which an exponential shows.
  static constexpr float huge = 0x1p12f;
};

// Scores of keys that a row does not see become -inf. id: the blocks, -1 for none; limit: keys seen by rows r and r
// + 8.
template <int blocks>
__device__ __forceinline__ void mask(float (&s)[16 * blocks], const int32_t (&id)[blocks], int32_t limit0,
                                     int32_t limit1) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int b = 0; b < blocks; ++b) {
    const int32_t first = id[b] * 32 + column;
    const int32_t left0 = id[b] < 0 ? 0 : limit0 - first, left1 = id[b] < 0 ? 0 : limit1 - first;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * i + e >= left0) s[4 * (4 * b + i) + e] = -INFINITY;
        if (8 * i + e >= left1) s[4 * (4 * b + i) + 2 + e] = -INFINITY;
      }
    }
  }
}

// Nor do keys count that a row's window has left behind, before the `first` that it sees; those of blocks below `sink`
// do.
template <int blocks>
__device__ __forceinline__ void mask_behind(float (&s)[16 * blocks], const int32_t (&id)[blocks], int32_t first0,
                                            int32_t first1, int32_t sink) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int b = 0; b < blocks; ++b) {
    const int32_t key = id[b] * 32 + column;
    const int32_t behind0 = id[b] < sink ? 0 : first0 - key, behind1 = id[b] < sink ? 0 : first1 - key;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * i + e < behind0) s[4 * (4 * b + i) + e] = -INFINITY;
        if (8 * i + e < behind1) s[4 * (4 * b + i) + 2 + e] = -INFINITY;
      }
    }
  }
}

// Scores of pseudo-keys grow by the binary logarithm of how many of their blocks were dropped, and become -inf where
// none was. counts: of lane l, those of pseudo-keys 4 l .. 4 l + 3, a byte each. scale: of scores, in base 2. What one
// block weighs is step()'s bonus, mean_bonus.
constexpr float mean_bonus = 5.5f;
template <int N>
__device__ __forceinline__ void weigh_means(float (&s)[N], uint32_t counts, float scale) {
  const int lane = threadIdx.x % 32;
  const float more_of = log2f(static_cast<float>(lane)) / scale;  // a table of what lane blocks add
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    const uint32_t two = __shfl_sync(0xffffffff, counts, 2 * i + lane % 4 / 2) >> lane % 2 * 16;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float more = __shfl_sync(0xffffffff, more_of, static_cast<int>(two >> 8 * e & 255));
      const bool none = more == -INFINITY;
      s[4 * i + e] = none ? more : s[4 * i + e] + more;
      s[4 * i + 2 + e] = none ? more : s[4 * i + 2 + e] + more;
    }
  }
}

}  // namespace sale::cuda
