// 16-bit tensors as floats, and e4m3 codes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "cuda/common/kernels.hpp"

namespace sale::cuda {

constexpr uint8_t e4m3_nan = 0x7f;
constexpr float e4m3_most = 448.0f;

__device__ __forceinline__ float low_element(uint32_t pair, bool bf16) {
  return bf16 ? __uint_as_float(pair << 16) : __half2float(__ushort_as_half(static_cast<uint16_t>(pair)));
}
__device__ __forceinline__ float high_element(uint32_t pair, bool bf16) {
  return bf16 ? __uint_as_float(pair & 0xffff0000u) : __half2float(__ushort_as_half(static_cast<uint16_t>(pair >> 16)));
}
__device__ __forceinline__ uint32_t to_pair(float low, float high, bool bf16) {
  if (bf16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
// To nearest, ties to even; beyond 448 it saturates.
__device__ __forceinline__ uint8_t to_e4m3(float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); }
__device__ __forceinline__ float from_e4m3(uint8_t x) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(x, __NV_E4M3)));
}

}  // namespace sale::cuda
