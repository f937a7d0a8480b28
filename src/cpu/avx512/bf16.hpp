// bf16 operands as AVX512-BF16 and AMX want them: words of two neighbours along the summed axis.
#pragma once

#include "cpu/common/attend.hpp"

namespace sale {
namespace {

// Q rows as they are; K blocks [2 panels][d/2 words][16 keys].
struct PackedBf16Keys {
  using Q = uint16_t;
  static int64_t k_words(int32_t d) { return k_block * d / 2; }
  static void load_q(const HeadGroup& h, int64_t at, int64_t rows, int64_t padded, Q* to, float*) {
    const size_t d = static_cast<size_t>(h.shape.head_dim);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(to + static_cast<size_t>(r) * d, element(h.q, SALE_BF16, at + r * h.q_token), d * 2);
    std::memset(to + static_cast<size_t>(rows) * d, 0, static_cast<size_t>(padded - rows) * d * 2);
  }
  static void pack_k(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    alignas(64) static constexpr uint32_t zeros[128] = {};
    // Tensors of 16-bit elements need only 2-byte alignment; an odd row is copied.
    alignas(64) uint32_t copy[k_block][128];
    const uint32_t* rows[k_block];
    const size_t bytes = static_cast<size_t>(h.shape.head_dim) * 2;
    for (int64_t j = 0; j < k_block; ++j) {
      const char* from = element(h.k, SALE_BF16, (key + j) * h.k_token);
      if (j >= keys) {
        rows[j] = zeros;
      } else if (reinterpret_cast<uintptr_t>(from) % 4 == 0) {
        rows[j] = reinterpret_cast<const uint32_t*>(from);
      } else {
        std::memcpy(copy[j], from, bytes);
        rows[j] = copy[j];
      }
    }
    pack_panels(rows, 2, h.shape.head_dim / 2, to);
  }
};

// V blocks [d/16 panels][16 words of two keys][16 columns]; P rows of bf16.
struct PackedBf16Values {
  using P = uint16_t;
  static constexpr int degree = 4;
  static int64_t v_words(int32_t d) { return k_block * d / 2; }
  static void pack_v(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    const int32_t d = h.shape.head_dim;
    for (int64_t w = 0; w < k_block / 2; ++w) {
      const char* a = element(h.v, SALE_BF16, (key + 2 * w) * h.v_token);
      const char* b = element(h.v, SALE_BF16, (key + 2 * w + 1) * h.v_token);
      for (int32_t c = 0; c < d; c += 16) {
        __m256i x = _mm256_setzero_si256(), y = x;
        if (2 * w < keys) x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + 2 * c));
        if (2 * w + 1 < keys) y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 2 * c));
        const __m512i words =
            _mm512_or_si512(_mm512_cvtepu16_epi32(x), _mm512_slli_epi32(_mm512_cvtepu16_epi32(y), 16));
        _mm512_storeu_si512(to + c * (k_block / 2) + w * 16, words);
      }
    }
  }
  SALE_INLINE void put(P* to, const f32x16& a, const f32x16& b) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)b.p[0], (__m512)a.p[0]);
    std::memcpy(to, &both, 64);
  }
};

}  // namespace
}  // namespace sale
