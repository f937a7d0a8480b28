// Key blocks are packed by turning 32-bit words: element type and width do not matter to it.
#pragma once

#include "cpu/common/simd.hpp"

namespace sale {
namespace {

// to[w * 16 + r] = rows[r][w] for w < 16.
SALE_INLINE void transpose_16x16(const uint32_t* const rows[16], int64_t word, uint32_t* to) {
#if defined(__AVX512F__)
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
#else
  for (int w = 0; w < 16; ++w)
    for (int r = 0; r < 16; ++r) to[w * 16 + r] = rows[r][word + w];
#endif
}

// Panels of sixteen rows: to[panel][word][row], `words` a multiple of 4.
SALE_INLINE void pack_panels(const uint32_t* const* rows, int panels, int64_t words, uint32_t* to) {
  for (int p = 0; p < panels; ++p, to += words * 16) {
    const uint32_t* const* panel = rows + 16 * p;
    int64_t w = 0;
    for (; w + 16 <= words; w += 16) transpose_16x16(panel, w, to + w * 16);
    for (; w < words; ++w)
      for (int r = 0; r < 16; ++r) to[w * 16 + r] = panel[r][w];
  }
}

}  // namespace
}  // namespace sale
