// AVX-512 with BW, DQ, VL and VNNI: sixteen lanes are a register.
#pragma once

#include <immintrin.h>

namespace sale {
namespace {
constexpr int register_floats = 16;
constexpr int tile_rows = 8, tile_panels = 2;  // 16 accumulators of 32 registers
}  // namespace
}  // namespace sale

#include "cpu/common/lanes.hpp"

namespace sale {
namespace {

SALE_INLINE f32x16 fused(const f32x16& a, const f32x16& b, const f32x16& c) {
  f32x16 r;
  r.p[0] = (vf)_mm512_fmadd_ps((__m512)a.p[0], (__m512)b.p[0], (__m512)c.p[0]);
  return r;
}
SALE_INLINE f32x16 max(const f32x16& a, const f32x16& b) {
  f32x16 r;
  r.p[0] = (vf)_mm512_max_ps((__m512)a.p[0], (__m512)b.p[0]);
  return r;
}
SALE_INLINE i32x16 max(const i32x16& a, const i32x16& b) {
  i32x16 r;
  r.p[0] = (vi)_mm512_max_epi32((__m512i)a.p[0], (__m512i)b.p[0]);
  return r;
}
SALE_INLINE bool any_not_below(const f32x16& a, const f32x16& b) {
  return _mm512_cmp_ps_mask((__m512)a.p[0], (__m512)b.p[0], _CMP_NLT_UQ) != 0;
}
SALE_INLINE float max_lane(const f32x16& a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256((__m512)a.p[0]), _mm512_extractf32x8_ps((__m512)a.p[0], 1));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}

SALE_INLINE f32x16 from_bf16(const uint16_t* from) {
  f32x16 r;
  r.p[0] = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
  return r;
}
SALE_INLINE f32x16 from_f16(const uint16_t* from) {
  f32x16 r;
  r.p[0] = (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
  return r;
}
SALE_INLINE void narrow(const i32x16& a, int8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)a.p[0]));
}

SALE_INLINE void transpose_16x16(const uint32_t* const rows[16], int64_t word, uint32_t* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i] + word);
  for (int i = 0; i < 8; ++i) {  // 2x2 words
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {  // 4x4 words, within 128-bit lanes
    a[4 * i + 0] = _mm512_unpacklo_epi64(b[4 * i + 0], b[4 * i + 2]);
    a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i + 0], b[4 * i + 2]);
    a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // lanes of rows 0-3 with 4-7, 8-11 with 12-15
    b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
    b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(to + 16 * (i + 0), _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88));
    _mm512_storeu_si512(to + 16 * (i + 8), _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd));
    _mm512_storeu_si512(to + 16 * (i + 4), _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0x88));
    _mm512_storeu_si512(to + 16 * (i + 12), _mm512_shuffle_i32x4(b[4 + i], b[12 + i], 0xdd));
  }
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
  static constexpr int32_t a_bias = 128;
  SALE_INLINE Acc zero() { return splat(int32_t{0}); }
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    Acc r;
    r.p[0] = (vi)_mm512_dpbusd_epi32((__m512i)acc.p[0], _mm512_set1_epi32(static_cast<int>(a)), _mm512_loadu_si512(b));
    return r;
  }
};

}  // namespace
}  // namespace sale
