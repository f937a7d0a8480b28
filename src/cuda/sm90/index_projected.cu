// Projected coordinates of keys, and their FP8 codes. docs/numerics.md, section 1, to the bit: y is a chain of fused
// multiply-adds, ascending.
//
// A warp takes 32 keys at a time and 32 coordinates: a lane 8 keys x 4 coordinates, so that 12 loads of 16 bytes from
// shared memory feed 128 multiply-adds. Smoothed keys (f32) lie in the warp's own part of shared memory, the projection
// in everyone's.
//
// Floor, 8 heads of 128 K keys, d 128, rank up to 32: 4.3 G multiply-adds, 0.15 ms on 132 x 128 lanes; the loads from
// shared memory, 1.5 times that, are what binds.
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/index.cuh"

namespace sale::sm90 {
namespace {

constexpr int warps = 8, threads = 32 * warps;

template <int D, int parts>
struct Shared {
  alignas(16) float b[D][32 * parts];  // columns from the rank on are 0
  alignas(16) float mean[D];
  struct Warp {
    alignas(16) float x[32][D + 4];
    alignas(16) uint8_t codes[32][32 * parts];
    uint32_t bad;  // keys with a coordinate that no code can hold, a bit each
  } warp[warps];
};

template <int D, int parts>
__device__ void start(const IndexCall& c, int32_t head, Shared<D, parts>& sh) {
  const int rank = c.estimator.rank;
  const float* projection = c.estimator.k_projection + int64_t{head} * D * rank;
  for (int i = threadIdx.x; i < D * 32 * parts; i += threads) {
    const int at = i % (32 * parts);
    sh.b[i / (32 * parts)][at] = at < rank ? projection[i / (32 * parts) * rank + at] : 0.0f;
  }
  if (threadIdx.x < D) sh.mean[threadIdx.x] = c.smoothing[head * D + threadIdx.x];
  __syncthreads();
}

// 32 keys from `first` on, smoothed, to the warp's x; absent ones are 0.
template <int D, int parts>
__device__ void load_keys(const IndexCall& c, int32_t head, int64_t first, const float (&mean)[D],
                          typename Shared<D, parts>::Warp& w) {
  constexpr int lanes = D / 8, rows = 32 / lanes, half = 16 / rows;
  const int lane = threadIdx.x % 32, at = lane % lanes * 8;
  const bool bf16 = c.dtype == SALE_BF16;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint4 v[half];
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const int64_t key = first + 16 * h + i * rows + lane / lanes;
      v[i] = uint4{};
      if (key < c.k_len) v[i] = *reinterpret_cast<const uint4*>(token_row(c.k, head, key) + at);
    }
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const int row = 16 * h + i * rows + lane / lanes;
      const bool present = first + row < c.k_len;
      const uint32_t pair[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float2 m = *reinterpret_cast<const float2*>(&mean[at + 2 * p]);
        *reinterpret_cast<float2*>(&w.x[row][at + 2 * p]) =
            present ? float2{low_element(pair[p], bf16) - m.x, high_element(pair[p], bf16) - m.y} : float2{0, 0};
      }
    }
  }
  __syncwarp();
}

