// Low-bit attention over the kept blocks: Q Kᵀ in INT8, P V in the tensors' own type (attend8.cu), in f16 with f16 sums
// (attend8_f16.cu) or in e4m3 (attend8_fp8.cu). Ampere, Ada.
// The walk and the pipeline: attend.cuh; the codes of K and V: common/low_bit.cu.
//
//   Q ─▶ INT8, a scale a row, in registers, and q k̄ for lse           once an item
//   S = Q Kᵀ, exact integers ─▶ f32, scaled ─▶ online softmax ─▶ P      16 bits; 2^9 P in f16, 2^8 P in e4m3
//   O = O shrink + P V: of codes the products of a step by themselves, since their sums keep few bits: e4m3 about 14,
//                       f16 eleven, within f16's range: 64 products of P <= 2^9 and |v| <= 1
//
// Sums start from 1.5 2^23 as a float's bits: the integer added to it is the float's own value, less that number, so
// that no conversion is needed (a sum is below 127² d < 2^22), and sums compare as integers.
//
// Keys were smoothed, which takes q k̄ off every score of a row; softmax does not see it, lse gets it back.
#pragma once

#include <type_traits>

#include "cuda/common/element.cuh"
#include "cuda/sm80/attend.cuh"

namespace sale::sm80 {

// How P and V of a form are stored and multiplied: type<D, T>; each form's file says. A type with `absent` has no
// products on the architecture compiled for: the plan refuses it there by name.
template <int compute>
struct ValuesOf;

constexpr int32_t sum_start = 0x4b400000;
__device__ __forceinline__ float value_of(int32_t sum) { return __int_as_float(sum) - __int_as_float(sum_start); }

// Block number of the coded arrays; of a missing block what is there will do.
__device__ __forceinline__ int64_t coded_block(const AttendCall& call, const Work& work, const Step& step, int b) {
  return work.kv_head * call.low.blocks + (step.means ? work.s.mean_block_at : work.s.block_at) +
         (step.id[b] < 0 ? step.id[1] : step.id[b]);
}
// The codes of a step's two blocks as they stand; of a missing one zeros.
template <int bytes>
__device__ __forceinline__ void copy_codes(uint32_t to, const uint8_t* codes, const AttendCall& call, const Work& work,
                                           const Step& step) {
#pragma unroll
  for (int b = 0; b < step_blocks; ++b) {
    const uint8_t* from = codes + coded_block(call, work, step, b) * bytes + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < bytes; i += attend_threads * 16)
      copy_16(to + b * bytes + threadIdx.x * 16 + i, from + i, step.id[b] >= 0);
  }
}

template <int dim, class T>
struct Keys8 {
  static constexpr int D = dim, tile_bytes = step_keys * D;
  uint32_t q[D / 32][4];
  float row_by[2], add_lse[2];

  __device__ Keys8(const AttendCall&, const Work&) {}
  __device__ static float softmax_scale(const Common&) { return 1; }  // scores are made in base 2
  __device__ static void look_up(const AttendCall& call, const Work& work, Step& step) {
    if (!step.some()) return;
#pragma unroll
    for (int b = 0; b < step_blocks; ++b) step.scale[b] = call.low.k_scales[coded_block(call, work, step, b)];
  }
  __device__ static __forceinline__ void copy(uint32_t to, const AttendCall& call, const Work& work, const Step& step) {
    copy_codes<32 * D>(to, call.low.k, call, work, step);
  }
  // Rows of Q to INT8, four lanes a row; rows that are not there are zeros.
  __device__ void load_queries(const AttendCall& call, const Work& work) {
    constexpr bool bf16 = std::is_same_v<T, Bf16>;
    const int column = threadIdx.x % 4 * 4;
    const float* mean = call.low.smoothing + (int64_t{work.s.batch} * call.common.kv_heads + work.kv_head) * D + column;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane_row() + 8 * r;
      const uint16_t* from = query_row(call, work, row) + column;
      float x[D / 4], most = 0, mean_score = 0;
      bool finite = true;
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        uint2 v{};
        if (row < work.rows()) v = *reinterpret_cast<const uint2*>(from + 16 * i);
        x[4 * i] = low_element(v.x, bf16), x[4 * i + 1] = high_element(v.x, bf16);
        x[4 * i + 2] = low_element(v.y, bf16), x[4 * i + 3] = high_element(v.y, bf16);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          finite = finite && isfinite(x[4 * i + e]);
          most = fmaxf(most, fabsf(x[4 * i + e]));
          mean_score = fmaf(x[4 * i + e], mean[16 * i + e], mean_score);
        }
      }
