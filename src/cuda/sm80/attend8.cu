// Low-bit attention, P V in the tensors' own type.
#include "cuda/sm80/attend8.cuh"

namespace sale::sm80 {

template <>
struct ValuesOf<SALE_COMPUTE_INT8> {
  template <int D, class T>
  using type = Values16<D, T>;
};

template cudaError_t launch_attend8<SALE_COMPUTE_INT8>(const AttendCall&, cudaStream_t);
template cudaError_t allow_attend8<SALE_COMPUTE_INT8>();

}  // namespace sale::sm80
