// Thresholds to the bit, and INT8 codes of queries: docs/numerics.md, sections 2 and 3, as every CPU backend computes
// them.
//
// One thread block owns 64 rows of one query head. Four threads share a row: each holds the row's 15-bit digits in
// registers (two 8-bit parts of every coordinate) and takes a quarter of the reference keys, whose digits the block
// makes in shared memory, 32 keys at a time. Scores are exact integer sums put together in f32 in the defined order;
// the maximum needs a first pass over the keys, the sum of exponentials a second.
//
// Floor: four integer products of d digits per row and reference key, twice: d dp4a instructions a score and pass, 64 a
// cycle: 128 K rows x 32 heads x 290 keys x 256 / (132 x 64 x 1.7 GHz) = 22 ms. INT8 over all coordinates is the
// estimator for agreement with CPUs, not for speed; tensor cores would do this in 2 ms.
#include <initializer_list>

#include "cuda/common/fixed.cuh"
#include "cuda/sm90/blocks.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/queries.cuh"

namespace sale::sm90 {
namespace {

constexpr int half_rows = 64, threads = 256, parts = threads / half_rows;
using cuda::defined_exp2;
using cuda::defined_ln;
using cuda::Digits;
using cuda::digits;
using cuda::not_a_number;
using cuda::Rho;
using cuda::rho_of;
using cuda::smallest;

template <int D>
struct Shared {
  alignas(16) uint32_t high[32][D / 4], low[32][D / 4];  // of 32 keys
  float rho[32];
  float most[parts][half_rows];
  long long sum[parts][half_rows];
  int bad[parts][half_rows];
  float largest[half_rows];
  int finite[half_rows];
};

__device__ __forceinline__ const uint16_t* key_row(const Common& c, const ExactCall& x, const Sequence& s,
                                                   int32_t kv_head, int64_t key) {
  const uint16_t* k = static_cast<const uint16_t*>(x.k) + kv_head * x.k_head;
  const KeyPlace place = key_place(c, s, key);
  return k + int64_t{place.outer} * x.k_batch + int64_t{place.token} * x.k_token;
}

// Digits of the 32 keys of a block, a warp four keys.
template <int D>
__device__ void load_block(const Common& c, const ExactCall& x, const Sequence& s, int32_t kv_head, int32_t block,
                           Shared<D>& sh) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool bf16 = c.dtype == SALE_BF16;
  const float* mean = s.smoothing + kv_head * D;
  for (int r = warp * 4; r < warp * 4 + 4; ++r) {
    const int64_t key = int64_t{block} * block_keys + r;
    float y[4] = {};
    if (lane < D / 4 && key < s.k_len) {
      const uint2 v = *reinterpret_cast<const uint2*>(key_row(c, x, s, kv_head, key) + 4 * lane);
      y[0] = low_element(v.x, bf16) - mean[4 * lane];
      y[1] = high_element(v.x, bf16) - mean[4 * lane + 1];
      y[2] = low_element(v.y, bf16) - mean[4 * lane + 2];
      y[3] = high_element(v.y, bf16) - mean[4 * lane + 3];
    }
    float largest = 0;
    bool finite = true;
    for (float e : y) {
      finite = finite && isfinite(e);
      largest = fmaxf(largest, fabsf(e));
    }
    for (int o = 16; o > 0; o /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, o));
    finite = __all_sync(0xffffffff, finite);
    const Rho rho = rho_of(largest, finite);
    uint32_t high = 0, low = 0;
    for (int e = 0; e < 4; ++e) {
      const Digits d = rho.factor == 0 ? Digits{0, 0} : digits(y[e], rho.factor);
      high |= (static_cast<uint32_t>(d.high) & 0xff) << 8 * e;
      low |= (static_cast<uint32_t>(d.low) & 0xff) << 8 * e;
    }
    if (lane < D / 4) {
      sh.high[r][lane] = high;
      sh.low[r][lane] = low;
    }
    if (lane == 0) sh.rho[r] = rho.rho;
  }
}