#pragma unroll
      for (int o = 1; o < 4; o *= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, o));
        mean_score += __shfl_xor_sync(0xffffffff, mean_score, o);
        finite = __shfl_xor_sync(0xffffffff, static_cast<int>(finite), o) != 0 && finite;
      }
      const bool zero = !finite || most < 0x1p-100f;
      const float by = zero ? 0.0f : 127.0f / most;
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        uint32_t codes = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e)
          codes |= static_cast<uint32_t>((zero ? 0 : __float2int_rn(x[4 * i + e] * by)) & 0xff) << 8 * e;
        q[i / 2][i % 2 * 2 + r] = codes;
      }
      row_by[r] = (!finite ? __uint_as_float(0x7fc00000u) : zero ? 0.0f : most / 127.0f) * call.common.scale * log2e;
      add_lse[r] = mean_score * call.common.scale;
    }
  }

  __device__ __forceinline__ void multiply(int32_t (&sums)[step_keys / 2], uint32_t tile) const {
    // Matrices of a load: keys 0 .. 7 of a piece and of the next, then keys 8 .. 15.
    const int lane = threadIdx.x % 32, key = lane / 16 * 8 + lane % 8, piece = lane / 8 % 2;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      const uint32_t at = tile + swizzled(key, 2 * i + piece, D);
#pragma unroll
      for (int n = 0; n < step_keys / 16; ++n) {
        uint32_t k[4];
        load_matrices(k, at + n * 16 * D);
        if (i == 0) {
          mma_from(sum_start, sums + 8 * n, q[i], k[0], k[1], S8{});
          mma_from(sum_start, sums + 8 * n + 4, q[i], k[2], k[3], S8{});
        } else {
          mma(sums + 8 * n, q[i], k[0], k[1], S8{});
          mma(sums + 8 * n + 4, q[i], k[2], k[3], S8{});
        }
      }
    }
  }

  // The softmax's step from sums that all count: maxima are taken on integers, and a score is made on the way to its
  // exponential. by: of a sum of row r and block b.
  template <int shift>
  __device__ __forceinline__ static void step_whole(Softmax<shift>& softmax, const int32_t (&sums)[step_keys / 2],
                                                    float (&p)[step_keys / 2], const float (&by)[2][step_blocks],
                                                    float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float m = softmax.most[r];
#pragma unroll
      for (int b = 0; b < step_blocks; ++b) {
        int32_t most = sums[16 * b + 2 * r];
#pragma unroll
        for (int i = 1; i < 8; ++i) most = max(most, sums[16 * b + i / 2 * 4 + 2 * r + i % 2]);
        m = fmaxf(m, value_of(most) * by[r][b]);
      }
      const float base = softmax.raise(r, softmax.most[r], m, 0, shrink[r]);
      float total[2] = {softmax.sum[r] * shrink[r], 0};
#pragma unroll
      for (int i = 0; i < step_keys / 4; ++i) {
        const int at = i / 2 * 4 + 2 * r + i % 2;
        p[at] = exp2_approximate(fmaf(value_of(sums[at]), by[r][i / 8], -base));
        total[i % 2] += p[at];
      }
      softmax.sum[r] = total[0] + total[1];
    }
  }
  // Whether some score may be so large that rounding of its maximum shows in an exponential (2^-10 and more). By warp.
  __device__ __forceinline__ bool may_be_huge(const Step& step) const {
    constexpr float most_sum = 127.0f * 127.0f * D;
    return __any_sync(0xffffffff,
                      fmaxf(row_by[0], row_by[1]) * fmaxf(step.scale[0], step.scale[1]) * most_sum > 0x1p14f);
  }
  template <int shift>
  __device__ __forceinline__ void weigh(float (&s)[step_keys / 2], float (&shrink)[2], Softmax<shift>& softmax,
                                        uint32_t tile, const Step& step, const Work& work) const {
    int32_t sums[step_keys / 2];
    multiply(sums, tile);
    float by[2][step_blocks];
#pragma unroll
    for (int i = 0; i < 2 * step_blocks; ++i) by[i / 2][i % 2] = row_by[i / 2] * step.scale[i % 2];
    if (!step.means && seen_whole(step, work) && !may_be_huge(step)) return step_whole(softmax, sums, s, by, shrink);
#pragma unroll
    for (int i = 0; i < step_keys / 2; ++i) s[i] = value_of(sums[i]) * by[i / 2 % 2][i / 16];
    if (step.means)
      weigh_means(s, step.counts, softmax.scale);
    else
      hide(s, step, work);
    softmax.step(s, shrink, step.means ? mean_bonus : 0.0f);
  }
};

// Columns of O become sums of values: codes are values times `coded` / (the largest of the coordinate).
template <int D>
__device__ void unscale(float (&o)[D / 2], const AttendCall& call, const Work& work, float coded) {
  const float* most =
      call.low.v_most + (int64_t{work.s.batch} * call.common.kv_heads + work.kv_head) * D + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
    const float2 m = *reinterpret_cast<const float2*>(most + 8 * i);
#pragma unroll
    for (int e = 0; e < 4; ++e) o[4 * i + e] *= (e % 2 == 0 ? m.x : m.y) * (1.0f / coded);
  }
}

// Of a multiprocessor, where a form's registers do not suffice for blocks_of.
template <int D, int compute>
constexpr int blocks8_of = blocks_of<D>;

// compute: a sale_compute.
template <int D, class T, int compute>
__global__ void __launch_bounds__(attend_threads, blocks8_of<D, compute>)
    attend8_kernel(const __grid_constant__ AttendCall call) {
  extern __shared__ __align__(128) uint8_t shared[];
  using Values = typename ValuesOf<compute>::template type<D, T>;
  if constexpr (requires { typename Values::absent; })
    __trap();
  else
    attend<Keys8<D, T>, Values, T>(call, shared);
}

template <int D, class T, int compute>
struct Kernel8 {
  static constexpr auto function = attend8_kernel<D, T, compute>;
  static constexpr int shared = 3 * slot_bytes<Keys8<D, T>, typename ValuesOf<compute>::template type<D, T>>;
};

template <int compute>
constexpr auto with_kernel8 = [](int32_t dim, int32_t dtype, auto&& f) {
  if (dim == 128) return dtype == SALE_BF16 ? f(Kernel8<128, Bf16, compute>{}) : f(Kernel8<128, F16, compute>{});
  return dtype == SALE_BF16 ? f(Kernel8<64, Bf16, compute>{}) : f(Kernel8<64, F16, compute>{});
};

template <int compute>
cudaError_t launch_attend8(const AttendCall& call, cudaStream_t stream) {
  return launch_with(with_kernel8<compute>, call, stream);
}
template <int compute>
cudaError_t allow_attend8() {
  return allow_with(with_kernel8<compute>);
}

}  // namespace sale::sm80
