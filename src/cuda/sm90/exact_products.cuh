// Products of 16-bit tensors over steps of 128 keys, by one warpgroup: what exact attention and audits share.
#pragma once

#include "cuda/sm90/attend.cuh"

namespace sale::sm90 {

using cuda::shift_of;

// 128 rows of K or V: columns in pieces of 64, 128 bytes a row, their 16-byte parts swizzled.
template <int D>
using Tile = uint16_t[D / 64][step_keys * 64];

// S of 64 rows, the group-th of the tile q.
template <int D, class T, int elements>
__device__ __forceinline__ void multiply_qk(float (&s)[64], const uint16_t (&q)[D / 64][elements], int group,
                                            const Tile<D>& k) {
#pragma unroll
  for (int piece = 0; piece < D / 64; ++piece) {
    const uint64_t a = row_descriptor(shared_address(&q[piece][group * 64 * 64]), 128);
    const uint64_t b = row_descriptor(shared_address(&k[piece][0]), 128);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma_n128(s, advance(a, 32 * i), advance(b, 32 * i), piece + i > 0, T{});
  }
}

template <int D, class T>
__device__ __forceinline__ void multiply_pv(float (&o)[D / 2], const uint32_t (&p)[8][4], const Tile<D>& v) {
  // Rows are keys, 64 values of 128 bytes; the next 64 values stand a piece further, the next 8 keys 1024 bytes.
  const uint64_t b = descriptor(shared_address(&v[0][0]), 128, sizeof(v[0]), 1024);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (D == 128)
      wgmma_n128_transposed(o, p[i], advance(b, 16 * 128 * i), true, T{});
    else
      wgmma_n64_transposed(o, p[i], advance(b, 16 * 128 * i), true, T{});
  }
}

template <class T>
__device__ __forceinline__ void round_p(const float (&s)[64], uint32_t (&p)[8][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) p[i][e] = pack<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
}

}  // namespace sale::sm90
