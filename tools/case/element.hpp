// bf16 and f16 to and from f32, written for reading; shares nothing with the library.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "sale/sale.h"

namespace sale_case {

inline int64_t bytes_of(sale_dtype t) { return t == SALE_F32 ? 4 : 2; }
// Half the distance between 1 and the next number, as a bound of rounding: 2^-8, 2^-11, 2^-24.
inline double epsilon(sale_dtype t) { return t == SALE_BF16 ? 0x1p-8 : t == SALE_F16 ? 0x1p-11 : 0x1p-24; }

inline float float_from_bf16(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }
inline uint16_t bf16_from_float(float x) {
  const uint32_t w = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>(0x7fc0u | ((w >> 16) & 0x8000u));
  return static_cast<uint16_t>((w + 0x7fffu + ((w >> 16) & 1u)) >> 16);
}

inline float float_from_f16(uint16_t h) {
  const uint32_t exponent = (h >> 10) & 31u, fraction = h & 1023u;
  float x;
  if (exponent == 31) {
    x = std::bit_cast<float>(0x7f800000u | (fraction << 13));
  } else if (exponent == 0) {
    x = static_cast<float>(fraction) * 0x1p-24f;
  } else {
    x = std::bit_cast<float>(((exponent + 112u) << 23) | (fraction << 13));
  }
  return (h & 0x8000u) != 0 ? -x : x;
}
inline uint16_t f16_from_float(float x) {
  const uint32_t sign = (std::bit_cast<uint32_t>(x) >> 16) & 0x8000u;
  const float a = std::fabs(x);
  uint32_t h;
  if (std::isnan(x)) {
    h = 0x7e00u;
  } else if (a >= 65520.0f) {  // would round to 65536
    h = 0x7c00u;
  } else if (a < 0x1p-14f) {
    h = static_cast<uint32_t>(std::nearbyint(a * 0x1p24f));
  } else {
    const uint32_t w = std::bit_cast<uint32_t>(a);
    h = ((w + 0xfffu + ((w >> 13) & 1u)) >> 13) - (112u << 10);
  }
  return static_cast<uint16_t>(sign | h);
}

inline float load(const std::byte* at, sale_dtype t) {
  if (t == SALE_F32) {
    float x;
    std::memcpy(&x, at, 4);
    return x;
  }
  uint16_t h;
  std::memcpy(&h, at, 2);
  return t == SALE_BF16 ? float_from_bf16(h) : float_from_f16(h);
}
inline void store(std::byte* at, sale_dtype t, float x) {
  if (t == SALE_F32) {
    std::memcpy(at, &x, 4);
    return;
  }
  const uint16_t h = t == SALE_BF16 ? bf16_from_float(x) : f16_from_float(x);
  std::memcpy(at, &h, 2);
}

}  // namespace sale_case
