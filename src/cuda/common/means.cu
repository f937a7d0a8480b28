// Compensation's pseudo-keys: the mean key and the mean value of every mean_keys keys.
//
// A warp takes those of one: d / 8 lanes a row, 16 bytes each, 16 rows of a lane on their way at once; f32 sums in a
// fixed order. Floor: K and V once over memory bandwidth (8 heads of 128 K keys, d 128: 0.54 GB, 0.16 ms at 3.35 TB/s).
#include "cuda/common/element.cuh"
#include "cuda/common/tokens.cuh"

namespace sale::cuda {
namespace {

constexpr int warps = 8;

template <int D>
__global__ void __launch_bounds__(32 * warps) means_kernel(const __grid_constant__ MeansCall c) {
  constexpr int lanes = D / 8, rows = 32 / lanes, each = 16;
  const int64_t mean = blockIdx.x * int64_t{warps} + threadIdx.x / 32, first = mean * mean_keys;
  const int32_t head = blockIdx.y;
  if (first >= c.k_len) return;
  const bool values = blockIdx.z != 0, bf16 = c.dtype == SALE_BF16;
  const Tokens& from = values ? c.v : c.k;
  const int lane = threadIdx.x % 32, at = lane % lanes * 8, row = lane / lanes;
  const auto present = static_cast<int>(c.k_len - first < mean_keys ? c.k_len - first : mean_keys);
  float sum[8] = {};
#pragma unroll 1
  for (int begin = row; begin < present; begin += each * rows) {
    uint4 x[each];
#pragma unroll
    for (int i = 0; i < each; ++i) {
      x[i] = uint4{};
      if (begin + i * rows < present)
        x[i] = *reinterpret_cast<const uint4*>(token_row(from, head, first + begin + i * rows) + at);
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const uint32_t pair[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        sum[2 * p] += low_element(pair[p], bf16);
        sum[2 * p + 1] += high_element(pair[p], bf16);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int o = lanes; o < 32; o *= 2) sum[i] += __shfl_xor_sync(0xffffffff, sum[i], o);
    sum[i] /= static_cast<float>(present);
    if (!isfinite(sum[i])) sum[i] = 0;
  }
  if (row != 0) return;
  uint16_t* to = (values ? c.v_means : c.k_means) + head * c.means_head + mean * D + at;
  *reinterpret_cast<uint4*>(to) = uint4{to_pair(sum[0], sum[1], bf16), to_pair(sum[2], sum[3], bf16),
                                        to_pair(sum[4], sum[5], bf16), to_pair(sum[6], sum[7], bf16)};
}

}  // namespace

cudaError_t launch_means(const MeansCall& c, cudaStream_t stream) {
  const int64_t means = (c.k_len + mean_keys - 1) / mean_keys;
  const dim3 grid(static_cast<unsigned>((means + warps - 1) / warps), static_cast<unsigned>(c.kv_heads), 2);
  const auto kernel = c.head_dim == 128 ? means_kernel<128> : means_kernel<64>;
  kernel<<<grid, 32 * warps, 0, stream>>>(c);
  return cudaGetLastError();
}

}  // namespace sale::cuda
