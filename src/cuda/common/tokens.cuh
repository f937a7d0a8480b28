// Rows of the tensors K and V, paged or not.
#pragma once

#include "cuda/common/kernels.hpp"

namespace sale::cuda {

__device__ __forceinline__ const uint16_t* token_row(const Tokens& t, int32_t head, int64_t token) {
  const uint16_t* base = static_cast<const uint16_t*>(t.base) + head * t.head;
  if (t.page_size == 0) return base + token * t.token;
  // 32 bits: 64-bit division takes a hundred instructions.
  const auto at = static_cast<uint32_t>(token), size = static_cast<uint32_t>(t.page_size);
  return base + t.page_table[at / size] * t.page + static_cast<int64_t>(at % size) * t.token;
}

}  // namespace sale::cuda
