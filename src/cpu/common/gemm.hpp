// The register-tiled product behind every non-AMX kernel: C[rows, 16 * panels] (+)= A[rows, words] * B, where a "word"
// is 32 bits: one f32, two bf16 or four int8, and B is packed in panels [words][16 columns]. What multiplies two words
// is the Dot policy; the tile's shape follows from the number of registers.
#pragma once

#include "cpu/common/simd.hpp"

namespace sale {
namespace {

#if defined(__AVX512F__)
constexpr int tile_rows = 8, tile_panels = 2;  // 16 accumulators of 32 registers
#elif defined(__AVX__)
constexpr int tile_rows = 4, tile_panels = 1;  // 8 of 16
#else
constexpr int tile_rows = 2, tile_panels = 1;  // 8 of 16
#endif
constexpr int64_t row_step = 8;  // callers pad rows to this

struct DotF32 {
  using Acc = F16;
  using Word = float;
  SALE_INLINE Acc zero() { return splat(0.0f); }
  SALE_INLINE Acc step(const Acc& acc, float a, const float* b) { return fused(splat(a), load(b), acc); }
};

#if defined(__AVX512BF16__)
struct DotBf16 {
  using Acc = F16;
  using Word = uint32_t;
  SALE_INLINE Acc zero() { return splat(0.0f); }
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    Acc r;
    r.p[0] = (vf)_mm512_dpbf16_ps((__m512)acc.p[0], (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                  (__m512bh)_mm512_loadu_si512(b));
    return r;
  }
};
#endif

// Four signed 8-bit products added to each lane. Where the instruction wants its first factor unsigned, the caller
// gives it with a_bias added (one xor with 0x80808080) and takes a_bias * sum(b) off the result.
struct DotI8 {
  using Acc = I16;
  using Word = uint32_t;
#if defined(__AVX512VNNI__)
  static constexpr int32_t a_bias = 128;
#else
  static constexpr int32_t a_bias = 0;
#endif
  SALE_INLINE Acc zero() { return splat(int32_t{0}); }
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    Acc r;
#if defined(__AVX512VNNI__)
    r.p[0] = (vi)_mm512_dpbusd_epi32((__m512i)acc.p[0], _mm512_set1_epi32(static_cast<int>(a)), _mm512_loadu_si512(b));
#elif defined(__AVX2__)
    // |b| unsigned times a with b's sign: pairs stay below 2 * 127 * 127, inside 16 bits.
    const __m256i av = _mm256_set1_epi32(static_cast<int>(a)), one = _mm256_set1_epi16(1);
    SALE_EACH {
      const __m256i bv = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 8 * i));
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bv), _mm256_sign_epi8(av, bv));
      r.p[i] = acc.p[i] + (vi)_mm256_madd_epi16(pairs, one);
    }
#elif defined(__SSE2__)
    // Even and odd bytes as 16-bit numbers: two multiply-adds of pairs.
    const __m128i av = _mm_set1_epi32(static_cast<int>(a));
    const __m128i a_even = _mm_srai_epi16(_mm_slli_epi16(av, 8), 8), a_odd = _mm_srai_epi16(av, 8);
    SALE_EACH {
      const __m128i bv = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 4 * i));
      const __m128i even = _mm_madd_epi16(a_even, _mm_srai_epi16(_mm_slli_epi16(bv, 8), 8));
      const __m128i odd = _mm_madd_epi16(a_odd, _mm_srai_epi16(bv, 8));
      r.p[i] = acc.p[i] + (vi)_mm_add_epi32(even, odd);
    }
#else
    I16 w;
    std::memcpy(&w, b, 64);
    r = acc;
    for (int t = 0; t < 4; ++t) {
      const int32_t at = static_cast<int8_t>(a >> (8 * t));
      SALE_EACH r.p[i] += at * ((w.p[i] << (24 - 8 * t)) >> 24);
    }
#endif
    return r;
  }
};

// One register tile. B comes in segments (key blocks) of `words` words each; A's words of segment s start at s * words.
template <class Dot, int R, int P>
SALE_INLINE void multiply_tile(const typename Dot::Word* a, int64_t lda, const typename Dot::Word* const* b,
                               int segments, int64_t words, int64_t column, typename Dot::Acc acc[R][P]) {
  for (int s = 0; s < segments; ++s) {
    const typename Dot::Word* bp = b[s] + column * words;
    const typename Dot::Word* ap = a + s * words;
    for (int64_t w = 0; w < words; ++w)
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) acc[r][p] = Dot::step(acc[r][p], ap[r * lda + w], bp + (p * words + w) * 16);
  }
}

// C[rows, 16 * panels] = sum over segments, added to C when `accumulate`. rows a multiple of row_step, panels of
// tile_panels. init (or null): start values per column instead of zero.
template <class Dot, class Out>
SALE_INLINE void multiply(int64_t rows, const typename Dot::Word* a, int64_t lda, const typename Dot::Word* const* b,
                          int segments, int64_t words, int64_t panels, Out* c, int64_t ldc, bool accumulate,
                          const Out* init = nullptr) {
  constexpr int R = tile_rows, P = tile_panels;
  for (int64_t p = 0; p < panels; p += P) {
    for (int64_t r = 0; r < rows; r += R) {
      typename Dot::Acc acc[R][P];
      Out* at = c + r * ldc + p * 16;
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < P; ++j)
          acc[i][j] = accumulate        ? load(at + i * ldc + j * 16)
                      : init != nullptr ? load(init + (p + j) * 16)
                                        : Dot::zero();
      multiply_tile<Dot, R, P>(a + r * lda, lda, b, segments, words, p * 16, acc);
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < P; ++j) store(at + i * ldc + j * 16, acc[i][j]);
    }
  }
}

}  // namespace
}  // namespace sale
