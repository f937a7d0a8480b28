// Sixteen floats or int32 at a time, on whatever registers this translation unit is compiled for.
//
// Included by the kernel files of every instruction set, each compiled with its own flags, so everything here has
// internal linkage: a shared inline function compiled for AVX-512 could otherwise be the one the linker keeps for all.
//
// On NaN: max(a, b) gives b when either is NaN (the x86 rule, kept everywhere), so the order of arguments matters.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define SALE_INLINE static inline __attribute__((always_inline))

namespace sale {
namespace {

#if defined(__AVX512F__)
constexpr int register_floats = 16;
#elif defined(__AVX__)
constexpr int register_floats = 8;
#else
constexpr int register_floats = 4;
#endif
constexpr int parts = 16 / register_floats;

typedef float vf __attribute__((vector_size(4 * register_floats)));
typedef int32_t vi __attribute__((vector_size(4 * register_floats)));
typedef uint32_t vu __attribute__((vector_size(4 * register_floats)));  // sums that may wrap
// As they lie in arrays. (Sanitizers make a call of every memcpy, which costs them a third of their time.)
typedef vf vf_in_memory __attribute__((aligned(4), may_alias));
typedef vi vi_in_memory __attribute__((aligned(4), may_alias));

struct I16 {
  vi p[parts];
};
struct F16 {
  vf p[parts];
};

#if defined(__clang__)
#define SALE_EACH _Pragma("unroll") for (int i = 0; i < parts; ++i)
#else
#define SALE_EACH _Pragma("GCC unroll 4") for (int i = 0; i < parts; ++i)
#endif

SALE_INLINE F16 splat(float x) {
  F16 r;
  SALE_EACH r.p[i] = vf{} + x;
  return r;
}
SALE_INLINE I16 splat(int32_t x) {
  I16 r;
  SALE_EACH r.p[i] = vi{} + x;
  return r;
}
// Part by part: a copy of the whole struct would keep it in memory.
SALE_INLINE F16 load(const float* from) {
  F16 r;
  SALE_EACH r.p[i] = reinterpret_cast<const vf_in_memory*>(from)[i];
  return r;
}
SALE_INLINE I16 load(const int32_t* from) {
  I16 r;
  SALE_EACH r.p[i] = reinterpret_cast<const vi_in_memory*>(from)[i];
  return r;
}
SALE_INLINE void store(float* to, const F16& x) { SALE_EACH reinterpret_cast<vf_in_memory*>(to)[i] = x.p[i]; }
SALE_INLINE void store(int32_t* to, const I16& x) { SALE_EACH reinterpret_cast<vi_in_memory*>(to)[i] = x.p[i]; }

SALE_INLINE F16 operator+(const F16& a, const F16& b) {
  F16 r;
  SALE_EACH r.p[i] = a.p[i] + b.p[i];
  return r;
}
SALE_INLINE F16 operator-(const F16& a, const F16& b) {
  F16 r;
  SALE_EACH r.p[i] = a.p[i] - b.p[i];
  return r;
}
SALE_INLINE F16 operator*(const F16& a, const F16& b) {
  F16 r;
  SALE_EACH r.p[i] = a.p[i] * b.p[i];
  return r;
}
// a * b + c, in one rounding where the machine can. Kernel files are compiled with -ffp-contract=off: what is not
// written with this is rounded step by step.
SALE_INLINE F16 fused(const F16& a, const F16& b, const F16& c) {
  F16 r;
#if defined(__AVX512F__)
  r.p[0] = (vf)_mm512_fmadd_ps((__m512)a.p[0], (__m512)b.p[0], (__m512)c.p[0]);
#elif defined(__FMA__)
  SALE_EACH r.p[i] = (vf)_mm256_fmadd_ps((__m256)a.p[i], (__m256)b.p[i], (__m256)c.p[i]);
#else
  SALE_EACH r.p[i] = a.p[i] * b.p[i] + c.p[i];
#endif
  return r;
}
SALE_INLINE I16 operator+(const I16& a, const I16& b) {
  I16 r;
  SALE_EACH r.p[i] = (vi)((vu)a.p[i] + (vu)b.p[i]);
  return r;
}
SALE_INLINE I16 operator-(const I16& a, const I16& b) {
  I16 r;
  SALE_EACH r.p[i] = (vi)((vu)a.p[i] - (vu)b.p[i]);
  return r;
}
SALE_INLINE I16 operator&(const I16& a, const I16& b) {
  I16 r;
  SALE_EACH r.p[i] = a.p[i] & b.p[i];
  return r;
}
template <int n>
SALE_INLINE I16 shift_left(const I16& a) {
  I16 r;
  SALE_EACH r.p[i] = (vi)((vu)a.p[i] << n);
  return r;
}
template <int n>
SALE_INLINE I16 shift_right(const I16& a) {  // arithmetic
  I16 r;
  SALE_EACH r.p[i] = a.p[i] >> n;
  return r;
}

SALE_INLINE I16 bits(const F16& a) {
  I16 r;
  SALE_EACH r.p[i] = (vi)a.p[i];
  return r;
}
SALE_INLINE F16 as_float(const I16& a) {
  F16 r;
  SALE_EACH r.p[i] = (vf)a.p[i];
  return r;
}

SALE_INLINE F16 max(const F16& a, const F16& b) {
  F16 r;
#if defined(__AVX512F__)
  r.p[0] = (vf)_mm512_max_ps((__m512)a.p[0], (__m512)b.p[0]);
#elif defined(__AVX__)
  SALE_EACH r.p[i] = (vf)_mm256_max_ps((__m256)a.p[i], (__m256)b.p[i]);
#elif defined(__SSE2__)
  SALE_EACH r.p[i] = (vf)_mm_max_ps((__m128)a.p[i], (__m128)b.p[i]);
#else
  SALE_EACH r.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
#endif
  return r;
}
SALE_INLINE I16 max(const I16& a, const I16& b) {
  I16 r;
#if defined(__AVX512F__)
  r.p[0] = (vi)_mm512_max_epi32((__m512i)a.p[0], (__m512i)b.p[0]);
#elif defined(__AVX2__)
  SALE_EACH r.p[i] = (vi)_mm256_max_epi32((__m256i)a.p[i], (__m256i)b.p[i]);
#else
  SALE_EACH r.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
#endif
  return r;
}

// Exact for |a| < 2^24, rounded to nearest even beyond.
SALE_INLINE F16 to_float(const I16& a) {
  F16 r;
  SALE_EACH r.p[i] = __builtin_convertvector(a.p[i], vf);
  return r;
}
// Nearest integer, ties to even, for |a| < 2^22 (the sum is exact below that; no rounding mode is touched).
SALE_INLINE I16 round_small(const F16& a) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  return bits(a + splat(magic)) - splat(int32_t{0x4b400000});
}

// All lanes for which a >= b, or either is NaN.
SALE_INLINE bool any_not_below(const F16& a, const F16& b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a.p[0], (__m512)b.p[0], _CMP_NLT_UQ) != 0;
#elif defined(__AVX__)
  int any = 0;
  SALE_EACH any |= _mm256_movemask_ps(_mm256_cmp_ps((__m256)a.p[i], (__m256)b.p[i], _CMP_NLT_UQ));
  return any != 0;
#else
  vi any{};
  SALE_EACH any |= ~(a.p[i] < b.p[i]);
  int32_t r = 0;
  for (int i = 0; i < register_floats; ++i) r |= any[i];
  return r != 0;
#endif
}

