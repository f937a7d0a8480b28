// Audit: a few query rows of every head computed again over every key they see, and compared with what was written.
// docs/numerics.md, section 8. Hopper.
//
//   partial   a warpgroup takes 64 lanes (row, head of the group) of a kv head and a range of steps of 128 keys:
//             S = Q K^T ─▶ online softmax, weight that fell into kept blocks ─▶ O += P V
//   compare, total    common/audit.cu
//
// P is split into two 16-bit numbers and multiplied twice, so that what is left of its rounding lies 2^-16 below
// attention's own, which an audit is to see.
//
// Floor, 64K tokens, 32 query and 8 kv heads of 128, 32 rows a head: every lane tile reads half of K and V on average,
// 0.27 GB from L2, and multiplies 26 GFLOP three times: 0.1 ms. Two thread blocks a multiprocessor hide each other's
// loads; a pipeline as in attend.cu would be faster and is not worth its code here.
#include <type_traits>

#include "cuda/common/audit.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/exact_products.cuh"

namespace sale::sm90 {
namespace {

using cuda::kept_weight;
using cuda::Lane;
using cuda::over_four;

constexpr int lanes = 64, threads = 128, word_steps = 64 / step_blocks;  // steps that a word of block bits covers

template <int D>
struct Shared {
  alignas(1024) uint16_t q[D / 64][lanes * 64];
  alignas(1024) Tile<D> k;
  alignas(1024) Tile<D> v;
};

// Of a tile of rows [from, from + rows): element offset of a row's 16-byte part.
__device__ __forceinline__ int swizzled(int row, int part) { return row * 64 + ((part % 8) ^ (row % 8)) * 8; }

template <int D>
__device__ void load_queries(const AuditCall& c, int32_t kv_head, int64_t first, Shared<D>& sh) {
  for (int i = threadIdx.x; i < lanes * (D / 8); i += threads) {
    const int at = i / (D / 8), part = i % (D / 8);
    const Lane lane(c, kv_head, first + at);
    uint4 x{};
    if (lane.seen > 0)
      x = *reinterpret_cast<const uint4*>(c.q + lane.head * c.q_head + lane.row * c.q_token + part * 8);
    *reinterpret_cast<uint4*>(&sh.q[part / 8][swizzled(at, part)]) = x;
  }
}

// 128 keys or values from `first` on; absent ones are 0.
template <int D>
__device__ void load_step(const AuditCall& c, const Tokens& from, int32_t kv_head, int64_t first, Tile<D>& to) {
  for (int i = threadIdx.x; i < step_keys * (D / 8); i += threads) {
    const int row = i / (D / 8), part = i % (D / 8);
    const bool present = first + row < c.sight.k_len;
    const int64_t key = present ? first + row : c.sight.k_len - 1;
    copy_16(&to[part / 8][swizzled(row, part)], token_row(from, kv_head, key) + part * 8, present);
  }
}

// P = high + low, both 16 bits.
template <class T>
__device__ __forceinline__ void split(const float (&s)[64], uint32_t (&high)[8][4], uint32_t (&low)[8][4]) {
  constexpr bool bf16 = std::is_same_v<T, Bf16>;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float x = s[8 * i + 2 * e], y = s[8 * i + 2 * e + 1];
      high[i][e] = pack<T>(x, y);
      low[i][e] = pack<T>(x - low_element(high[i][e], bf16), y - high_element(high[i][e], bf16));
    }
}

template <int D, class T>
__global__ void __launch_bounds__(threads, 2) partial_kernel(const __grid_constant__ AuditCall c) {
  extern __shared__ char raw[];
  auto& sh = shared_as<Shared<D>>(raw);
  const int32_t kv_head = blockIdx.z;
  const int64_t first_lane = int64_t{blockIdx.y} * lanes;
  const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4;
  const Lane mine[2] = {{c, kv_head, first_lane + row}, {c, kv_head, first_lane + row + 8}};
  // Rows ascend: the first lane's window reaches back the farthest, and the last lane's keys end last.
  const Lane earliest(c, kv_head, first_lane);
  const Lane last(c, kv_head, least(first_lane + lanes, int64_t{c.n_rows} * c.group) - 1);
  const int64_t begin = int64_t{blockIdx.x} * c.range_steps;
  const int64_t end = least(begin + c.range_steps, (last.seen + step_keys - 1) / step_keys);

  Softmax<shift_of<T>> softmax;
  softmax.scale = c.scale * log2e;
  softmax.start();
  float o[D / 2], kept[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < D / 2; ++i) o[i] = 0;
  uint64_t word[2] = {0, 0};
  if (begin < end) load_queries(c, kv_head, first_lane, sh);
#pragma unroll 1
  for (int64_t n = begin; n < end; ++n) {
    const bool skip = cuda::is_behind(c, earliest, n, step_keys);
    __syncthreads();
    if (!skip) load_step<D>(c, c.k, kv_head, n * step_keys, sh.k);
    if (!skip) load_step<D>(c, c.v, kv_head, n * step_keys, sh.v);
    if (n % word_steps == 0)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (mine[r].seen > n * step_keys) word[r] = mine[r].bits(c)[n / word_steps];
    if (skip) continue;
    copies_wait();
    fence_async();
    __syncthreads();

    float scores[64], shrink[2];
    uint32_t high[8][4], low[8][4];
    wgmma_touch(scores);
    wgmma_fence();
    multiply_qk<D, T>(scores, sh.q, 0, sh.k);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_touch(scores);
    const auto block = static_cast<int32_t>(n) * step_blocks;
    mask(scores, {block, block + 1, block + 2, block + 3}, static_cast<int32_t>(mine[0].seen),
         static_cast<int32_t>(mine[1].seen));
    if (c.sight.windowed())
      cuda::mask_behind<step_blocks>(scores, {block, block + 1, block + 2, block + 3},
                                     static_cast<int32_t>(mine[0].first), static_cast<int32_t>(mine[1].first),
                                     static_cast<int32_t>(c.sight.sink_blocks()));
    softmax.step(scores, shrink);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      kept[r] =
          kept[r] * shrink[r] + kept_weight(scores, r, static_cast<uint32_t>(word[r] >> n % word_steps * step_blocks));
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] *= shrink[i / 2 % 2];
    split<T>(scores, high, low);
    wgmma_touch(o);
    wgmma_fence();
    multiply_pv<D, T>(o, high, sh.v);
    multiply_pv<D, T>(o, low, sh.v);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_touch(o);
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = over_four(softmax.sum[r]), weight = over_four(kept[r]);
    const int64_t lane = first_lane + row + 8 * r;
    if (mine[r].seen == 0) continue;
    float* to = c.partials + ((kv_head * int64_t{c.n_rows} * c.group + lane) * c.ranges + blockIdx.x) * (D + 3);
#pragma unroll
    for (int i = 0; i < D / 8; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) to[8 * i + t % 4 * 2 + e] = o[4 * i + 2 * r + e];
    if (t % 4 == 0) to[D] = softmax.most[r], to[D + 1] = sum, to[D + 2] = weight;
  }
}

