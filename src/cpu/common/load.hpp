// Rows of a tensor as f32, whatever their type.
#pragma once

#include "core/kernel.hpp"
#include "cpu/common/simd.hpp"

namespace sale {
namespace {

SALE_INLINE const char* element(const void* base, sale_dtype dtype, int64_t index) {
  return static_cast<const char*>(base) + index * (dtype == SALE_F32 ? 4 : 2);
}

SALE_INLINE void load_row(const void* base, sale_dtype dtype, int64_t at, int32_t d, float* to) {
  const char* from = element(base, dtype, at);
  for (int32_t c = 0; c < d; c += 16) {
    f32x16 x;
    if (dtype == SALE_BF16) {
      x = from_bf16(reinterpret_cast<const uint16_t*>(from) + c);
    } else if (dtype == SALE_F16) {
      x = from_f16(reinterpret_cast<const uint16_t*>(from) + c);
    } else {
      x = load(reinterpret_cast<const float*>(from) + c);
    }
    store(to + c, x);
  }
}

SALE_INLINE void store_row(void* base, sale_dtype dtype, int64_t at, int32_t d, const float* from) {
  char* to = const_cast<char*>(element(base, dtype, at));
  if (dtype == SALE_F32) {
    std::memcpy(to, from, static_cast<size_t>(d) * 4);
    return;
  }
  uint16_t* half = reinterpret_cast<uint16_t*>(to);
  if (dtype == SALE_BF16) {
    for (int32_t c = 0; c < d; ++c) half[c] = to_bf16(from[c]);
  } else {
    for (int32_t c = 0; c < d; ++c) half[c] = to_f16(from[c]);
  }
}

// Hands out parts of a scratch area; the same calls on a null base add up its size.
struct Arena {
  char* base;
  size_t used = 0;
  explicit Arena(void* b) : base(static_cast<char*>(b)) {}
  template <class T>
  T* take(int64_t count) {
    T* r = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return r;
  }
};

}  // namespace
}  // namespace sale
