// Codes of keys. docs/numerics.md, section 1, to the bit; the smoothing vector: common/mean.cu.
//
// One thread block takes a block of 32 keys, a warp the 8 keys {8 n + 2 g + e} of group g = warp: what one thread of a
// product's column group holds later shares INT4's scale. INT8 has one scale a block: the warps' ranges meet in shared
// memory.
//
// Floor: K once over memory bandwidth (8 heads of 128 K keys, d 128: 0.27 GB, 0.27 ms at 1.0 TB/s of an RTX 4090), a
// quarter or half of it written. Projected to 64 coordinates: 8.6 G products and as many sums, 0.4 ms on 128 x 128
// lanes at 2.5 GHz; each loaded element of the projection feeds 8 of them.
#include "cuda/common/blocks_of.cuh"
#include "cuda/common/tokens.cuh"
#include "cuda/sm80/codes.cuh"

namespace sale::sm80 {
namespace {

constexpr int threads = 128, rows = 8;

template <int D, int W, bool int4, bool projected>
__global__ void __launch_bounds__(threads) index_kernel(const __grid_constant__ IndexCall c) {
  __shared__ float stage[projected ? threads / 32 : 1][rows][D];
  __shared__ float ranges[threads / 32];
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
  const int32_t head = blockIdx.y;
  const cuda::BlocksToCode blocks = cuda::blocks_of(c);
  if (blockIdx.x >= blocks.count()) return;
  const int64_t block = blocks[blockIdx.x], first = block * block_keys;
  const bool bf16 = c.dtype == SALE_BF16;
  float x[rows][D / 32], y[rows][W / 32], mean[D / 32];
#pragma unroll
  for (int e = 0; e < D / 32; ++e) mean[e] = c.smoothing[head * D + lane * (D / 32) + e];
  const auto key_of = [&](int r) { return first + r / 2 * 8 + group * 2 + r % 2; };
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    const bool present = key_of(r) < c.k_len;
    load_part<D>(cuda::token_row(c.k, head, present ? key_of(r) : c.k_len - 1), lane, bf16, x[r]);
#pragma unroll
    for (int e = 0; e < D / 32; ++e) x[r][e] = present ? __fsub_rn(x[r][e], mean[e]) : 0.0f;
  }
  const float* projection = projected ? c.estimator.k_projection + int64_t{head} * D * c.estimator.rank : nullptr;
  coordinates<D, W, rows, projected>(x, stage[projected ? group : 0], projection, c.estimator.rank, y);
#pragma unroll
  for (int r = 0; r < rows; ++r)  // 0 times an infinity of the projection's sums: absent keys are 0
    if (key_of(r) >= c.k_len)
#pragma unroll
      for (int e = 0; e < W / 32; ++e) y[r][e] = 0;
  float range = over_warp(range_of(y));
  if constexpr (!int4) {
    if (lane == 0) ranges[group] = range;
    __syncthreads();
    range = fmaxf(fmaxf(ranges[0], ranges[1]), fmaxf(ranges[2], ranges[3]));
  }
  const Quantizer z(range, int4 ? 7.0f : 127.0f);
  constexpr int width = int4 ? W / 2 : W;
  uint8_t* codes = c.codes + head * c.codes_head;
#pragma unroll
  for (int r = 0; r < rows; ++r)
    write_codes<int4>(z, y[r], [&](int at) { return codes + code_offset(key_of(r), at, width); });
  float* scales = c.scales + head * c.scales_head;
  if (int4 && lane == 0) scales[block * 4 + group] = z.scale;
  if (!int4 && threadIdx.x == 0) scales[block] = z.scale;
}

}  // namespace

cudaError_t launch_index(const IndexCall& c, cudaStream_t stream) {
  if (c.fix && !c.smoothing_given) {
    const cudaError_t e =
        cuda::launch_mean({c.k, c.dtype, c.head_dim, c.kv_heads, c.k_len, c.smoothing, c.scratch}, stream);
    if (e != cudaSuccess) return e;
  }
  if (c.first_key >= c.k_len) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((c.k_len - c.first_key + block_keys - 1) / block_keys),
                  static_cast<unsigned>(c.kv_heads));
  return with_shape(c.estimator, c.head_dim, c.estimator.k_projection != nullptr,
                    [&](auto d, auto w, auto int4, auto p) {
                      index_kernel<d.value, w.value, int4.value != 0, p.value != 0><<<grid, threads, 0, stream>>>(c);
                      return cudaGetLastError();
                    });
}

}  // namespace sale::sm80
