// Low-bit attention over the kept blocks: Q Kᵀ in INT8, P V in the tensors' own type, in f16 with f16 sums, or in e4m3
// (sm_89). Ampere, Ada.
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
#include <type_traits>

#include "cuda/common/element.cuh"
#include "cuda/sm80/attend.cuh"

namespace sale::sm80 {
namespace {

constexpr int32_t sum_start = 0x4b400000;
__device__ __forceinline__ float value_of(int32_t sum) { return __int_as_float(sum) - __int_as_float(sum_start); }

// Block number of the coded arrays; of a missing block what is there will do.
__device__ __forceinline__ int64_t coded_block(const AttendCall& call, const Work& work, const Step& step, int b) {
  return work.kv_head * call.low.blocks + (step.means() ? work.s.mean_block_at : work.s.block_at) +
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
    if (!step.means() && seen_whole(step, work) && !may_be_huge(step)) return step_whole(softmax, sums, s, by, shrink);
#pragma unroll
    for (int i = 0; i < step_keys / 2; ++i) s[i] = value_of(sums[i]) * by[i / 2 % 2][i / 16];
    if (step.means())
      mask_means(s, step.dropped);
    else
      mask(s, step.id, work.visible(lane_row()), work.visible(lane_row() + 8));
    softmax.step(s, shrink, step.means() ? 5.0f : 0.0f);  // a pseudo-key stands for 2^5 keys
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

// O = O shrink + P V of 64 keys from f16 codes, those products summed in f16.
template <int dim>
struct ValuesF16 {
  static constexpr int D = dim, tile_bytes = step_keys * D * 2, shift = 9;  // 64 2^9 is within f16's range
  uint32_t p[step_keys / 16][4];

  __device__ ValuesF16(const AttendCall&, const Work&) {}
  __device__ static __forceinline__ void copy(uint32_t to, const AttendCall& call, const Work& work, const Step& step) {
    copy_codes<32 * D * 2>(to, call.low.v, call, work, step);
  }
  __device__ __forceinline__ void round(const float (&s)[step_keys / 2]) { round_16<F16>(p, s); }
  __device__ __forceinline__ void mix(float (&o)[D / 2], const float (&shrink)[2], uint32_t tile) const {
    // Matrices of a load: keys 0 .. 7, 8 .. 15 of a piece, then of the next.
    const int lane = threadIdx.x % 32, row = lane % 16, piece = lane / 16;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      const uint32_t at = tile + swizzled(row, 2 * i + piece, 2 * D);
      uint32_t part[4] = {};
#pragma unroll
      for (int k = 0; k < step_keys / 16; ++k) {
        uint32_t v[4];
        load_transposed(v, at + k * 16 * 2 * D);
        mma(part, p[k], v[0], v[1], F16{});
        mma(part + 2, p[k], v[2], v[3], F16{});
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        o[8 * i + 2 * e] = fmaf(o[8 * i + 2 * e], shrink[e % 2], low_element(part[e], false));
        o[8 * i + 2 * e + 1] = fmaf(o[8 * i + 2 * e + 1], shrink[e % 2], high_element(part[e], false));
      }
    }
  }
  __device__ void finish(float (&o)[D / 2], const AttendCall& call, const Work& work) const {
    unscale<D>(o, call, work, 1);
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  return to_e4m3_pair(a, b) | static_cast<uint32_t>(to_e4m3_pair(c, d)) << 16;
}

// O = O shrink + P V of 64 keys from e4m3 codes.
template <int dim>
struct Values8 {
  static constexpr int D = dim, tile_bytes = step_keys * D, shift = 8;  // P <= 2^8: e4m3 then reaches down to 2^-17
  uint32_t p[step_blocks][4];

  __device__ Values8(const AttendCall&, const Work&) {}
  __device__ static __forceinline__ void copy(uint32_t to, const AttendCall& call, const Work& work, const Step& step) {
    copy_codes<32 * D>(to, call.low.v, call, work, step);
  }
  // key_of_place()
  __device__ __forceinline__ void round(const float (&s)[step_keys / 2]) {
#pragma unroll
    for (int b = 0; b < step_blocks; ++b)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float* x = s + 16 * b + e / 2 * 8 + e % 2 * 2;
        p[b][e] = pack_e4m3(x[0], x[1], x[4], x[5]);
      }
  }
  __device__ __forceinline__ void mix(float (&o)[D / 2], const float (&shrink)[2], uint32_t tile) const {
    // Matrices of a load: coordinates 0 .. 7, the first 16 places of a block and the others, then coordinates 8 .. 15.
    const int lane = threadIdx.x % 32, coordinate = lane / 16 * 8 + lane % 8, piece = lane / 8 % 2;
    const uint32_t at = tile + static_cast<uint32_t>(code_offset(coordinate, piece * 16, 32));
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      float part[8] = {};
#pragma unroll
      for (int b = 0; b < step_blocks; ++b) {
        uint32_t v[4];
        load_matrices(v, at + b * 32 * D + i * 16 * 32);
        mma(part, p[b], v[0], v[1], E4m3{});
        mma(part + 4, p[b], v[2], v[3], E4m3{});
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) o[8 * i + e] = fmaf(o[8 * i + e], shrink[e / 2 % 2], part[e]);
    }
  }
  __device__ void finish(float (&o)[D / 2], const AttendCall& call, const Work& work) const {
    unscale<D>(o, call, work, e4m3_most);
  }
};
#endif

// compute: a sale_compute. F16 at d = 128 needs some registers more than three thread blocks leave it on an A100, whose
// f16 sums are no faster than f32 ones anyway.
template <int D, int compute>
constexpr int blocks8_of = D == 128 && compute == SALE_COMPUTE_F16 ? 2 : blocks_of<D>;

template <int D, class T, int compute>
__global__ void __launch_bounds__(attend_threads, blocks8_of<D, compute>)
    attend8_kernel(const __grid_constant__ AttendCall call) {
  extern __shared__ __align__(128) uint8_t shared[];
  if constexpr (compute == SALE_COMPUTE_INT8) attend<Keys8<D, T>, Values16<D, T>, T>(call, shared);
  if constexpr (compute == SALE_COMPUTE_F16) attend<Keys8<D, T>, ValuesF16<D>, T>(call, shared);
  if constexpr (compute == SALE_COMPUTE_FP8) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    attend<Keys8<D, T>, Values8<D>, T>(call, shared);
#else
    __trap();  // the plan refuses it by name
#endif
  }
}

