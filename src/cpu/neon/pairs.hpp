// Matrix products of 8-bit integers and of bf16: an instruction takes two rows and two columns, eight bytes of each,
// and adds to 2 x 2 sums.
//
//   operands  [pairs of rows][bytes / 8][2 rows][8 bytes]: a register is eight bytes of both; rows of A or columns of B
//   sums      of rows i, i + 1 and columns j, j + 1: {ij, ij', i'j, i'j'}
//   tile      4 pairs of rows x 4 pairs of columns: 16 sums of 32 registers, and per step of eight bytes 8 loads for 16
//             products of 32 (int8) or 16 (bf16) each
#pragma once

#include "cpu/common/simd.hpp"

namespace sale {
namespace {

struct PairsI8 {
  using Sum = int32x4_t;
  using Out = int32_t;
  SALE_INLINE Sum zero() { return vdupq_n_s32(0); }
  SALE_INLINE Sum step(Sum s, uint64x2_t a, uint64x2_t b) {
    return vmmlaq_s32(s, vreinterpretq_s8_u64(a), vreinterpretq_s8_u64(b));
  }
};
struct PairsBf16 {
  using Sum = float32x4_t;
  using Out = float;
  SALE_INLINE Sum zero() { return vdupq_n_f32(0); }
  SALE_INLINE Sum step(Sum s, uint64x2_t a, uint64x2_t b) {
    return vbfmmlaq_f32(s, vreinterpretq_bf16_u64(a), vreinterpretq_bf16_u64(b));
  }
};

constexpr int pair_tile = 4;                  // pairs of rows, and of columns
constexpr int64_t tile_side = 2 * pair_tile;  // rows, columns

SALE_INLINE uint64x2_t load_pair(const void* at) {
  return vreinterpretq_u64_u8(vld1q_u8(static_cast<const uint8_t*>(at)));
}
SALE_INLINE void store_pair(void* at, uint64x2_t x) { vst1q_u8(static_cast<uint8_t*>(at), vreinterpretq_u8_u64(x)); }

// Two rows of `bytes`, a multiple of 16, to a pair; a null row is zeros.
SALE_INLINE void pair_rows(const void* a, const void* b, int64_t bytes, void* to) {
  for (int64_t c = 0; c < bytes; c += 16) {
    const uint64x2_t x = a == nullptr ? vdupq_n_u64(0) : load_pair(static_cast<const char*>(a) + c);
    const uint64x2_t y = b == nullptr ? vdupq_n_u64(0) : load_pair(static_cast<const char*>(b) + c);
    store_pair(static_cast<char*>(to) + 2 * c, vzip1q_u64(x, y));
    store_pair(static_cast<char*>(to) + 2 * c + 16, vzip2q_u64(x, y));
  }
}
// A panel of transpose.hpp, [words][16 rows], to its eight pairs.
SALE_INLINE void pair_panel(const uint32_t* panel, int64_t words, void* to) {
  for (int64_t w = 0; w < words; w += 2, panel += 32) {
    for (int i = 0; i < 4; ++i) {
      const uint32x4_t x = vld1q_u32(panel + 4 * i), y = vld1q_u32(panel + 16 + 4 * i);
      char* at = static_cast<char*>(to) + 2 * i * words * 8 + w * 8;
      store_pair(at, vreinterpretq_u64_u32(vzip1q_u32(x, y)));
      store_pair(at + words * 8, vreinterpretq_u64_u32(vzip2q_u32(x, y)));
    }
  }
}

// sums += A B over `steps` of eight bytes; a and b: bytes from one pair to the next.
template <class Pairs>
SALE_INLINE void multiply_pairs(const void* a, int64_t a_pair, const void* b, int64_t b_pair, int64_t steps,
                                typename Pairs::Sum (&sums)[pair_tile][pair_tile]) {
  const char *at = static_cast<const char*>(a), *bt = static_cast<const char*>(b);
  for (int64_t s = 0; s < steps; ++s, at += 16, bt += 16) {
    uint64x2_t x[pair_tile], y[pair_tile];
    for (int i = 0; i < pair_tile; ++i) x[i] = load_pair(at + i * a_pair), y[i] = load_pair(bt + i * b_pair);
    for (int i = 0; i < pair_tile; ++i)
      for (int j = 0; j < pair_tile; ++j) sums[i][j] = Pairs::step(sums[i][j], x[i], y[j]);
  }
}

template <class Pairs>
SALE_INLINE void zero_pairs(typename Pairs::Sum (&sums)[pair_tile][pair_tile]) {
  for (int i = 0; i < pair_tile; ++i)
    for (int j = 0; j < pair_tile; ++j) sums[i][j] = Pairs::zero();
}

// Sums to and from rows, 32-bit numbers both.
template <class Sum>
SALE_INLINE void store_pairs(const Sum (&sums)[pair_tile][pair_tile], void* to, int64_t row_words) {
  for (int i = 0; i < pair_tile; ++i)
    for (int j = 0; j < pair_tile; j += 2) {
      const uint64x2_t x = (uint64x2_t)sums[i][j], y = (uint64x2_t)sums[i][j + 1];
      uint32_t* at = static_cast<uint32_t*>(to) + 2 * i * row_words + 2 * j;
      store_pair(at, vzip1q_u64(x, y));
      store_pair(at + row_words, vzip2q_u64(x, y));
    }
}
template <class Sum>
SALE_INLINE void load_pairs(Sum (&sums)[pair_tile][pair_tile], const void* from, int64_t row_words) {
  for (int i = 0; i < pair_tile; ++i)
    for (int j = 0; j < pair_tile; j += 2) {
      const uint32_t* at = static_cast<const uint32_t*>(from) + 2 * i * row_words + 2 * j;
      const uint64x2_t x = load_pair(at), y = load_pair(at + row_words);
      sums[i][j] = (Sum)vzip1q_u64(x, y);
      sums[i][j + 1] = (Sum)vzip2q_u64(x, y);
    }
}

}  // namespace
}  // namespace sale
