// What of the CUDA runtime and the driver only Hopper needs.
#pragma once

#include "cuda/common/architecture.hpp"
#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

extern const cuda::Architecture architecture;

EncodeTiled tensor_map_encoder();

}  // namespace sale::sm90
