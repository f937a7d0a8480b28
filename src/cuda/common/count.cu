// Kept blocks per query head, for statistics: a thread block a (sequence, head).
#include <cuda_runtime_api.h>

#include "cuda/common/kernels.hpp"

namespace sale::cuda {
namespace {

constexpr int threads = 256;

__global__ void count_kernel(const __grid_constant__ Common c, unsigned long long* kept) {
  const Sequence& s = c.sequences[blockIdx.y];
  const uint64_t* words = c.bits + s.bits_at + blockIdx.x * s.words;
  unsigned long long sum = 0;
  for (int64_t w = threadIdx.x; w < s.words; w += threads) sum += __popcll(words[w]);
  __shared__ unsigned long long total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, sum);
  __syncthreads();
  if (threadIdx.x == 0) kept[int64_t{s.batch} * c.q_heads + blockIdx.x] = total;
}

}  // namespace

cudaError_t launch_count(const Common& common, int64_t* kept, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(common.q_heads), static_cast<unsigned>(common.n_sequences));
  count_kernel<<<grid, threads, 0, stream>>>(common, reinterpret_cast<unsigned long long*>(kept));
  return cudaGetLastError();
}

}  // namespace sale::cuda
