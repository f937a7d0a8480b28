// Which blocks of keys a kernel works on: a range of them, or those of a list that a kernel before has made.
#pragma once

#include "cuda/common/kernels.hpp"

namespace sale::cuda {

struct BlocksToCode {
  const int32_t* list;  // device: how many, then their numbers; or null
  int64_t first, end;
  __device__ int64_t count() const { return list != nullptr ? list[0] : end - first; }
  __device__ int64_t operator[](int64_t i) const { return list != nullptr ? list[1 + i] : first + i; }
};
__device__ inline BlocksToCode blocks_of(const IndexCall& c) {
  return {c.blocks, c.first_key / block_keys, Sight::blocks_of(c.k_len)};
}

}  // namespace sale::cuda