template <int D, class T, int compute>
struct Kernel {
  static constexpr auto function = attend8_kernel<D, T, compute>;
  static constexpr int shared = 3 * step_keys * D * (compute == SALE_COMPUTE_FP8 ? 1 : 2);
};

template <int compute, class F>
cudaError_t with_kernel(int32_t dim, int32_t dtype, F&& f) {
  if (dim == 128) return dtype == SALE_BF16 ? f(Kernel<128, Bf16, compute>{}) : f(Kernel<128, F16, compute>{});
  return dtype == SALE_BF16 ? f(Kernel<64, Bf16, compute>{}) : f(Kernel<64, F16, compute>{});
}
template <class F>
cudaError_t with_kernel(int32_t compute, int32_t dim, int32_t dtype, F&& f) {
  if (compute == SALE_COMPUTE_FP8) return with_kernel<SALE_COMPUTE_FP8>(dim, dtype, f);
  if (compute == SALE_COMPUTE_F16) return with_kernel<SALE_COMPUTE_F16>(dim, dtype, f);
  return with_kernel<SALE_COMPUTE_INT8>(dim, dtype, f);
}

}  // namespace

cudaError_t launch_attend8(const AttendCall& call, cudaStream_t stream) {
  const Common& c = call.common;
  return with_kernel(call.compute, c.head_dim, c.dtype, [&](auto kernel) {
    kernel.function<<<static_cast<unsigned>(c.n_items * c.q_heads), attend_threads, kernel.shared, stream>>>(call);
    return cudaGetLastError();
  });
}

cudaError_t allow_attend8() {
  for (const int32_t compute : {SALE_COMPUTE_INT8, SALE_COMPUTE_FP8, SALE_COMPUTE_F16})
    for (const int32_t dim : {64, 128})
      for (const int32_t dtype : {SALE_BF16, SALE_F16}) {
        const cudaError_t e = with_kernel(compute, dim, dtype, [](auto kernel) {
          return cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared);
        });
        if (e != cudaSuccess) return e;
      }
  return cudaSuccess;
}

}  // namespace sale::sm80
