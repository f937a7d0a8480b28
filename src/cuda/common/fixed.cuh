// Fixed-point numbers and the functions that thresholds are made of: docs/numerics.md, section 3, to the bit.
#pragma once

#include <cstdint>

namespace sale::cuda {

constexpr float smallest = 0x1p-100f;

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// Two parts of a coordinate, x = (128 high + low) rho.
struct Digits {
  int high, low;
};
__device__ __forceinline__ Digits digits(float x, float factor) {
  const int code = __float2int_rn(__fmul_rn(x, factor));
  const int high = (code + 64) >> 7;
  return {high, code - 128 * high};
}
struct Rho {
  float rho, factor;
};
__device__ __forceinline__ Rho rho_of(float largest, bool finite) {
  if (!finite) return {not_a_number(), 0.0f};
  if (largest < smallest) return {0.0f, 0.0f};
  return {__fdiv_rn(largest, 16256.0f), __fdiv_rn(16256.0f, largest)};
}

__device__ __forceinline__ float defined_exp2(float x) {
  if (x < -126.0f) return 0;
  const float n = rintf(x), f = __fsub_rn(x, n);
  float y = 1.535336206e-04f;
  y = __fadd_rn(__fmul_rn(y, f), 1.339887452e-03f);
  y = __fadd_rn(__fmul_rn(y, f), 9.618437358e-03f);
  y = __fadd_rn(__fmul_rn(y, f), 5.550332471e-02f);
  y = __fadd_rn(__fmul_rn(y, f), 2.402264791e-01f);
  y = __fadd_rn(__fmul_rn(y, f), 6.931472029e-01f);
  y = __fadd_rn(__fmul_rn(y, f), 1.0f);
  return __fmul_rn(y, __int_as_float((static_cast<int>(n) + 127) << 23));
}

__device__ inline double defined_ln(double x) {
  int e;
  double z = frexp(x, &e);
  if (z < 0.70710678118654752440) {
    z = __dmul_rn(z, 2.0);
    e -= 1;
  }
  const double t = __ddiv_rn(__dsub_rn(z, 1.0), __dadd_rn(z, 1.0)), u = __dmul_rn(t, t);
  double series = __ddiv_rn(1.0, 17.0);
  for (int k = 15; k >= 1; k -= 2) series = __dadd_rn(__ddiv_rn(1.0, k), __dmul_rn(u, series));
  const double ln2 = __longlong_as_double(0x3fe62e42fefa39efll);
  return __dadd_rn(__dmul_rn(e, ln2), __dmul_rn(__dmul_rn(2.0, t), series));
}

}  // namespace sale::cuda
