// Audit: a few query rows of every head computed again over every key they see. docs/numerics.md, section 8; the
// comparison with what was written: common/audit.cu.
//
//   partial   four warps take 64 lanes (row, head of the group) of a kv head and a range of steps of 128 keys, 64 at a
//             time:  S = Q K^T ─▶ online softmax, weight that fell into kept blocks ─▶ O += P V
//
// P is split into two 16-bit numbers and multiplied twice, so that what is left of its rounding lies 2^-16 below
// attention's own, which an audit is to see.
//
// Floor, 64K tokens, 32 query and 8 kv heads of 128, 32 rows a head: 26 GFLOP three times, 0.5 ms at 165 TFLOP/s (RTX
// 4090). Thread blocks hide each other's loads; a pipeline as in attend.cuh would be faster and is not worth its code.
#include <type_traits>

#include "cuda/common/audit.cuh"
#include "cuda/common/element.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/common/tokens.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/launch.hpp"

namespace sale::sm80 {
namespace {

using cuda::kept_weight;
using cuda::Lane;
using cuda::least;
using cuda::over_four;
using ptx::Bf16;
using ptx::F16;

constexpr int lanes = 64, threads = 128, step_keys = 128, half_keys = 64;
constexpr int word_steps = 64 * 32 / step_keys;  // steps that a word of block bits covers

// Rows 16 bytes longer than they need be: ldmatrix then touches every bank once.
template <int D>
struct Shared {
  alignas(16) uint16_t q[lanes][D + 8], k[half_keys][D + 8], v[half_keys][D + 8];
};

template <int D>
__device__ void load_queries(const AuditCall& c, int32_t kv_head, int64_t first, Shared<D>& sh) {
  for (int i = threadIdx.x; i < lanes * (D / 8); i += threads) {
    const int at = i / (D / 8), part = i % (D / 8) * 8;
    const Lane lane(c, kv_head, first + at);
    uint4 x{};
    if (lane.seen > 0) x = *reinterpret_cast<const uint4*>(c.q + lane.head * c.q_head + lane.row * c.q_token + part);
    *reinterpret_cast<uint4*>(&sh.q[at][part]) = x;
  }
}

// 64 keys or values from `first` on; absent ones are 0.
template <int D>
__device__ void load_rows(const AuditCall& c, const Tokens& from, int32_t kv_head, int64_t first,
                          uint16_t (&to)[half_keys][D + 8]) {
  for (int i = threadIdx.x; i < half_keys * (D / 8); i += threads) {
    const int row = i / (D / 8), part = i % (D / 8) * 8;
    const bool present = first + row < c.sight.k_len;
    const int64_t key = present ? first + row : c.sight.k_len - 1;
    ptx::copy_16(&to[row][part], cuda::token_row(from, kv_head, key) + part, present);
  }
}

// S of the warp's 16 rows and 64 keys.
template <int D, class T>
__device__ __forceinline__ void multiply_qk(float (&s)[32], const Shared<D>& sh) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, matrix = lane / 8, row = lane % 8;
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = 0;
#pragma unroll
  for (int k = 0; k < D / 16; k += 2) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      ptx::load_matrices(a[i],
                         ptx::shared_address(&sh.q[16 * warp + matrix % 2 * 8 + row][16 * (k + i) + matrix / 2 * 8]));
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      uint32_t b[4];
      ptx::load_matrices(b, ptx::shared_address(&sh.k[8 * n + row][16 * k + 8 * matrix]));
      ptx::mma(&s[4 * n], a[0], b[0], b[1], T{});
      ptx::mma(&s[4 * n], a[1], b[2], b[3], T{});
    }
  }
}

