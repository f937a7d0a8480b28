// Sixteen floats or int32 at a time, in as many registers as that takes: what the compiler's vectors can do on any
// machine. An instruction set's simd.hpp says how wide its registers are and includes this; the rest it brings itself.
//
// Everything here and there has internal linkage: a shared inline function compiled for AVX-512 could otherwise be the
// copy that the linker keeps for all.
#pragma once

#include <cstdint>
#include <cstring>

#define SALE_INLINE static inline __attribute__((always_inline))

namespace sale {
namespace {

constexpr int parts = 16 / register_floats;

typedef float vf __attribute__((vector_size(4 * register_floats)));
typedef int32_t vi __attribute__((vector_size(4 * register_floats)));
typedef uint32_t vu __attribute__((vector_size(4 * register_floats)));  // sums that may wrap
// As they lie in arrays. (Sanitizers make a call of every memcpy, which costs them a third of their time.)
typedef vf vf_in_memory __attribute__((aligned(4), may_alias));
typedef vi vi_in_memory __attribute__((aligned(4), may_alias));

struct i32x16 {
  vi p[parts];
};
struct f32x16 {
  vf p[parts];
};

#if defined(__clang__)
#define SALE_UNROLL _Pragma("unroll")
#else
#define SALE_UNROLL _Pragma("GCC unroll 8")
#endif
#define SALE_EACH SALE_UNROLL for (int i = 0; i < parts; ++i)

SALE_INLINE f32x16 splat(float x) {
  f32x16 r;
  SALE_EACH r.p[i] = x - vf{};  // the compiler knows that x - 0 is x; x + 0 is not, for -0, and would be computed
  return r;
}
SALE_INLINE i32x16 splat(int32_t x) {
  i32x16 r;
  SALE_EACH r.p[i] = vi{} + x;
  return r;
}
// Part by part: a copy of the whole struct would keep it in memory.
SALE_INLINE f32x16 load(const float* from) {
  f32x16 r;
  SALE_EACH r.p[i] = reinterpret_cast<const vf_in_memory*>(from)[i];
  return r;
}
SALE_INLINE i32x16 load(const int32_t* from) {
  i32x16 r;
  SALE_EACH r.p[i] = reinterpret_cast<const vi_in_memory*>(from)[i];
  return r;
}
SALE_INLINE void store(float* to, const f32x16& x) { SALE_EACH reinterpret_cast<vf_in_memory*>(to)[i] = x.p[i]; }
SALE_INLINE void store(int32_t* to, const i32x16& x) { SALE_EACH reinterpret_cast<vi_in_memory*>(to)[i] = x.p[i]; }

SALE_INLINE f32x16 operator+(const f32x16& a, const f32x16& b) {
  f32x16 r;
  SALE_EACH r.p[i] = a.p[i] + b.p[i];
  return r;
}
SALE_INLINE f32x16 operator-(const f32x16& a, const f32x16& b) {
  f32x16 r;
  SALE_EACH r.p[i] = a.p[i] - b.p[i];
  return r;
}
SALE_INLINE f32x16 operator*(const f32x16& a, const f32x16& b) {
  f32x16 r;
  SALE_EACH r.p[i] = a.p[i] * b.p[i];
  return r;
}
SALE_INLINE i32x16 operator+(const i32x16& a, const i32x16& b) {
  i32x16 r;
  SALE_EACH r.p[i] = (vi)((vu)a.p[i] + (vu)b.p[i]);
  return r;
}
SALE_INLINE i32x16 operator-(const i32x16& a, const i32x16& b) {
  i32x16 r;
  SALE_EACH r.p[i] = (vi)((vu)a.p[i] - (vu)b.p[i]);
  return r;
}
SALE_INLINE i32x16 operator&(const i32x16& a, const i32x16& b) {
  i32x16 r;
  SALE_EACH r.p[i] = a.p[i] & b.p[i];
  return r;
}
template <int n>
SALE_INLINE i32x16 shift_left(const i32x16& a) {
  i32x16 r;
  SALE_EACH r.p[i] = (vi)((vu)a.p[i] << n);
  return r;
}
template <int n>
SALE_INLINE i32x16 shift_right(const i32x16& a) {  // arithmetic
  i32x16 r;
  SALE_EACH r.p[i] = a.p[i] >> n;
  return r;
}

SALE_INLINE i32x16 bits(const f32x16& a) {
  i32x16 r;
  SALE_EACH r.p[i] = (vi)a.p[i];
  return r;
}
SALE_INLINE f32x16 as_float(const i32x16& a) {
  f32x16 r;
  SALE_EACH r.p[i] = (vf)a.p[i];
  return r;
}

// Exact for |a| < 2^24, rounded to nearest even beyond.
SALE_INLINE f32x16 to_float(const i32x16& a) {
  f32x16 r;
  SALE_EACH r.p[i] = __builtin_convertvector(a.p[i], vf);
  return r;
}
// One lane after the other, for instruction sets that have nothing better.
namespace by_lane {

SALE_INLINE float max_lane(const f32x16& a) {
  float v[16];
  store(v, a);
  float m = v[0];
  for (int i = 1; i < 16; ++i) m = v[i] > m ? v[i] : m;
  return m;
}
SALE_INLINE f32x16 from_bf16(const uint16_t* from) {
  uint32_t w[16];
  for (int i = 0; i < 16; ++i) w[i] = static_cast<uint32_t>(from[i]) << 16;
  f32x16 r;
  std::memcpy(&r, w, 64);
  return r;
}
SALE_INLINE void narrow(const i32x16& a, int8_t* to) {
  int32_t v[16];
  store(v, a);
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(v[i]);
}
SALE_INLINE void look_up(const int8_t* codes, const int8_t* table, int8_t* to) {
  for (int i = 0; i < 8; ++i) {
    to[2 * i] = table[codes[i] & 15];
    to[2 * i + 1] = table[codes[i] >> 4 & 15];
  }
}
SALE_INLINE void transpose_16x16(const uint32_t* const rows[16], int64_t word, uint32_t* to) {
  for (int w = 0; w < 16; ++w)
    for (int r = 0; r < 16; ++r) to[w * 16 + r] = rows[r][word + w];
}

}  // namespace by_lane

}  // namespace
}  // namespace sale
