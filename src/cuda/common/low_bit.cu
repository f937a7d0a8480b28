// K and V in few bits for low-bit attention: INT8 of smoothed keys with a scale a block; e4m3 or f16 of values with a
// scale a coordinate.
//
//   smoothing   mean key, as in the key index                                  reads K     mean.cu
//   most        FP8, F16: the largest value of every coordinate; a mean key's  reads V
//               coordinate that is not finite becomes 0
//   code        a thread block takes 32 keys: their codes, K by rows, V by     reads K, V; writes half as much
//               columns in the order of key_of_place(), F16 by rows            (F16: three quarters)
//
// The codes of means (compensation) are made by the same kernel from the means. Non-finite keys give their block the
// scale NaN; non-finite values the code NaN. The INT8 form codes keys only.
//
// Floor: K and V twice and half of them once (F16: three quarters) over memory bandwidth (8 heads of 128 K keys, d 128:
// 1.34 GB, 0.4 ms at 3.35 TB/s; F16: 1.48 GB).
#include "cuda/common/element.cuh"
#include "cuda/common/tokens.cuh"

namespace sale::cuda {
namespace {

constexpr int threads = 128;
constexpr float smallest = 0x1p-100f;

// Largest finite |v| of each coordinate: bits of floats >= 0 compare like the floats.
template <int D>
__global__ void __launch_bounds__(256) most_kernel(const __grid_constant__ LowBitCall c) {
  constexpr int lanes = D / 8, rows = 256 / lanes;
  __shared__ float part[rows][D];
  const int32_t head = blockIdx.y;
  const bool bf16 = c.dtype == SALE_BF16;
  const int at = static_cast<int>(threadIdx.x) % lanes * 8, row = threadIdx.x / lanes;
  float most[8] = {};
#pragma unroll 4
  for (int64_t j = blockIdx.x * int64_t{rows} + row; j < c.k_len; j += gridDim.x * int64_t{rows}) {
    const uint4 v = *reinterpret_cast<const uint4*>(token_row(c.v, head, j) + at);
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const float low = fabsf(low_element(pair[p], bf16)), high = fabsf(high_element(pair[p], bf16));
      if (isfinite(low)) most[2 * p] = fmaxf(most[2 * p], low);
      if (isfinite(high)) most[2 * p + 1] = fmaxf(most[2 * p + 1], high);
    }
  }
  for (int i = 0; i < 8; ++i) part[row][at + i] = most[i];
  __syncthreads();
  if (threadIdx.x >= D) return;
  if (blockIdx.x == 0) {  // one bad key must not spoil the codes of all
    float& mean = c.low.smoothing[(int64_t{c.batch} * c.kv_heads + head) * D + threadIdx.x];
    if (!isfinite(mean)) mean = 0;
  }
  float all = 0;
  for (int r = 0; r < rows; ++r) all = fmaxf(all, part[r][threadIdx.x]);
  float* to = c.low.v_most + (int64_t{c.batch} * c.kv_heads + head) * D + threadIdx.x;
  atomicMax(reinterpret_cast<uint32_t*>(to), __float_as_uint(all));
}

// Where a block's codes come from and go to.
struct Source {
  Tokens k, v;
  int64_t tokens;    // rows from there on are absent: code 0
  int64_t block_at;  // first block
};

// What multiplies a coordinate's values whose largest is `most`.
__device__ __forceinline__ float factor_of(const LowBit& low, float most) {
  return most < smallest ? 0.0f : (low.v_bytes == 1 ? e4m3_most : 1.0f) / most;
}

// Two values to f16; NaN where one is not finite.
__device__ __forceinline__ uint32_t to_f16_pair(float a, float b, float by_a, float by_b) {
  const float nan = __uint_as_float(0x7fc00000u);
  return to_pair(isfinite(a) ? a * by_a : nan, isfinite(b) ? b * by_b : nan, false);
}

template <int D>
__global__ void __launch_bounds__(threads)
    code_kernel(const __grid_constant__ LowBitCall c, const __grid_constant__ Source from) {
  __shared__ __align__(16) uint16_t values[32][D + 8];
  __shared__ float part[threads / 32], v_by[D];
  const int32_t head = blockIdx.y;
  const bool bf16 = c.dtype == SALE_BF16;
  const int t = threadIdx.x, row = t / 4, at = t % 4 * (D / 4);
  const int64_t first = blockIdx.x * int64_t{32}, block = head * c.low.blocks + from.block_at + blockIdx.x;
  const int64_t of_head = (int64_t{c.batch} * c.kv_heads + head) * D;
  const bool present = first + row < from.tokens;
  constexpr int pieces = D / 32;  // of 16 bytes, a thread's part of a row

  uint4 k[pieces], v[pieces];
#pragma unroll
  for (int p = 0; p < pieces; ++p) {
    k[p] = v[p] = uint4{};
    if (present) {
      k[p] = *reinterpret_cast<const uint4*>(token_row(from.k, head, first + row) + at + 8 * p);
      v[p] = *reinterpret_cast<const uint4*>(token_row(from.v, head, first + row) + at + 8 * p);
    }
  }
#pragma unroll
  for (int p = 0; p < pieces; ++p) *reinterpret_cast<uint4*>(&values[row][at + 8 * p]) = v[p];
  if (t < D && c.low.v != nullptr) v_by[t] = factor_of(c.low, c.low.v_most[of_head + t]);

  float x[D / 4], most = 0;
  bool finite = true;
#pragma unroll
  for (int p = 0; p < pieces; ++p) {
    const uint32_t pair[4] = {k[p].x, k[p].y, k[p].z, k[p].w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = 8 * p + 2 * e;
      x[i] = present ? low_element(pair[e], bf16) - c.low.smoothing[of_head + at + i] : 0.0f;
      x[i + 1] = present ? high_element(pair[e], bf16) - c.low.smoothing[of_head + at + i + 1] : 0.0f;
      finite = finite && isfinite(x[i]) && isfinite(x[i + 1]);
      most = fmaxf(most, fmaxf(fabsf(x[i]), fabsf(x[i + 1])));
    }
  }
#pragma unroll
  for (int o = 16; o > 0; o /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, o));
  if (t % 32 == 0) part[t / 32] = most;
  finite = __syncthreads_and(finite);
  most = fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]));
  const bool zero = !finite || most < smallest;
  const float by = zero ? 0.0f : 127.0f / most;
  uint8_t* k_block = c.low.k + block * 32 * D;