// O += P V, P in two parts.
template <int D, class T>
__device__ __forceinline__ void multiply_pv(float (&o)[D / 2], const float (&p)[32], const Shared<D>& sh) {
  constexpr bool bf16 = std::is_same_v<T, Bf16>;
  const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float x = p[8 * k + 2 * e], y = p[8 * k + 2 * e + 1];
      high[e] = cuda::pack<T>(x, y);
      low[e] = cuda::pack<T>(x - cuda::low_element(high[e], bf16), y - cuda::high_element(high[e], bf16));
    }
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t b[4];
      ptx::load_transposed(b, ptx::shared_address(&sh.v[16 * k + matrix % 2 * 8 + row][8 * (n + matrix / 2)]));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ptx::mma(&o[4 * (n + i)], high, b[2 * i], b[2 * i + 1], T{});
        ptx::mma(&o[4 * (n + i)], low, b[2 * i], b[2 * i + 1], T{});
      }
    }
  }
}

template <int D, class T>
__global__ void __launch_bounds__(threads, 2) partial_kernel(const __grid_constant__ AuditCall c) {
  extern __shared__ __align__(16) char raw[];
  auto& sh = *reinterpret_cast<Shared<D>*>(raw);
  const int32_t kv_head = blockIdx.z;
  const int64_t first_lane = int64_t{blockIdx.y} * lanes;
  const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4;
  const Lane mine[2] = {{c, kv_head, first_lane + row}, {c, kv_head, first_lane + row + 8}};
  // Rows ascend: the first lane's window reaches back the farthest, and the last lane's keys end last.
  const Lane earliest(c, kv_head, first_lane);
  const Lane last(c, kv_head, least(first_lane + lanes, int64_t{c.n_rows} * c.group) - 1);
  const int64_t begin = int64_t{blockIdx.x} * c.range_steps;
  const int64_t end = least(begin + c.range_steps, (last.seen + step_keys - 1) / step_keys);

  cuda::Softmax<cuda::shift_of<T>> softmax;
  softmax.scale = c.scale * cuda::log2e;
  softmax.start();
  float o[D / 2], kept[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < D / 2; ++i) o[i] = 0;
  uint64_t word[2] = {0, 0};
  if (begin < end) load_queries(c, kv_head, first_lane, sh);
#pragma unroll 1
  for (int64_t n = 2 * begin; n < 2 * end; ++n) {
    const bool skip = cuda::is_behind(c, earliest, n, half_keys);
    __syncthreads();
    if (!skip) load_rows<D>(c, c.k, kv_head, n * half_keys, sh.k);
    if (!skip) load_rows<D>(c, c.v, kv_head, n * half_keys, sh.v);
    if (n % (2 * word_steps) == 0)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (mine[r].seen > n * half_keys) word[r] = mine[r].bits(c)[n / (2 * word_steps)];
    if (skip) continue;
    ptx::copies_wait();
    __syncthreads();

    float scores[32], shrink[2];
    multiply_qk<D, T>(scores, sh);
    const auto block = static_cast<int32_t>(2 * n);
    cuda::mask<2>(scores, {block, block + 1}, static_cast<int32_t>(mine[0].seen), static_cast<int32_t>(mine[1].seen));
    if (c.sight.windowed())
      cuda::mask_behind<2>(scores, {block, block + 1}, static_cast<int32_t>(mine[0].first),
                           static_cast<int32_t>(mine[1].first), static_cast<int32_t>(c.sight.sink_blocks()));
    softmax.step(scores, shrink);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      kept[r] =
          kept[r] * shrink[r] + kept_weight(scores, r, static_cast<uint32_t>(word[r] >> n % (2 * word_steps) * 2));
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] *= shrink[i / 2 % 2];
    multiply_pv<D, T>(o, scores, sh);
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
  partial_kernel<D, T><<<parts, threads, sizeof(Shared<D>), stream>>>(c);
  return cudaGetLastError();
}

template <int D, class T>
cudaError_t allow() {
  return cudaFuncSetAttribute(partial_kernel<D, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(Shared<D>)));
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

}  // namespace sale::sm80
