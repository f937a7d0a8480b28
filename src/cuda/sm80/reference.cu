// Thresholds of rows, to the bit: docs/numerics.md, section 3.
//
// One thread block owns a tile of 64 rows of up to four query heads of a kv head, four warps a head, 16 rows a warp.
// Rows are in registers as 15-bit numbers in two 8-bit digits, in the order of the products' first operand; the
// reference keys (sink, local) come 32 at a time, are smoothed and cut into digits in shared memory by all, and
// multiplied:
//
//   HH, HL + LH, LL (16 x 8, exact) ─▶ scores in f32 in the defined order ─▶ pass 1: maximum; pass 2: sum of 2^20 exp
//
// Floor, 128 K tokens, 32 query heads, d 128: 290 keys a row, four products of 8 bits, twice: 2.5 TFLOP, 3.8 ms at 661
// TOP/s (RTX 4090); digits of the keys, 2 x 290 a tile and group of heads, 64 K coordinates a tile of some ten
// instructions: 1.2 G instructions of 32 lanes, 1 ms. Exponentials: 2 x 1.2 G scores of some 30 instructions: 4 ms.
//
// Of rows whose reference is given (keys that are a part of a sequence's) no key is read: a thread block owns a tile of
// a head, a thread a row. Floor: Q once, 1.07 GB, 1.1 ms at 1.0 TB/s; 0.5 G conversions and as many products of 64
// bits, 1.7 ms on the 2 x 128 such lanes of an RTX 4090 at 2.5 GHz.
#include "cuda/common/fixed.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/codes.cuh"
#include "cuda/sm80/queries.cuh"

namespace sale::sm80 {
namespace {

constexpr int head_threads = 128, max_heads = 4;

template <int D>
struct Shared {
  // A row is 4 banks further than the one before: the products' loads touch every bank once.
  alignas(16) uint8_t high[block_keys][D + 16], low[block_keys][D + 16];
  float rho[block_keys];
  float threshold[max_heads][tile_rows];
};

template <int D>
__device__ void load_block(const SelectCall& call, const Sequence& s, int32_t kv_head, int32_t block, Shared<D>& sh) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int r = threadIdx.x / 32; r < block_keys; r += warps) {
    const int64_t key = int64_t{block} * block_keys + r;
    float x[1][D / 32] = {};
    if (key < s.k_len) {
      load_part<D>(key_row(call, s, kv_head, key), lane, call.common.dtype == SALE_BF16, x[0]);
#pragma unroll
      for (int e = 0; e < D / 32; ++e) x[0][e] = __fsub_rn(x[0][e], s.smoothing[kv_head * D + lane * (D / 32) + e]);
    }
    const float range = over_warp(range_of(x));
    const cuda::Rho rho = cuda::rho_of(range, !isinf(range));
    uint32_t high = 0, low = 0;
#pragma unroll
    for (int e = 0; e < D / 32; ++e) {
      const cuda::Digits d = rho.factor == 0 ? cuda::Digits{0, 0} : cuda::digits(x[0][e], rho.factor);
      high |= (static_cast<uint32_t>(d.high) & 0xff) << 8 * e;
      low |= (static_cast<uint32_t>(d.low) & 0xff) << 8 * e;
    }
    if constexpr (D == 128) {
      *reinterpret_cast<uint32_t*>(&sh.high[r][4 * lane]) = high;
      *reinterpret_cast<uint32_t*>(&sh.low[r][4 * lane]) = low;
    } else {
      *reinterpret_cast<uint16_t*>(&sh.high[r][2 * lane]) = static_cast<uint16_t>(high);
      *reinterpret_cast<uint16_t*>(&sh.low[r][2 * lane]) = static_cast<uint16_t>(low);
    }
    if (lane == 0) sh.rho[r] = rho.rho;
  }
}

// Rows g and g + 8 of the warp's 16 as first operands of products: high and low digits.
template <int D>
struct Rows {
  uint32_t high[D / 32][4], low[D / 32][4];
  float rho[2];