SALE_INLINE float max_lane(const F16& a) {
#if defined(__AVX512F__)
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256((__m512)a.p[0]), _mm512_extractf32x8_ps((__m512)a.p[0], 1));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
#else
  float v[16];
  store(v, a);
  float m = v[0];
  for (int i = 1; i < 16; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}
// In a fixed order: halves onto halves.
SALE_INLINE float sum_lanes(const F16& a) {
  float v[16];
  store(v, a);
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) v[i] += v[i + w];
  return v[0];
}

SALE_INLINE F16 from_bf16(const uint16_t* from) {
#if defined(__AVX512F__)
  F16 r;
  r.p[0] = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
  return r;
#else
  uint32_t w[16];
  for (int i = 0; i < 16; ++i) w[i] = static_cast<uint32_t>(from[i]) << 16;
  F16 r;
  std::memcpy(&r, w, 64);
  return r;
#endif
}

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
SALE_INLINE F16 from_f16(const uint16_t* from) {
#if defined(__AVX512F__)
  F16 r;
  r.p[0] = (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
  return r;
#elif defined(__F16C__)
  F16 r;
  SALE_EACH r.p[i] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8 * i)));
  return r;
#else
  float v[16];
  for (int i = 0; i < 16; ++i) v[i] = half_to_float(from[i]);
  return load(v);
#endif
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

// 2^x for x <= 0, and for x up to 126; NaN stays NaN, 2^0 is 1 exactly. Minimax polynomials on [-1/2, 1/2], found by a
// weighted fit. No rounding or scaling instruction: those take two slots where an addition takes one.
//   degree 6  relative error 2e-9 before rounding, never fused (thresholds use it); 0 for x < -126
//   degree 4  relative error 3e-6, fused; below 2^-126 a denormal, which conversion to bf16 and its products take for 0
template <int degree>
SALE_INLINE F16 exp2(F16 x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  x = max(splat(degree == 4 ? -126.5f : -127.0f), x);
  const F16 shifted = x + splat(magic);
  const F16 f = x - (shifted - splat(magic));
  F16 y;
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
  F16 r = as_float(bits(y) + shift_left<23>(bits(shifted)));
  if constexpr (degree != 4) {
    SALE_EACH r.p[i] = (vf)((vi)r.p[i] & ~(vi)(x.p[i] < -126.0f));
  }
  return r;
}

}  // namespace
}  // namespace sale
