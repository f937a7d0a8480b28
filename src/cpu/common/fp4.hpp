// FP4: docs/numerics.md section 1, step by step. Codes e2m1, so twice a number is one of 0 1 2 3 4 6 8 12; a group of
// 32 coordinates has an exponent 0 .. 3, and numbers times 2^exponent are the bytes that are multiplied, up to 96.
#pragma once

#include "cpu/common/simd.hpp"

namespace sale {
namespace {

constexpr int32_t fp4_group = 32;
constexpr float fp4_levels = 96.0f;
constexpr float fp4_down[4] = {1.0f, 0.5f, 0.25f, 0.125f};

// The smallest that leaves `top`, the largest |number| of the group in units of the block's scale, at 12 or below.
SALE_INLINE int fp4_exponent(float top) { return (top > 12.0f) + (top > 24.0f) + (top > 48.0f); }

// x, at most 12 in magnitude but for rounding, to the nearest code, ties to the even one.
SALE_INLINE i32x16 e2m1_of(const f32x16& x) {
  // Steps are 1 below 4, then 2, then 4. Adding 1.5 * 2^23 of them lets the adder round.
  const i32x16 binade = max(bits(x) & splat(int32_t{0x7fffffff}), splat(int32_t{0x40000000}));
  const f32x16 magic = as_float((binade & splat(int32_t{0x7f800000})) + splat(int32_t{0x0b400000}));
  const i32x16 rounded = bits((x + magic) - magic), magnitude = rounded & splat(int32_t{0x7fffffff});
  // From 2 on, exponent and first digit count codes; 0 and 1 are told apart by an exponent bit.
  const i32x16 code = max(shift_right<22>(magnitude) - splat(int32_t{254}), shift_right<29>(magnitude));
  return code + (shift_right<28>(rounded) & splat(int32_t{8}));
}

// The bytes of a coded key [rank].
SALE_INLINE void unpack_fp4(const int8_t* row, int32_t rank, int8_t* to) {
  alignas(16) static constexpr int8_t numbers[4][16] = {
      {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
      {0, 2, 4, 6, 8, 12, 16, 24, 0, -2, -4, -6, -8, -12, -16, -24},
      {0, 4, 8, 12, 16, 24, 32, 48, 0, -4, -8, -12, -16, -24, -32, -48},
      {0, 8, 16, 24, 32, 48, 64, 96, 0, -8, -16, -24, -32, -48, -64, -96}};
  for (int32_t c = 0; c < rank; c += 16) look_up(row + c / 2, numbers[row[rank / 2 + c / fp4_group] & 3], to + c);
}

}  // namespace
}  // namespace sale
