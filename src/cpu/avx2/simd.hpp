// AVX2 with FMA and F16C: sixteen lanes are two registers.
#pragma once

#include <immintrin.h>

namespace sale {
namespace {
constexpr int register_floats = 8;
constexpr int tile_rows = 4, tile_panels = 1;  // 8 accumulators of 16 registers
}  // namespace
}  // namespace sale

#include "cpu/common/lanes.hpp"

namespace sale {
namespace {

using by_lane::from_bf16, by_lane::max_lane, by_lane::narrow, by_lane::transpose_16x16;

SALE_INLINE f32x16 fused(const f32x16& a, const f32x16& b, const f32x16& c) {
  f32x16 r;
  SALE_EACH r.p[i] = (vf)_mm256_fmadd_ps((__m256)a.p[i], (__m256)b.p[i], (__m256)c.p[i]);
  return r;
}
SALE_INLINE f32x16 max(const f32x16& a, const f32x16& b) {
  f32x16 r;
  SALE_EACH r.p[i] = (vf)_mm256_max_ps((__m256)a.p[i], (__m256)b.p[i]);
  return r;
}
SALE_INLINE i32x16 max(const i32x16& a, const i32x16& b) {
  i32x16 r;
  SALE_EACH r.p[i] = (vi)_mm256_max_epi32((__m256i)a.p[i], (__m256i)b.p[i]);
  return r;
}
SALE_INLINE bool any_not_below(const f32x16& a, const f32x16& b) {
  int any = 0;
  SALE_EACH any |= _mm256_movemask_ps(_mm256_cmp_ps((__m256)a.p[i], (__m256)b.p[i], _CMP_NLT_UQ));
  return any != 0;
}
SALE_INLINE f32x16 from_f16(const uint16_t* from) {
  f32x16 r;
  SALE_EACH r.p[i] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8 * i)));
  return r;
}

SALE_INLINE void look_up(const int8_t* codes, const int8_t* table, int8_t* to) {
  const __m128i two = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)), low = _mm_set1_epi8(15);
  const __m128i one = _mm_unpacklo_epi8(_mm_and_si128(two, low), _mm_and_si128(_mm_srli_epi16(two, 4), low));
  const __m128i numbers = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(numbers, one));
}

struct DotI8 {
  using Acc = i32x16;
  using Word = uint32_t;
  static constexpr int32_t a_bias = 0;
  SALE_INLINE Acc zero() { return splat(int32_t{0}); }
  // |b| unsigned times a with b's sign: pairs stay below 2 * 127 * 127, inside 16 bits.
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    Acc r;
    const __m256i av = _mm256_set1_epi32(static_cast<int>(a)), one = _mm256_set1_epi16(1);
    SALE_EACH {
      const __m256i bv = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 8 * i));
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bv), _mm256_sign_epi8(av, bv));
      r.p[i] = acc.p[i] + (vi)_mm256_madd_epi16(pairs, one);
    }
    return r;
  }
};

}  // namespace
}  // namespace sale
