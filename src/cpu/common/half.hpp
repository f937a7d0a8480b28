// 16-bit numbers, one at a time.
#pragma once

#include "cpu/common/lanes.hpp"

namespace sale {
namespace {

SALE_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
  uint32_t w;
  if (rest >= 0x7c00u) {
    w = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);  // infinity, NaN
  } else if (rest >= 0x400u) {
    w = sign | ((rest << 13) + 0x38000000u);
  } else {  // denormal: rest * 2^-24, exact
    const float f = static_cast<float>(rest) * 0x1p-24f;
    std::memcpy(&w, &f, 4);
    w |= sign;
  }
  float f;
  std::memcpy(&f, &w, 4);
  return f;
}
// Round to nearest even; NaN stays NaN.
SALE_INLINE uint16_t to_bf16(float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  if ((w & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((w >> 16) | 0x40u);
  return static_cast<uint16_t>((w + 0x7fffu + ((w >> 16) & 1u)) >> 16);
}
SALE_INLINE uint16_t to_f16(float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  const uint32_t sign = (w >> 16) & 0x8000u;
  w &= 0x7fffffffu;
  if (w > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (w >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (w < 0x38800000u) {                                               // denormal result: let the adder round
    float f;
    std::memcpy(&f, &w, 4);
    f += 0.5f;
    std::memcpy(&w, &f, 4);
    return static_cast<uint16_t>(sign | (w - 0x3f000000u));
  }
  w += 0xc8000fffu + ((w >> 13) & 1u);
  return static_cast<uint16_t>(sign | (w >> 13));
}

}  // namespace
}  // namespace sale
