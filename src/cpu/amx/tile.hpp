// AMX, one instruction one function. Eight tiles of 16 rows of 64 bytes; every tile SALE uses is full.
//
//   dot_i8    C[16][16] i32 += A[16 rows][64 x i8]  * B[16 words][16 columns x 4 x i8]
//   dot_bf16  C[16][16] f32 += A[16 rows][32 x bf16] * B[16 words][16 columns x 2 x bf16]
//
// With SALE_AMX_EMULATE the same functions work on memory, so that everything built on them can be tested on machines
// without AMX (tests only; never part of the library).
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(SALE_AMX_EMULATE)
#include <immintrin.h>
#endif

namespace sale {
namespace {

#if defined(SALE_AMX_EMULATE)

struct Tiles {
  alignas(64) unsigned char bytes[8][16][64];
};
inline Tiles& tiles() {
  static thread_local Tiles t;
  return t;
}

template <class T>
T tile_at(int tile, int row, int i) {
  T v;
  std::memcpy(&v, &tiles().bytes[tile][row][static_cast<size_t>(i) * sizeof(T)], sizeof(T));
  return v;
}
inline float tile_bf16(int tile, int row, int i) {
  const uint32_t w = static_cast<uint32_t>(tile_at<uint16_t>(tile, row, i)) << 16;
  float f;
  std::memcpy(&f, &w, 4);
  return f;
}

static void tiles_begin() {}
static void tiles_end() {}
template <int t>
static void tile_zero() {
  std::memset(tiles().bytes[t], 0, 1024);
}
template <int t>
static void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tiles().bytes[t][r], static_cast<const char*>(from) + r * stride, 64);
}
template <int t>
static void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tiles().bytes[t][r], 64);
}
template <int c, int a, int b>
static void dot_i8() {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t sum = tile_at<int32_t>(c, m, n);
      for (int k = 0; k < 64; ++k) sum += tile_at<int8_t>(a, m, k) * tile_at<int8_t>(b, k / 4, 4 * n + k % 4);
      std::memcpy(&tiles().bytes[c][m][4 * n], &sum, 4);
    }
}
template <int c, int a, int b>
static void dot_bf16() {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < 32; k += 2) {
        even += tile_bf16(a, m, k) * tile_bf16(b, k / 2, 2 * n);
        odd += tile_bf16(a, m, k + 1) * tile_bf16(b, k / 2, 2 * n + 1);
      }
      const float sum = tile_at<float>(c, m, n) + (even + odd);
      std::memcpy(&tiles().bytes[c][m][4 * n], &sum, 4);
    }
}

#else

#define SALE_TILE static inline __attribute__((always_inline)) void

// Per thread and item: a few tens of cycles. The permission to use tiles was asked for at detection.
SALE_TILE tiles_begin() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}
SALE_TILE tiles_end() { _tile_release(); }

template <int t>
SALE_TILE tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(t));
}
template <int t>
SALE_TILE tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(t) : "memory");
}
template <int t>
SALE_TILE tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(t) : "memory");
}
template <int c, int a, int b>
SALE_TILE dot_i8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b>
SALE_TILE dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

#undef SALE_TILE

#endif

}  // namespace
}  // namespace sale