// f(row, coordinate, y of that and the next three) for what this lane has of the warp's 32 keys.
template <int D, int parts, class F>
__device__ __forceinline__ void project(const Shared<D, parts>& sh, const typename Shared<D, parts>::Warp& w, F&& f) {
  const int lane = threadIdx.x % 32, row = lane / 8, column = lane % 8 * 4;  // rows row + 4 i
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    float y[8][4] = {};
#pragma unroll 2
    for (int a = 0; a < D; a += 4) {
      float4 b[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = *reinterpret_cast<const float4*>(&sh.b[a + j][32 * part + column]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4 v = *reinterpret_cast<const float4*>(&w.x[row + 4 * i][a]);
        const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          y[i][0] = fmaf(x[j], b[j].x, y[i][0]);
          y[i][1] = fmaf(x[j], b[j].y, y[i][1]);
          y[i][2] = fmaf(x[j], b[j].z, y[i][2]);
          y[i][3] = fmaf(x[j], b[j].w, y[i][3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) f(row + 4 * i, 32 * part + column, y[i]);
  }
}

template <int D, int parts>
__global__ void __launch_bounds__(threads) range_kernel(const __grid_constant__ IndexCall c) {
  extern __shared__ __align__(16) char raw[];
  auto& sh = *reinterpret_cast<Shared<D, parts>*>(raw);
  const int32_t head = blockIdx.y;
  start(c, head, sh);
  auto& w = sh.warp[threadIdx.x / 32];
  const int64_t end = c.k_len < range_keys ? c.k_len : range_keys;
  float largest = 0;
  for (int64_t first = (blockIdx.x * warps + threadIdx.x / 32) * int64_t{32}; first < end;
       first += gridDim.x * warps * int64_t{32}) {
    load_keys<D, parts>(c, head, first, sh.mean, w);
    project(sh, w, [&](int row, int, const float(&y)[4]) {
      for (const float v : y)
        if (first + row < end && isfinite(v)) largest = fmaxf(largest, fabsf(v));
    });
    __syncwarp();
  }
#pragma unroll
  for (int o = 16; o > 0; o /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, o));
  if (threadIdx.x % 32 == 0) atomicMax(&largest_of(c)[head], __float_as_uint(largest));
}

template <int D, int parts>
__global__ void __launch_bounds__(threads) code_kernel(const __grid_constant__ IndexCall c) {
  extern __shared__ __align__(16) char raw[];
  auto& sh = *reinterpret_cast<Shared<D, parts>*>(raw);
  constexpr int width = 32 * parts;
  const int32_t head = blockIdx.y;
  const int lane = threadIdx.x % 32;
  start(c, head, sh);
  auto& w = sh.warp[threadIdx.x / 32];
  const float scale = c.scales[head * c.scales_head], factor = scale == 0 ? 0.0f : __fdiv_rn(1.0f, scale);
  uint8_t* out = c.codes + head * c.codes_head;
  const cuda::BlocksToCode blocks = cuda::blocks_of(c);
  const int64_t n = blocks.count();
  for (int64_t i = blockIdx.x * int64_t{warps} + threadIdx.x / 32; i < n; i += gridDim.x * int64_t{warps}) {
    const int64_t first = blocks[i] * 32;
    if (lane == 0) w.bad = 0;
    load_keys<D, parts>(c, head, first, sh.mean, w);
    project(sh, w, [&](int row, int at, const float(&y)[4]) {
      uint32_t word = 0;
      bool bad = false;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = __fmul_rn(y[e], factor);
        bad = bad || !(fabsf(x) <= e4m3_most);
        word |= static_cast<uint32_t>(to_e4m3(x)) << 8 * e;
      }
      if (bad) atomicOr(&w.bad, 1u << row);
      if (at == width - 4) word = to_e4m3(e4m3_most) * 0x010101u;  // what the threshold is multiplied with
      *reinterpret_cast<uint32_t*>(&w.codes[row][at]) = word;
    });
    __syncwarp();
    for (int i = lane; i < 32 * width / 16; i += 32) {
      const int row = i / (width / 16), at = i % (width / 16) * 16;
      constexpr uint32_t nan = e4m3_nan * 0x01010101u;
      const uint4 v =
          (w.bad >> row & 1) != 0 ? uint4{nan, nan, nan, nan} : *reinterpret_cast<const uint4*>(&w.codes[row][at]);
      *reinterpret_cast<uint4*>(out + code_offset(first + row, at, width)) = v;
    }
    __syncwarp();
  }
}

// f(D, parts) as types for such a call.
template <int n>
struct Number {
  static constexpr int value = n;
};
template <class F>
cudaError_t with_shape(int32_t dim, int32_t width, F&& f) {
  if (dim == 128) return width == 32 ? f(Number<128>{}, Number<1>{}) : f(Number<128>{}, Number<2>{});
  return width == 32 ? f(Number<64>{}, Number<1>{}) : f(Number<64>{}, Number<2>{});
}

}  // namespace

cudaError_t launch_projected(const IndexCall& c, bool range, cudaStream_t stream) {
  const int64_t keys = !range ? c.k_len - c.first_key : c.k_len < range_keys ? c.k_len : range_keys;
  const int64_t all = (keys + 32 * warps - 1) / (32 * warps),
                enough = c.kv_heads < 132 ? 132 / c.kv_heads : 1;  // of an H100's multiprocessors
  const dim3 grid(static_cast<unsigned>(all < enough ? all : enough), static_cast<unsigned>(c.kv_heads));
  return with_shape(c.head_dim, c.estimator.width, [&](auto d, auto parts) {
    constexpr size_t bytes = sizeof(Shared<d.value, parts.value>);
    if (range)
      range_kernel<d.value, parts.value><<<grid, threads, bytes, stream>>>(c);
    else
      code_kernel<d.value, parts.value><<<grid, threads, bytes, stream>>>(c);
    return cudaGetLastError();
  });
}

cudaError_t allow_projected() {
  for (const int32_t dim : {64, 128})
    for (const int32_t width : {32, 64})
      if (const cudaError_t e = with_shape(
              dim, width,
              [](auto d, auto parts) {
                constexpr int bytes = sizeof(Shared<d.value, parts.value>);
                for (const auto kernel : {range_kernel<d.value, parts.value>, code_kernel<d.value, parts.value>})
                  if (const cudaError_t failed =
                          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
                      failed != cudaSuccess)
                    return failed;
                return cudaSuccess;
              });
          e != cudaSuccess)
        return e;
  return cudaSuccess;
}

}  // namespace sale::sm90
