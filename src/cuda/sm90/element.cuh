// Elements, codes and rows of tensors, as all GPU backends read them.
#pragma once

#include "cuda/common/element.cuh"
#include "cuda/common/tokens.cuh"

namespace sale::sm90 {

using cuda::e4m3_most;
using cuda::e4m3_nan;
using cuda::from_e4m3;
using cuda::high_element;
using cuda::low_element;
using cuda::to_e4m3;
using cuda::to_pair;
using cuda::token_row;

}  // namespace sale::sm90
