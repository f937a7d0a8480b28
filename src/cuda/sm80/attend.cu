// Exact attention over the kept blocks. Ampere, Ada. The walk and the pipeline: attend.cuh.
//
// Numbers: S in f32 from 16-bit products; softmax in base 2, f32; P rounded to the tensors' type; O in f32. The
// arithmetic of an item depends on its own list alone.
#include "cuda/sm80/attend.cuh"

namespace sale::sm80 {
namespace {

template <int dim, class T>
struct Keys16 {
  static constexpr int D = dim, tile_bytes = step_keys * D * 2;
  Source<D> source;
  uint32_t q[D / 16][4];
  float add_lse[2] = {0, 0};

  __device__ Keys16(const AttendCall& call, const Work& work) : source(call.k, call, work) {}
  __device__ static float softmax_scale(const Common& c) { return c.scale * log2e; }
  __device__ static void look_up(const AttendCall&, const Work&, Step&) {}
  __device__ __forceinline__ void copy(uint32_t to, const AttendCall& call, const Work& work, const Step& step) const {
    source.copy(to, call.k, call.k_means, call, work, step);
  }
  // Rows that are not there are zeros.
  __device__ void load_queries(const AttendCall& call, const Work& work) {
    const int row = lane_row();
    const uint16_t* from = query_row(call, work, row) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        q[i][e] = 0;
        if (row + e % 2 * 8 < work.rows())
          q[i][e] = *reinterpret_cast<const uint32_t*>(from + e % 2 * 8 * call.q.token + 16 * i + e / 2 * 8);
      }
  }
  template <int shift>
  __device__ __forceinline__ void weigh(float (&s)[step_keys / 2], float (&shrink)[2], Softmax<shift>& softmax,
                                        uint32_t tile, const Step& step, const Work& work) const {
#pragma unroll
    for (int i = 0; i < step_keys / 2; ++i) s[i] = 0;
    // Matrices of a load: keys 0 .. 7 of a piece and of the next, then keys 8 .. 15.
    const int lane = threadIdx.x % 32, key = lane / 16 * 8 + lane % 8, piece = lane / 8 % 2;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      const uint32_t at = tile + swizzled(key, 2 * i + piece, 2 * D);
#pragma unroll
      for (int n = 0; n < step_keys / 16; ++n) {
        uint32_t k[4];
        load_matrices(k, at + n * 16 * 2 * D);
        mma(s + 8 * n, q[i], k[0], k[1], T{});
        mma(s + 8 * n + 4, q[i], k[2], k[3], T{});
      }
    }
    if (step.means) {
      weigh_means(s, step.counts, softmax.scale);
      softmax.step(s, shrink, mean_bonus / softmax.scale);
    } else {
      if (!seen_whole(step, work)) hide(s, step, work);
      softmax.step(s, shrink);
    }
  }
};

template <int D, class T>
__global__ void __launch_bounds__(attend_threads, blocks_of<D>) attend_kernel(const __grid_constant__ AttendCall call) {
  extern __shared__ __align__(128) uint8_t shared[];
  attend<Keys16<D, T>, Values16<D, T>, T>(call, shared);
}

template <int D, class T>
struct Kernel {
  static constexpr auto function = attend_kernel<D, T>;
  static constexpr int shared = 3 * slot_bytes<Keys16<D, T>, Values16<D, T>>;
};

constexpr auto with_kernel = [](int32_t dim, int32_t dtype, auto&& f) {
  if (dim == 128) return dtype == SALE_BF16 ? f(Kernel<128, Bf16>{}) : f(Kernel<128, F16>{});
  return dtype == SALE_BF16 ? f(Kernel<64, Bf16>{}) : f(Kernel<64, F16>{});
};

}  // namespace

cudaError_t launch_attend(const AttendCall& call, cudaStream_t stream) {
  switch (call.compute) {
    case SALE_COMPUTE_INT8: return launch_attend8<SALE_COMPUTE_INT8>(call, stream);
    case SALE_COMPUTE_FP8: return launch_attend8<SALE_COMPUTE_FP8>(call, stream);
    case SALE_COMPUTE_F16: return launch_attend8<SALE_COMPUTE_F16>(call, stream);
    default: return launch_with(with_kernel, call, stream);
  }
}

cudaError_t allow_attend() {
  for (const cudaError_t e : {allow_with(with_kernel), allow_attend8<SALE_COMPUTE_INT8>(),
                              allow_attend8<SALE_COMPUTE_FP8>(), allow_attend8<SALE_COMPUTE_F16>()})
    if (e != cudaSuccess) return e;
  return cudaSuccess;
}

}  // namespace sale::sm80
