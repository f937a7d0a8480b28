// Low-bit attention, P V in f16 with f16 sums.
#include "cuda/sm80/attend8.cuh"

namespace sale::sm80 {
namespace {

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

}  // namespace

template <>
struct ValuesOf<SALE_COMPUTE_F16> {
  template <int D, class T>
  using type = ValuesF16<D>;
};
// Some registers more than three thread blocks leave it on an A100, whose f16 sums are no faster than f32 ones anyway.
template <>
constexpr int blocks8_of<128, SALE_COMPUTE_F16> = 2;

template cudaError_t launch_attend8<SALE_COMPUTE_F16>(const AttendCall&, cudaStream_t);
template cudaError_t allow_attend8<SALE_COMPUTE_F16>();

}  // namespace sale::sm80