  // row: g's and g + 8's; they may be the same.
  __device__ Rows(const uint16_t* const (&row)[2], bool bf16) {
    const int quad = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint2 raw[D / 32][2];
      float range = 0;
#pragma unroll
      for (int i = 0; i < D / 32; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          raw[i][half] = *reinterpret_cast<const uint2*>(row[r] + 32 * i + 16 * half + 4 * quad);
          const float x[1][4] = {{cuda::low_element(raw[i][half].x, bf16), cuda::high_element(raw[i][half].x, bf16),
                                  cuda::low_element(raw[i][half].y, bf16), cuda::high_element(raw[i][half].y, bf16)}};
          range = fmaxf(range, range_of(x));
        }
#pragma unroll
      for (int o = 1; o <= 2; o *= 2) range = fmaxf(range, __shfl_xor_sync(0xffffffff, range, o));
      const cuda::Rho z = cuda::rho_of(range, !isinf(range));
      rho[r] = z.rho;
#pragma unroll
      for (int i = 0; i < D / 32; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t pair[2] = {raw[i][half].x, raw[i][half].y};
          uint32_t h = 0, l = 0;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float x = e % 2 == 0 ? cuda::low_element(pair[e / 2], bf16) : cuda::high_element(pair[e / 2], bf16);
            const cuda::Digits d = z.factor == 0 ? cuda::Digits{0, 0} : cuda::digits(x, z.factor);
            h |= (static_cast<uint32_t>(d.high) & 0xff) << 8 * e;
            l |= (static_cast<uint32_t>(d.low) & 0xff) << 8 * e;
          }
          high[i][2 * half + r] = h;
          low[i][2 * half + r] = l;
        }
    }
  }
};

// Scores of rows g, g + 8 and keys 8 n + 2 quad + {0, 1}: s[2 r + e].
template <int D>
__device__ __forceinline__ void scores(const Rows<D>& rows, const Shared<D>& sh, int n, float scale, float (&s)[4]) {
  const int g = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  int32_t hh[4] = {}, x[4] = {}, ll[4] = {};
#pragma unroll
  for (int i = 0; i < D / 32; ++i) {
    uint32_t h[2], l[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      h[half] = *reinterpret_cast<const uint32_t*>(&sh.high[8 * n + g][32 * i + 16 * half + 4 * quad]);
      l[half] = *reinterpret_cast<const uint32_t*>(&sh.low[8 * n + g][32 * i + 16 * half + 4 * quad]);
    }
    ptx::mma(hh, rows.high[i], h[0], h[1], ptx::S8{});
    ptx::mma(x, rows.high[i], l[0], l[1], ptx::S8{});
    ptx::mma(x, rows.low[i], h[0], h[1], ptx::S8{});
    ptx::mma(ll, rows.low[i], l[0], l[1], ptx::S8{});
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int at = 2 * r + e;
      const float upper = __fmul_rn(static_cast<float>(hh[at]), 16384.0f),
                  middle = __fmul_rn(static_cast<float>(x[at]), 128.0f);
      const float sum = __fadd_rn(__fadd_rn(upper, middle), static_cast<float>(ll[at]));
      s[at] = __fmul_rn(sum, __fmul_rn(__fmul_rn(rows.rho[r], scale), sh.rho[8 * n + 2 * quad + e]));
    }
}

template <int D>
__global__ void __launch_bounds__(head_threads* max_heads)
    reference_kernel(const __grid_constant__ SelectCall call, int32_t first_chunk) {
  __shared__ Shared<D> sh;
  const Common& c = call.common;
  const int32_t tiles = chunk_tiles(c.group), heads = chunk_heads(c.group), chunk = blockIdx.x / tiles;
  const Item item = call.chunks[first_chunk + chunk];
  const Sequence s = c.sequences[item.sequence];
  const int64_t tile = item.tile + static_cast<int64_t>(blockIdx.x) % tiles, first = tile * tile_rows;
  const int32_t first_head = static_cast<int32_t>(blockIdx.y) * heads, kv_head = first_head / c.group;
  if (first >= s.q_len) return;
  bool any = false;
  for (int32_t h = 0; h < heads; ++h) any = any || scans(c, s, first_head + h, tile);
  if (!any) return;
  const int n = static_cast<int>(least(tile_rows, s.q_len - first));
  const int group = threadIdx.x / head_threads, t = threadIdx.x % head_threads, g = t % 32 / 4, quad = t % 4;
  const int32_t head = first_head + group;
  const int at[2] = {t / 32 * 16 + g, t / 32 * 16 + g + 8};
  const int row[2] = {stand_in(at[0], n), stand_in(at[1], n)};
  const uint16_t* const from[2] = {query_row(call, s, head, first + row[0]), query_row(call, s, head, first + row[1])};
  const Rows<D> rows(from, c.dtype == SALE_BF16);
  const int64_t seen[2] = {s.end_key(first + row[0]), s.end_key(first + row[1])};
  // Blocks [0, sink) and [local, last): every row that is looked at sees them from their first key on.
  const auto last = cuda::end_block<tile_rows>(s, tile);
  const int32_t sink = min(static_cast<int32_t>(s.sink_end(tile, tile_rows, c.sink)), last);
  const int32_t local = max(sink, local_block(s, first, c.local));
  const float log2e = __int_as_float(0x3fb8aa3b);
  float most[2] = {-INFINITY, -INFINITY};
  int32_t sum[2] = {0, 0};
  bool bad[2] = {false, false};
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll 1
    for (int32_t b = sink > 0 ? 0 : local; b < last; b = b + 1 == sink ? local : b + 1) {
      __syncthreads();
      load_block<D>(call, s, kv_head, b, sh);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x[4];
        scores<D>(rows, sh, i, c.scale, x);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (int64_t{b} * block_keys + 8 * i + 2 * quad + e % 2 >= seen[e / 2]) continue;
          if (pass == 0) {
            bad[e / 2] = bad[e / 2] || !isfinite(x[e]);
            most[e / 2] = fmaxf(most[e / 2], x[e]);
          } else {
            const float power = cuda::defined_exp2(__fmul_rn(__fsub_rn(x[e], most[e / 2]), log2e));
            sum[e / 2] += __float2int_rn(__fmul_rn(1048576.0f, power));
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int o = 1; o <= 2; o *= 2) {
        if (pass == 0) {
          most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffff, most[r], o));
          bad[r] = __shfl_xor_sync(0xffffffff, static_cast<int>(bad[r]), o) != 0 || bad[r];
        } else {
          sum[r] += __shfl_xor_sync(0xffffffff, sum[r], o);
        }
      }
  }
  if (quad != 0 || !scans(c, s, head, tile)) return;
  const QueryPlace place = query_place(call, chunk, head, blockIdx.x % tiles);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const double bracket = __dadd_rn(cuda::defined_ln(static_cast<double>(c.thresholds[head])),
                                     cuda::defined_ln(static_cast<double>(sum[r]) * 0x1p-20));
    place.limits[at[r]] =
        bad[r] ? not_a_number() : static_cast<float>(__dadd_rn(static_cast<double>(most[r]), bracket));
  }
}

