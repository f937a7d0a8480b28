// The key index: smoothing vector, FP8's scale, codes. docs/numerics.md, section 1, to the bit.
//
//   mean    smoothing vector                                   reads K                              common/mean.cu
//   range   FP8: the largest coordinate of the first keys      reads a little of K
//   code    smoothed, projected, coded                         reads K, writes `width` bytes a key
//
// Without projection everything is here; projected coordinates: index_projected.cu.
//
// Floor: K twice over memory bandwidth (8 heads of 128 K keys, d 128: 0.54 GB, 0.16 ms at 3.35 TB/s).
#include "cuda/ptx/async.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/index.cuh"

namespace sale::sm90 {
namespace {

constexpr int code_threads = 128, warp_keys = 8, max_dim = 128;
constexpr float smallest = 0x1p-100f;

// What a block of threads works on: 32 keys, smoothed. Each thread copies and converts the same 16-byte pieces, so that
// the next keys can be on their way while these are worked on.
template <int D>
struct Keys {
  static constexpr int pieces = D / 8;
  alignas(16) float x[32][D + 4];
  alignas(16) float mean[D];
  alignas(16) uint16_t next[32][D];

  __device__ void start(const IndexCall& c, int32_t head) {
    if (threadIdx.x < D) mean[threadIdx.x] = c.smoothing[head * D + threadIdx.x];
    __syncthreads();
  }
  __device__ void fetch(const IndexCall& c, int32_t head, int64_t first) {
    for (int i = threadIdx.x; i < 32 * pieces; i += code_threads) {
      const int64_t key = first + i / pieces;
      const bool present = key < c.k_len;
      ptx::copy_16(&next[i / pieces][i % pieces * 8],
                   token_row(c.k, head, present ? key : c.k_len - 1) + i % pieces * 8, present);
    }
  }
  // The keys fetched, from `first` on, to x.
  __device__ void take(const IndexCall& c, int64_t first) {
    const bool bf16 = c.dtype == SALE_BF16;
    ptx::copies_wait();
    for (int i = threadIdx.x; i < 32 * pieces; i += code_threads) {
      const int row = i / pieces, at = i % pieces * 8;
      const uint4 v = *reinterpret_cast<const uint4*>(&next[row][at]);
      const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
      const bool present = first + row < c.k_len;
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float2 m = *reinterpret_cast<const float2*>(&mean[at + 2 * p]);
        *reinterpret_cast<float2*>(&x[row][at + 2 * p]) =
            present ? float2{low_element(pair[p], bf16) - m.x, high_element(pair[p], bf16) - m.y} : float2{0, 0};
      }
    }
  }
};

__device__ float block_largest(float x, bool& finite) {  // over the block's threads
  __shared__ float part[code_threads / 32];
  __shared__ int all;
  if (threadIdx.x == 0) all = 1;
  for (int o = 16; o > 0; o /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, o));
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  if (!finite) all = 0;
  __syncthreads();
  for (int w = 0; w < code_threads / 32; ++w) x = fmaxf(x, part[w]);
  finite = all != 0;
  __syncthreads();
  return x;
}

// Each coordinate of the 32 keys once: f(row, coordinate, y).
template <int D, class F>
__device__ __forceinline__ void each_coordinate(const Keys<D>& keys, F&& f) {
  const int row = threadIdx.x / 32 * warp_keys, lane = threadIdx.x % 32;
  for (int at = lane; at < D; at += 32)
    for (int r = 0; r < warp_keys; ++r) f(row + r, at, keys.x[row + r][at]);
}

template <int D>
__global__ void __launch_bounds__(code_threads) range_kernel(const __grid_constant__ IndexCall c) {
  __shared__ Keys<D> keys;
  const int32_t head = blockIdx.y;
  float largest = 0;
  const int64_t end = c.k_len < range_keys ? c.k_len : range_keys, stride = gridDim.x * int64_t{32};
  keys.start(c, head);
  keys.fetch(c, head, blockIdx.x * int64_t{32});
  for (int64_t first = blockIdx.x * int64_t{32}; first < end; first += stride) {
    __syncthreads();
    keys.take(c, first);
    if (first + stride < end) keys.fetch(c, head, first + stride);
    __syncthreads();
    each_coordinate(keys, [&](int, int, float y) {
      if (isfinite(y)) largest = fmaxf(largest, fabsf(y));
    });
  }
  bool finite = true;
  largest = block_largest(largest, finite);
  if (threadIdx.x == 0) atomicMax(&largest_of(c)[head], __float_as_uint(largest));
}

__global__ void scale_kernel(const __grid_constant__ IndexCall c) {
  const float largest = __uint_as_float(largest_of(c)[blockIdx.x]);
  c.scales[blockIdx.x * c.scales_head] = largest < smallest ? 0.0f : __fdiv_rn(largest, 112.0f);
}

