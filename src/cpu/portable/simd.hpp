// Any CPU: the compiler's vectors, and on x86-64 what every one of them has, SSE2. Sixteen lanes are four registers.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace sale {
namespace {
constexpr int register_floats = 4;
constexpr int tile_rows = 2, tile_panels = 1;  // 8 accumulators of 16 registers
}  // namespace
}  // namespace sale

#include "cpu/common/half.hpp"
#include "cpu/common/lanes.hpp"

namespace sale {
namespace {

using by_lane::from_bf16, by_lane::look_up, by_lane::max_lane, by_lane::narrow, by_lane::transpose_16x16;

SALE_INLINE f32x16 fused(const f32x16& a, const f32x16& b, const f32x16& c) {
  f32x16 r;
  SALE_EACH r.p[i] = a.p[i] * b.p[i] + c.p[i];
  return r;
}
SALE_INLINE f32x16 max(const f32x16& a, const f32x16& b) {
  f32x16 r;
#if defined(__SSE2__)
  SALE_EACH r.p[i] = (vf)_mm_max_ps((__m128)a.p[i], (__m128)b.p[i]);
#else
  SALE_EACH r.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
#endif
  return r;
}
SALE_INLINE i32x16 max(const i32x16& a, const i32x16& b) {
  i32x16 r;
  SALE_EACH r.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
  return r;
}
SALE_INLINE bool any_not_below(const f32x16& a, const f32x16& b) {
  vi any{};
  SALE_EACH any |= ~(a.p[i] < b.p[i]);
  int32_t r = 0;
  for (int i = 0; i < register_floats; ++i) r |= any[i];
  return r != 0;
}
SALE_INLINE f32x16 from_f16(const uint16_t* from) {
  float v[16];
  for (int i = 0; i < 16; ++i) v[i] = half_to_float(from[i]);
  return load(v);
}

struct DotI8 {
  using Acc = i32x16;
  using Word = uint32_t;
  static constexpr int32_t a_bias = 0;
  SALE_INLINE Acc zero() { return splat(int32_t{0}); }
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    Acc r;
#if defined(__SSE2__)
    // Even and odd bytes as 16-bit numbers: two multiply-adds of pairs.
    const __m128i av = _mm_set1_epi32(static_cast<int>(a));
    const __m128i a_even = _mm_srai_epi16(_mm_slli_epi16(av, 8), 8), a_odd = _mm_srai_epi16(av, 8);
    SALE_EACH {
      const __m128i bv = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 4 * i));
      const __m128i even = _mm_madd_epi16(a_even, _mm_srai_epi16(_mm_slli_epi16(bv, 8), 8));
      const __m128i odd = _mm_madd_epi16(a_odd, _mm_srai_epi16(bv, 8));
      r.p[i] = acc.p[i] + (vi)_mm_add_epi32(even, odd);
    }
#else
    i32x16 w;
    std::memcpy(&w, b, 64);
    r = acc;
    for (int t = 0; t < 4; ++t) {
      const int32_t at = static_cast<int8_t>(a >> (8 * t));
      SALE_EACH r.p[i] += at * ((w.p[i] << (24 - 8 * t)) >> 24);
    }
#endif
    return r;
  }
};

}  // namespace
}  // namespace sale
