// What the two files of the key index share.
#pragma once

#include "cuda/common/blocks_of.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/launch.hpp"

namespace sale::sm90 {

constexpr int64_t range_keys = 8192;  // that FP8's scale is taken from

// [kv_heads], in the scratch behind what means need: bits of a float >= 0.
__device__ __host__ inline uint32_t* largest_of(const IndexCall& c) {
  constexpr int64_t ranges = 256;
  return reinterpret_cast<uint32_t*>(static_cast<double*>(c.scratch) + int64_t{c.kv_heads} * ranges * c.head_dim);
}

}  // namespace sale::sm90