template <int D>
__global__ void __launch_bounds__(code_threads) code_kernel(const __grid_constant__ IndexCall c) {
  __shared__ Keys<D> keys;
  __shared__ alignas(16) uint8_t codes[32][max_dim];
  __shared__ int bad[32];
  const int32_t head = blockIdx.y;
  const int width = c.estimator.width;
  uint8_t* out = c.codes + head * c.codes_head;
  const bool fp8 = c.estimator.format == SALE_FP8;
  const float scale = fp8 ? c.scales[head * c.scales_head] : 0;
  const float factor = scale == 0 ? 0.0f : __fdiv_rn(1.0f, scale);
  const cuda::BlocksToCode blocks = cuda::blocks_of(c);
  const int64_t n = blocks.count();
  keys.start(c, head);
  if (blockIdx.x < n) keys.fetch(c, head, blocks[blockIdx.x] * 32);
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    const int64_t first = blocks[i] * 32;
    __syncthreads();
    keys.take(c, first);
    if (i + gridDim.x < n) keys.fetch(c, head, blocks[i + gridDim.x] * 32);
    if (threadIdx.x < 32) bad[threadIdx.x] = 0;
    __syncthreads();
    if (fp8) {
      each_coordinate(keys, [&](int row, int at, float y) {
        const float x = __fmul_rn(y, factor);
        if (!(fabsf(x) <= e4m3_most)) bad[row] = 1;
        codes[row][at] = to_e4m3(x);
      });
    } else {
      float largest = 0;
      bool finite = true;
      each_coordinate(keys, [&](int, int, float y) {
        finite = finite && isfinite(y);
        largest = fmaxf(largest, fabsf(y));
      });
      largest = block_largest(largest, finite);
      const bool zero = !finite || largest < smallest;
      const float by = zero ? 0.0f : __fdiv_rn(127.0f, largest);
      each_coordinate(keys, [&](int row, int at, float y) {
        codes[row][at] = zero ? 0 : static_cast<uint8_t>(static_cast<int8_t>(__float2int_rn(__fmul_rn(y, by))));
      });
      if (threadIdx.x == 0)
        c.scales[head * c.scales_head + first / 32] = !finite ? __uint_as_float(0x7fc00000u)
                                                      : zero  ? 0.0f
                                                              : __fdiv_rn(largest, 127.0f);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * width / 16; i += code_threads) {
      const int row = i / (width / 16), at = i % (width / 16) * 16;
      uint4 v = *reinterpret_cast<const uint4*>(&codes[row][at]);
      constexpr uint32_t nan = e4m3_nan * 0x01010101u;
      if (fp8 && bad[row]) v = {nan, nan, nan, nan};
      *reinterpret_cast<uint4*>(out + code_offset(first + row, at, width)) = v;
    }
  }
}

}  // namespace

size_t index_scratch_bytes(int32_t kv_heads, int32_t head_dim) {
  return cuda::mean_scratch_bytes(kv_heads, head_dim) + static_cast<size_t>(kv_heads) * sizeof(uint32_t);
}

template <int D>
void launch_plain(const IndexCall& c, bool range, cudaStream_t stream) {
  const int64_t all = (c.k_len < range_keys || !range ? c.k_len - (range ? 0 : c.first_key) : range_keys),
                blocks = (all + 31) / 32;
  const int64_t enough = 132 * 8 / c.kv_heads + 1;
  const dim3 grid(static_cast<unsigned>(blocks < enough ? blocks : enough), static_cast<unsigned>(c.kv_heads));
  if (range)
    range_kernel<D><<<grid, code_threads, 0, stream>>>(c);
  else
    code_kernel<D><<<grid, code_threads, 0, stream>>>(c);
}

cudaError_t launch_index(const IndexCall& c, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(c.kv_heads);
  const auto pass = [&](bool range) {  // over the keys' coordinates
    if (c.estimator.k_projection != nullptr) return launch_projected(c, range, stream);
    c.head_dim == 128 ? launch_plain<128>(c, range, stream) : launch_plain<64>(c, range, stream);
    return cudaGetLastError();
  };
  if (c.fix && !c.smoothing_given) {
    const cudaError_t e =
        cuda::launch_mean({c.k, c.dtype, c.head_dim, c.kv_heads, c.k_len, c.smoothing, c.scratch}, stream);
    if (e != cudaSuccess) return e;
  }
  if (c.fix && c.estimator.format == SALE_FP8) {
    cudaError_t e = cudaMemsetAsync(largest_of(c), 0, heads * sizeof(uint32_t), stream);
    if (e == cudaSuccess) e = pass(true);
    if (e != cudaSuccess) return e;
    scale_kernel<<<heads, 1, 0, stream>>>(c);
  }
  return c.first_key < c.k_len ? pass(false) : cudaSuccess;
}

}  // namespace sale::sm90
