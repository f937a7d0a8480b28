// Low-bit attention, P V in e4m3: compute capability 8.9.
#include "cuda/sm80/attend8.cuh"

namespace sale::sm80 {
namespace {

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
#else
template <int dim>
struct Values8 {
  static constexpr int tile_bytes = 0;
  using absent = void;
};
#endif

}  // namespace

template <>
struct ValuesOf<SALE_COMPUTE_FP8> {
  template <int D, class T>
  using type = Values8<D>;
};

template cudaError_t launch_attend8<SALE_COMPUTE_FP8>(const AttendCall&, cudaStream_t);
template cudaError_t allow_attend8<SALE_COMPUTE_FP8>();

}  // namespace sale::sm80
