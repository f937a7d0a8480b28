// Rows of the tensors K and V, paged or not.
#pragma once

#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

__device__ __forceinline__ const uint16_t* token_row(const Tokens& t, int32_t head, int64_t token) {
  const uint16_t* base = static_cast<const uint16_t*>(t.base) + head * t.head;
  if (t.page_size == 0) return base + token * t.token;
  return base + t.page_table[token / t.page_size] * t.page + token % t.page_size * t.token;
}

}  // namespace sale::sm90