template <int D>
__device__ __forceinline__ float score(const uint32_t (&high)[D / 4], const uint32_t (&low)[D / 4], const Shared<D>& sh,
                                       int key, float row_factor) {
  int hh = 0, x = 0, ll = 0;
#pragma unroll
  for (int i = 0; i < D / 4; i += 4) {
    const uint4 kh = *reinterpret_cast<const uint4*>(&sh.high[key][i]);
    const uint4 kl = *reinterpret_cast<const uint4*>(&sh.low[key][i]);
    const uint32_t h[4] = {kh.x, kh.y, kh.z, kh.w}, l[4] = {kl.x, kl.y, kl.z, kl.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      hh = __dp4a(static_cast<int>(high[i + e]), static_cast<int>(h[e]), hh);
      x = __dp4a(static_cast<int>(high[i + e]), static_cast<int>(l[e]), x);
      x = __dp4a(static_cast<int>(low[i + e]), static_cast<int>(h[e]), x);
      ll = __dp4a(static_cast<int>(low[i + e]), static_cast<int>(l[e]), ll);
    }
  }
  const float upper = __fmul_rn(static_cast<float>(hh), 16384.0f), middle = __fmul_rn(static_cast<float>(x), 128.0f);
  const float sum = __fadd_rn(__fadd_rn(upper, middle), static_cast<float>(ll));
  return __fmul_rn(sum, __fmul_rn(row_factor, sh.rho[key]));
}

// T of a row whose reference is given, for scores of smoothed keys: those are lower by scale q k_mean. raw: the row.
template <int D>
__device__ float given_threshold(const Common& c, const Sequence& s, const uint4 (&raw)[D / 8], int32_t head,
                                 bool finite, float reference) {
  const float* mean = s.smoothing + head / c.group * D;
  const bool bf16 = c.dtype == SALE_BF16;
  double mean_score = 0;
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
    const uint32_t pairs[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
    for (int e = 0; e < 8; ++e) {
      const float q = e % 2 == 0 ? low_element(pairs[e / 2], bf16) : high_element(pairs[e / 2], bf16);
      mean_score = __dadd_rn(mean_score, __dmul_rn(static_cast<double>(q), static_cast<double>(mean[8 * i + e])));
    }
  }
  const double log_tau = defined_ln(static_cast<double>(c.thresholds[head]));
  const double threshold = __dsub_rn(__dadd_rn(log_tau, static_cast<double>(reference)),
                                     __dmul_rn(static_cast<double>(c.scale), mean_score));
  return finite && isfinite(reference) ? static_cast<float>(threshold) : not_a_number();
}

