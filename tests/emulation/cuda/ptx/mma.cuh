// What src/cuda/ptx/mma.cuh says, emulated: lanes hand their fragments to the warp, and every lane makes its four sums.
// f32 sums are rounded one by one, which tensor cores do not do; f16 sums after every eight products.
#pragma once

#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/elements.cuh"

namespace sale::ptx {
namespace fragments {

inline float element(uint32_t word, int i, Bf16) { return __uint_as_float(word >> 16 * i << 16); }
inline float element(uint32_t word, int i, F16) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16 * i)));
}
inline float element(uint32_t word, int i, E4m3) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<uint8_t>(word >> 8 * i), __NV_E4M3)));
}
inline int32_t element(uint32_t word, int i, S8) { return static_cast<int8_t>(word >> 8 * i); }
inline int32_t element(uint32_t word, int i, S4) { return static_cast<int32_t>(word >> 4 * i << 28) >> 28; }

template <class T>
constexpr int of_word = std::is_same_v<T, S4>                              ? 8
                        : std::is_same_v<T, S8> || std::is_same_v<T, E4m3> ? 4
                                                                           : 2;

// d[e] = c(e) + the sum for the lane's place e; after(sum): what becomes of it after each half of the products.
template <class T, class Sum, class C, class After>
void product(Sum* d, const uint32_t* a, uint32_t b0, uint32_t b1, T type, C&& c, After&& after) {
  const uint64_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const emulation::Row* rows = emulation::exchange(words, 6);
  const int group = emulation::lane() / 4, quad = emulation::lane() % 4;
  Sum sums[4];
  for (int e = 0; e < 4; ++e) {
    const int column = 2 * quad + e % 2;
    sums[e] = c(e);
    for (int half = 0; half < 2; ++half) {
      for (int q = 0; q < 4; ++q) {
        const auto left = static_cast<uint32_t>(rows[4 * group + q][2 * half + e / 2]);
        const auto right = static_cast<uint32_t>(rows[4 * column + q][4 + half]);
        for (int i = 0; i < of_word<T>; ++i) sums[e] += element(left, i, type) * element(right, i, type);
      }
      sums[e] = after(sums[e]);
    }
  }
  for (int e = 0; e < 4; ++e) d[e] = sums[e];
}
template <class T, class Sum, class C>
void product(Sum* d, const uint32_t* a, uint32_t b0, uint32_t b1, T type, C&& c) {
  product(d, a, b0, b1, type, c, [](Sum sum) { return sum; });
}

}  // namespace fragments

template <class T, class Sum>
void mma(Sum* d, const uint32_t* a, uint32_t b0, uint32_t b1, T type) {
  fragments::product(d, a, b0, b1, type, [&](int e) { return d[e]; });
}
inline void mma(uint32_t* d, const uint32_t* a, uint32_t b0, uint32_t b1, F16 type) {
  float sums[4];
  fragments::product(
      sums, a, b0, b1, type, [&](int e) { return fragments::element(d[e / 2], e % 2, F16{}); },
      [](float sum) { return __half2float(__float2half_rn(sum)); });
  for (int r = 0; r < 2; ++r) {
    const __half2 pair = __floats2half2_rn(sums[2 * r], sums[2 * r + 1]);
    std::memcpy(&d[r], &pair, 4);
  }
}
inline void mma_from(int32_t c, int32_t* d, const uint32_t* a, uint32_t b0, uint32_t b1, S8 type) {
  fragments::product(d, a, b0, b1, type, [&](int) { return c; });
}
inline void mma_from(int32_t c0, int32_t c1, int32_t* d, const uint32_t* a, uint32_t b0, uint32_t b1, S4 type) {
  fragments::product(d, a, b0, b1, type, [&](int e) { return e % 2 == 0 ? c0 : c1; });
}

inline void load_matrices(uint32_t (&r)[4], uint32_t row) {
  const uint64_t word = row;
  const emulation::Row* rows = emulation::exchange(&word, 1);
  for (int i = 0; i < 4; ++i) {
    const char* from = emulation::pointer(static_cast<uint32_t>(rows[8 * i + emulation::lane() / 4][0]));
    std::memcpy(&r[i], from + 4 * (emulation::lane() % 4), 4);
  }
}
inline void load_transposed(uint32_t (&r)[4], uint32_t row) {
  const uint64_t word = row;
  const emulation::Row* rows = emulation::exchange(&word, 1);
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int k = 0; k < 2; ++k) {
      const char* from = emulation::pointer(static_cast<uint32_t>(rows[8 * i + emulation::lane() % 4 * 2 + k][0]));
      std::memcpy(&pair[k], from + 2 * (emulation::lane() / 4), 2);
    }
    r[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

}  // namespace sale::ptx