#pragma unroll
  for (int p = 0; p < D / 64; ++p) {
    uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      word[w] = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        word[w] |= static_cast<uint32_t>((zero ? 0 : __float2int_rn(x[16 * p + 4 * w + e] * by)) & 0xff) << 8 * e;
    }
    *reinterpret_cast<uint4*>(k_block + code_offset(row, at + 16 * p, D)) = uint4{word[0], word[1], word[2], word[3]};
  }
  if (t == 0) c.low.k_scales[block] = !finite ? __uint_as_float(0x7fc00000u) : zero ? 0.0f : most / 127.0f;

  if (c.low.v == nullptr) return;  // values stay as they are
  uint8_t* v_block = c.low.v + block * 32 * D * c.low.v_bytes;
  if (c.low.v_bytes == 2) {
#pragma unroll
    for (int p = 0; p < pieces; ++p) {
      const int first = at + 8 * p;
      uint32_t word[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(&values[row][first + 2 * e]);
        word[e] = to_f16_pair(low_element(pair, bf16), high_element(pair, bf16), v_by[first + 2 * e],
                              v_by[first + 2 * e + 1]);
      }
      *reinterpret_cast<uint4*>(v_block + code_offset(row, 2 * first, 2 * D)) =
          uint4{word[0], word[1], word[2], word[3]};
    }
    return;
  }
  if (t >= D) return;
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      word[w] = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t pair = values[key_of_place(16 * p + 4 * w + e)][t];
        const float y = low_element(pair, bf16);
        const uint8_t code = isfinite(y) ? to_e4m3(y * v_by[t]) : e4m3_nan;
        word[w] |= static_cast<uint32_t>(code) << 8 * e;
      }
    }
    *reinterpret_cast<uint4*>(v_block + code_offset(t, 16 * p, 32)) = uint4{word[0], word[1], word[2], word[3]};
  }
}

template <int D>
cudaError_t launch(const LowBitCall& c, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(c.kv_heads);
  if (c.low.v != nullptr) {
    float* most = c.low.v_most + int64_t{c.batch} * c.kv_heads * D;
    const cudaError_t e = cudaMemsetAsync(most, 0, static_cast<size_t>(c.kv_heads) * D * sizeof(float), stream);
    if (e != cudaSuccess) return e;
    const int64_t rounds = (c.k_len + 127) / 128;
    most_kernel<D><<<dim3(static_cast<unsigned>(rounds < 128 ? rounds : 128), heads), 256, 0, stream>>>(c);
  }
  const int64_t blocks = (c.k_len + block_keys - 1) / block_keys;
  code_kernel<D>
      <<<dim3(static_cast<unsigned>(blocks), heads), threads, 0, stream>>>(c, {c.k, c.v, c.k_len, c.block_at});
  if (c.k_means != nullptr) {
    const Tokens k{c.k_means, c.means_head, D, 0, 0, nullptr}, v{c.v_means, c.means_head, D, 0, 0, nullptr};
    code_kernel<D><<<dim3(static_cast<unsigned>(coded_mean_blocks(c.k_len)), heads), threads, 0, stream>>>(
        c, {k, v, (c.k_len + mean_keys - 1) / mean_keys, c.mean_block_at});
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_low_bit(const LowBitCall& c, cudaStream_t stream) {
  const cudaError_t e = launch_mean({c.k, c.dtype, c.head_dim, c.kv_heads, c.k_len,
                                     c.low.smoothing + int64_t{c.batch} * c.kv_heads * c.head_dim, c.scratch},
                                    stream);
  if (e != cudaSuccess) return e;
  return c.head_dim == 128 ? launch<128>(c, stream) : launch<64>(c, stream);
}

}  // namespace sale::cuda
