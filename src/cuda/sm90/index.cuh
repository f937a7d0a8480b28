// What the two files of the key index share.
#pragma once

#include "cuda/sm90/launch.hpp"

namespace sale::sm90 {

constexpr int ranges = 256;           // partial sums a head
constexpr int64_t range_keys = 8192;  // that FP8's scale is taken from

__device__ __forceinline__ const uint16_t* key_row(const IndexCall& c, int32_t head, int64_t key) {
  const uint16_t* k = static_cast<const uint16_t*>(c.k) + head * c.k_head;
  if (c.page_size == 0) return k + key * c.k_token;
  return k + int64_t{c.page_table[key / c.page_size]} * c.k_page + key % c.page_size * c.k_token;
}

struct Scratch {
  double* sums;       // [kv_heads, ranges, head_dim]
  uint32_t* largest;  // [kv_heads]: bits of a float >= 0
};
__device__ __forceinline__ Scratch scratch_of(const IndexCall& c) {
  double* sums = static_cast<double*>(c.scratch);
  return {sums, reinterpret_cast<uint32_t*>(sums + int64_t{c.kv_heads} * ranges * c.head_dim)};
}

}  // namespace sale::sm90
