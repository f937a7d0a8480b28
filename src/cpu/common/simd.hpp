// Sixteen lanes of what this file is compiled for. Of every instruction set, its simd.hpp has:
//
//   register_floats                   floats in a register
//   tile_rows, tile_panels            the register tile of gemm.hpp; with two panels head_dim is a multiple of 32, and
//                                     the backend's why_not_layer must say so
//   fused(a, b, c)                    a * b + c, in one rounding where the machine can. Kernel files are compiled with
//                                     -ffp-contract=off: what is not written with this is rounded step by step
//   max(a, b)                         b when either is NaN (the x86 rule, kept everywhere): the order matters
//   any_not_below(a, b)               whether a >= b, or either is NaN, in any lane
//   max_lane(a)                       the largest lane
//   from_bf16, from_f16(from)         sixteen 16-bit numbers
//   narrow(a, to)                     int32 to int8, cut off
//   look_up(codes, table, to)         sixteen int8 of a table of sixteen, by 4-bit codes, two a byte, the lower half
//                                     first; table aligned to 16 bytes
//   transpose_16x16(rows, word, to)   to[w * 16 + r] = rows[r][word + w], 32-bit words
//   DotI8                             four signed 8-bit products added to each lane. Where the instruction wants its
//                                     first factor unsigned, the caller gives it with a_bias added (one xor with
//                                     0x80808080) and takes a_bias * sum(b) off the result
//
// This is the only place that asks which one it is.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include "cpu/avx512/simd.hpp"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "cpu/avx2/simd.hpp"
#elif defined(SALE_NEON)  // by the build: every Arm file is compiled for NEON, the portable backend's too
#include "cpu/neon/simd.hpp"
#else
#include "cpu/portable/simd.hpp"
#endif
#include "cpu/common/half.hpp"

namespace sale {
namespace {

// Nearest integer, ties to even, for |a| < 2^22 (the sum is exact below that; no rounding mode is touched).
SALE_INLINE i32x16 round_small(const f32x16& a) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  return bits(a + splat(magic)) - splat(int32_t{0x4b400000});
}

// In a fixed order: halves onto halves.
SALE_INLINE float sum_lanes(const f32x16& a) {
  float v[16];
  store(v, a);
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) v[i] += v[i + w];
  return v[0];
}

// 2^x for x <= 0, and for x up to 126; NaN stays NaN, 2^0 is 1 exactly. Minimax polynomials on [-1/2, 1/2], found by a
// weighted fit. No rounding or scaling instruction: those take two slots where an addition takes one.
//   degree 6  relative error 2e-9 before rounding, never fused (thresholds use it); 0 for x < -126
//   degree 4  relative error 3e-6, fused; below 2^-126 a denormal, which conversion to bf16 and its products take for 0
template <int degree>
SALE_INLINE f32x16 exp2(f32x16 x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  x = max(splat(degree == 4 ? -126.5f : -127.0f), x);
  const f32x16 shifted = x + splat(magic);
  const f32x16 f = x - (shifted - splat(magic));
  f32x16 y;
  if constexpr (degree == 4) {
    y = fused(splat(9.582853232e-03f), f, splat(5.590642566e-02f));
    y = fused(y, f, splat(2.402409861e-01f));
    y = fused(y, f, splat(6.931241933e-01f));
    y = fused(y, f, splat(1.0f));
  } else {
    y = splat(1.535336206e-04f) * f + splat(1.339887452e-03f);
    y = y * f + splat(9.618437358e-03f);
    y = y * f + splat(5.550332471e-02f);
    y = y * f + splat(2.402264791e-01f);
    y = y * f + splat(6.931472029e-01f);
    y = y * f + splat(1.0f);
  }
  // The low bits of `shifted` are the integer; its other bits leave by the shift.
  f32x16 r = as_float(bits(y) + shift_left<23>(bits(shifted)));
  if constexpr (degree != 4) {
    SALE_EACH r.p[i] = (vf)((vi)r.p[i] & ~(vi)(x.p[i] < -126.0f));
  }
  return r;
}

}  // namespace
}  // namespace sale