template <int D>
__global__ void __launch_bounds__(threads) exact_kernel(const __grid_constant__ SelectCall call, int32_t first_item) {
  __shared__ Shared<D> sh;
  const Common& c = call.common;
  const int32_t half = blockIdx.x % 2, head = blockIdx.y, kv_head = head / c.group, item = first_item + blockIdx.x / 2;
  const Sequence& s = c.sequences[c.items[item].sequence];
  const int64_t tile = c.items[item].tile, first_row = tile * tile_rows + half * half_rows;
  if (is_local(c.thresholds[head]) || !cuda::drops(c, s, head, tile, tile_rows)) return;
  const int row = threadIdx.x % half_rows, part = threadIdx.x / half_rows;
  const bool present = first_row + row < s.q_len, bf16 = c.dtype == SALE_BF16;
  const uint16_t* q = static_cast<const uint16_t*>(call.exact.q) + s.batch * call.exact.q_batch +
                      head * call.exact.q_head + (s.q_start + first_row + row) * call.exact.q_token;
  // The row, in pairs of elements; each of its threads holds all of it.
  uint32_t high[D / 4] = {}, low[D / 4] = {};
  float largest = 0;
  bool finite = true;
  uint4 raw[D / 8];
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
    raw[i] = present ? *reinterpret_cast<const uint4*>(q + 8 * i) : uint4{};
    for (const uint32_t pair : {raw[i].x, raw[i].y, raw[i].z, raw[i].w}) {
      const float a = low_element(pair, bf16), b = high_element(pair, bf16);
      finite = finite && isfinite(a) && isfinite(b);
      largest = fmaxf(largest, fmaxf(fabsf(a), fabsf(b)));
    }
  }
  const Rho rho = rho_of(largest, finite);
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
    const uint32_t pairs[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
    for (int p = 0; p < 4; ++p)
      for (int e = 0; e < 2; ++e) {
        const float x = e == 0 ? low_element(pairs[p], bf16) : high_element(pairs[p], bf16);
        const Digits d = rho.factor == 0 ? Digits{0, 0} : digits(x, rho.factor);
        const int at = 8 * i + 2 * p + e;
        high[at / 4] |= (static_cast<uint32_t>(d.high) & 0xff) << 8 * (at % 4);
        low[at / 4] |= (static_cast<uint32_t>(d.low) & 0xff) << 8 * (at % 4);
      }
  }

  // Codes: one scale for the 64 rows.
  const QueryPlace place = query_place(call, item - first_item, head);
  if (part == 0) {
    sh.largest[row] = largest;
    sh.finite[row] = finite;
  }
  __syncthreads();
  float of_tile = 0;
  bool tile_finite = true;
  for (int r = 0; r < half_rows; ++r) {
    of_tile = fmaxf(of_tile, sh.largest[r]);
    tile_finite = tile_finite && sh.finite[r];
  }
  const bool zero = !tile_finite || of_tile < smallest;
  const float factor = zero ? 0.0f : __fdiv_rn(127.0f, of_tile);
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
    if (i / (D / 8 / parts) != part) continue;
    const uint32_t pairs[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
    uint32_t word[2] = {};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const uint32_t a =
          zero ? 0 : static_cast<uint32_t>(__float2int_rn(__fmul_rn(low_element(pairs[p], bf16), factor)));
      const uint32_t b =
          zero ? 0 : static_cast<uint32_t>(__float2int_rn(__fmul_rn(high_element(pairs[p], bf16), factor)));
      word[p / 2] |= ((a & 0xff) | (b & 0xff) << 8) << 16 * (p % 2);
    }
    *reinterpret_cast<uint2*>(place.codes + code_offset(half * half_rows + row, 8 * i, D)) = uint2{word[0], word[1]};
  }
  if (threadIdx.x == 0) {
    const float scale = !tile_finite ? not_a_number() : zero ? 0.0f : __fdiv_rn(of_tile, 127.0f);
    place.limits[tile_rows + half] = __fmul_rn(scale, c.scale);
  }

  if (call.reference != nullptr) {
    if (part != 0) return;
    float threshold = INFINITY;
    if (present)
      threshold = given_threshold<D>(c, s, raw, head, finite, given_reference(call, s, head, first_row + row));
    place.limits[half * half_rows + row] = threshold;
    return;
  }

  // The reference.
  const int64_t end_row = least(first_row + half_rows, s.q_len) - 1;
  const int32_t last = first_row < s.q_len ? static_cast<int32_t>(Sight::blocks_of(s.end_key(end_row))) : 0;
  const int32_t sink = min(static_cast<int32_t>(s.sink_end(tile, tile_rows, c.sink)), last);
  const int32_t local = max(sink, local_block(s, first_row, c.local));
  const int64_t seen = s.end_key(first_row + row);
  const float row_factor = __fmul_rn(rho.rho, c.scale);
  const float log2e = __int_as_float(0x3fb8aa3b);
  float most = -INFINITY;
  long long sum = 0;
  bool bad = false;
  for (int pass = 0; pass < 2; ++pass) {
    for (int32_t b = sink > 0 ? 0 : local; b < last; b = b + 1 == sink ? local : b + 1) {
      __syncthreads();
      load_block<D>(c, call.exact, s, kv_head, b, sh);
      __syncthreads();
      for (int k = part * (32 / parts); k < (part + 1) * (32 / parts); ++k) {
        if (int64_t{b} * block_keys + k >= seen) break;
        const float x = score<D>(high, low, sh, k, row_factor);
        bad = bad || !isfinite(x);
        if (pass == 0)
          most = fmaxf(most, x);
        else
          sum += __float2ll_rn(__fmul_rn(1048576.0f, defined_exp2(__fmul_rn(__fsub_rn(x, most), log2e))));
      }
    }
    __syncthreads();  // the pass before was read, where no block came between
    sh.most[part][row] = most;
    sh.sum[part][row] = sum;
    sh.bad[part][row] = bad;
    __syncthreads();
    for (int p = 0; p < parts; ++p) most = fmaxf(most, sh.most[p][row]);
  }
  if (part != 0) return;
  for (int p = 1; p < parts; ++p) {
    sum += sh.sum[p][row];
    bad = bad || sh.bad[p][row];
  }
  const double bracket =
      __dadd_rn(defined_ln(static_cast<double>(c.thresholds[head])), defined_ln(static_cast<double>(sum) * 0x1p-20));
  const float threshold = bad ? not_a_number() : static_cast<float>(__dadd_rn(static_cast<double>(most), bracket));
  place.limits[half * half_rows + row] = present ? threshold : INFINITY;
}

}  // namespace

cudaError_t launch_exact(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(2 * items), static_cast<unsigned>(call.common.q_heads));
  if (call.common.head_dim == 128)
    exact_kernel<128><<<grid, threads, 0, stream>>>(call, first);
  else
    exact_kernel<64><<<grid, threads, 0, stream>>>(call, first);
  return cudaGetLastError();
}

}  // namespace sale::sm90