// Scores are of smoothed keys, which are lower by scale q k_mean than those that the given reference is made of.
template <int D>
__global__ void __launch_bounds__(tile_rows)
    given_kernel(const __grid_constant__ SelectCall call, int32_t first_chunk) {
  __shared__ double mean[D];
  const Common& c = call.common;
  const int32_t tiles = chunk_tiles(c.group), chunk = blockIdx.x / tiles, head = blockIdx.y;
  const Item item = call.chunks[first_chunk + chunk];
  const Sequence s = c.sequences[item.sequence];
  const int64_t tile = item.tile + static_cast<int64_t>(blockIdx.x) % tiles, first = tile * tile_rows;
  if (first >= s.q_len || !scans(c, s, head, tile)) return;
  for (int i = threadIdx.x; i < D; i += tile_rows) mean[i] = static_cast<double>(s.smoothing[head / c.group * D + i]);
  __syncthreads();
  const bool bf16 = c.dtype == SALE_BF16;
  const int64_t row =
      first + stand_in(static_cast<int>(threadIdx.x), static_cast<int>(least(tile_rows, s.q_len - first)));
  const uint16_t* q = query_row(call, s, head, row);
  const float given = call.reference[(int64_t{s.batch} * c.q_heads + head) * call.reference_rows + row];
  bool finite = isfinite(given);
  double mean_score = 0;
#pragma unroll 2
  for (int i = 0; i < D; i += 8) {
    const uint4 raw = *reinterpret_cast<const uint4*>(q + i);
    const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float x = e % 2 == 0 ? cuda::low_element(pairs[e / 2], bf16) : cuda::high_element(pairs[e / 2], bf16);
      finite = finite && isfinite(x);
      mean_score = fma(static_cast<double>(x), mean[i + e], mean_score);  // the product is exact: 11 bits by 24
    }
  }
  const double log_tau = cuda::defined_ln(static_cast<double>(c.thresholds[head]));
  const double limit =
      __dsub_rn(__dadd_rn(log_tau, static_cast<double>(given)), __dmul_rn(static_cast<double>(c.scale), mean_score));
  query_place(call, chunk, head, blockIdx.x % tiles).limits[threadIdx.x] =
      finite ? static_cast<float>(limit) : not_a_number();
}

template <int D>
void launch(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream) {
  const Common& c = call.common;
  const auto tiles = static_cast<unsigned>(chunks * chunk_tiles(c.group)), all = static_cast<unsigned>(c.q_heads);
  if (call.reference != nullptr) {
    given_kernel<D><<<dim3(tiles, all), static_cast<unsigned>(tile_rows), 0, stream>>>(call, first);
  } else {
    const auto heads = static_cast<unsigned>(chunk_heads(c.group));
    reference_kernel<D><<<dim3(tiles, all / heads), head_threads * heads, 0, stream>>>(call, first);
  }
}

}  // namespace

cudaError_t launch_reference(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream) {
  if (call.common.head_dim == 128)
    launch<128>(call, first, chunks, stream);
  else
    launch<64>(call, first, chunks, stream);
  return cudaGetLastError();
}

}  // namespace sale::sm80
