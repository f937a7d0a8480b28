// What src/cuda/ptx/convert.cuh says, emulated.
#pragma once

#include "language.hpp"

namespace sale::ptx {

inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline uint16_t to_e4m3_pair(float low, float high) {
  const auto code = [](float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); };
  return static_cast<uint16_t>(code(low) | code(high) << 8);
}

}  // namespace sale::ptx
