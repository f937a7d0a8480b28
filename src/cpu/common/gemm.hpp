// The register-tiled product behind every non-AMX kernel: C[rows, 16 * panels] (+)= A[rows, words] * B, where a "word"
// is 32 bits: one f32, two bf16 or four int8, and B is packed in panels [words][16 columns]. What multiplies two words
// is the Dot policy; the register tile is the instruction set's (simd.hpp).
#pragma once

#include "cpu/common/simd.hpp"

namespace sale {
namespace {

constexpr int64_t row_step = 8;  // callers pad rows to this

struct DotF32 {
  using Acc = f32x16;
  using Word = float;
  SALE_INLINE Acc zero() { return splat(0.0f); }
  SALE_INLINE Acc step(const Acc& acc, float a, const float* b) { return fused(splat(a), load(b), acc); }
};

// One register tile. B comes in segments (key blocks) of `words` words each; A's words of segment s start at s * words.
// Unrolled by order: by itself GCC keeps NEON's sixteen accumulators in memory.
template <class Dot, int R, int P>
SALE_INLINE void multiply_tile(const typename Dot::Word* a, int64_t lda, const typename Dot::Word* const* b,
                               int segments, int64_t words, int64_t column, typename Dot::Acc acc[R][P]) {
  for (int s = 0; s < segments; ++s) {
    const typename Dot::Word* bp = b[s] + column * words;
    const typename Dot::Word* ap = a + s * words;
    for (int64_t w = 0; w < words; ++w) {
      SALE_UNROLL
      for (int r = 0; r < R; ++r) {
        SALE_UNROLL
        for (int p = 0; p < P; ++p) acc[r][p] = Dot::step(acc[r][p], ap[r * lda + w], bp + (p * words + w) * 16);
      }
    }
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
