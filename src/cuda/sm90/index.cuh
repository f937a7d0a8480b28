// What the two files of the key index share.
#pragma once

#include "cuda/sm90/launch.hpp"
#include "cuda/sm90/tokens.cuh"

namespace sale::sm90 {

constexpr int ranges = 256;           // partial sums a head
constexpr int64_t range_keys = 8192;  // that FP8's scale is taken from

struct Scratch {
  double* sums;       // [kv_heads, ranges, head_dim]
  uint32_t* largest;  // [kv_heads]: bits of a float >= 0
};
__device__ __forceinline__ Scratch scratch_of(const IndexCall& c) {
  double* sums = static_cast<double*>(c.scratch);
  return {sums, reinterpret_cast<uint32_t*>(sums + int64_t{c.kv_heads} * ranges * c.head_dim)};
}

}  // namespace sale::sm90
