// Means over tokens: smoothing vectors of keys and queries. docs/numerics.md, sections 1 and 2.
//
//   sum     partial sums in double, 256 ranges a head      reads the tensor
//   mean    their sum, divided                              tiny
//
// Sums in double are taken range by range instead of token by token. 16-bit numbers within 2^28 of each other add up
// exactly in any order, and what smaller ones could change lies 2^-29 below what rounding to f32 keeps.
//
// Floor: the tensor once over memory bandwidth (8 heads of 128 K keys, d 128: 0.27 GB, 0.08 ms at 3.35 TB/s, 0.27 ms at
// 1.0 TB/s).
#include "cuda/common/element.cuh"
#include "cuda/common/tokens.cuh"

namespace sale::cuda {
namespace {

constexpr int ranges = 256, threads = 256, max_dim = 128;  // ranges: partial sums a head

__global__ void __launch_bounds__(threads) sum_kernel(const __grid_constant__ MeanCall c) {
  const int32_t head = blockIdx.y, d = c.head_dim;
  const bool bf16 = c.dtype == SALE_BF16;
  const int64_t step = (c.n + ranges - 1) / ranges, begin = blockIdx.x * step;
  const int64_t end = begin + step < c.n ? begin + step : c.n;
  // d / 8 neighbouring threads take a token at a time, 8 coordinates each.
  __shared__ double part[threads / 8][max_dim];
  const int at = static_cast<int>(threadIdx.x) % (d / 8) * 8, row = threadIdx.x / (d / 8), rows = threads / (d / 8);
  double sum[8] = {};
#pragma unroll 4
  for (int64_t j = begin + row; j < end; j += rows) {
    const uint4 v = *reinterpret_cast<const uint4*>(token_row(c.tokens, head, j) + at);
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      sum[2 * p] += static_cast<double>(low_element(pair[p], bf16));
      sum[2 * p + 1] += static_cast<double>(high_element(pair[p], bf16));
    }
  }
  for (int i = 0; i < 8; ++i) part[row][at + i] = sum[i];
  __syncthreads();
  if (threadIdx.x >= d) return;
  double total = 0;
  for (int r = 0; r < rows; ++r) total += part[r][threadIdx.x];
  static_cast<double*>(c.scratch)[(int64_t{head} * ranges + blockIdx.x) * d + threadIdx.x] = total;
}

__global__ void mean_kernel(const __grid_constant__ MeanCall c) {
  const int32_t head = blockIdx.x, d = c.head_dim;
  const double* sums = static_cast<const double*>(c.scratch);
  double total = 0;
#pragma unroll 8
  for (int r = 0; r < ranges; ++r) total += sums[(int64_t{head} * ranges + r) * d + threadIdx.x];
  c.mean[head * d + threadIdx.x] = static_cast<float>(total / static_cast<double>(c.n));
}

}  // namespace

size_t mean_scratch_bytes(int32_t heads, int32_t head_dim) {
  return static_cast<size_t>(heads) * ranges * static_cast<size_t>(head_dim) * sizeof(double);
}

cudaError_t launch_mean(const MeanCall& c, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(c.heads);
  sum_kernel<<<dim3(ranges, heads), threads, 0, stream>>>(c);
  mean_kernel<<<heads, static_cast<unsigned>(c.head_dim), 0, stream>>>(c);
  return cudaGetLastError();
}

}  // namespace sale::cuda