template <int D, class T>
cudaError_t launch(const AuditCall& c, cudaStream_t stream) {
  const int64_t n = int64_t{c.n_rows} * c.group;
  const dim3 parts(static_cast<unsigned>(c.ranges), static_cast<unsigned>((n + lanes - 1) / lanes),
                   static_cast<unsigned>(c.kv_heads));
  partial_kernel<D, T><<<parts, threads, sizeof(Shared<D>) + 1024, stream>>>(c);
  return cudaGetLastError();
}

template <int D, class T>
cudaError_t allow() {
  return cudaFuncSetAttribute(partial_kernel<D, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(Shared<D>) + 1024));
}

}  // namespace

cudaError_t launch_audit(const AuditCall& c, cudaStream_t stream) {
  const bool bf16 = c.dtype == SALE_BF16;
  if (c.head_dim == 128) return bf16 ? launch<128, Bf16>(c, stream) : launch<128, F16>(c, stream);
  return bf16 ? launch<64, Bf16>(c, stream) : launch<64, F16>(c, stream);
}

cudaError_t allow_audit() {
  for (const auto f : {allow<128, Bf16>, allow<128, F16>, allow<64, Bf16>, allow<64, F16>})
    if (const cudaError_t e = f(); e != cudaSuccess) return e;
  return cudaSuccess;
}

}  // namespace sale::sm90
