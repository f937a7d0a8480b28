// Attention on AVX512-BF16: 32 products of bf16 an instruction, sums in f32.
#include "cpu/avx512/bf16.hpp"
#include "cpu/common/attend.hpp"
#include "cpu/common/tables.hpp"

namespace sale {
namespace {

struct DotBf16 {
  using Acc = f32x16;
  using Word = uint32_t;
  SALE_INLINE Acc zero() { return splat(0.0f); }
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    Acc r;
    r.p[0] = (vf)_mm512_dpbf16_ps((__m512)acc.p[0], (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                  (__m512bh)_mm512_loadu_si512(b));
    return r;
  }
};

struct ScoreBf16 : PackedBf16Keys {
  static void scores(const HeadGroup& h, int64_t rows, const Q* q, const float*, const uint32_t* const* k, int blocks,
                     float* s) {
    const int32_t words = h.shape.head_dim / 2;
    for (int b = 0; b < blocks; ++b)
      multiply<DotBf16>(rows, reinterpret_cast<const uint32_t*>(q), words, &k[b], 1, words, 2, s + b * k_block,
                        run_keys, false);
  }
};

struct MixBf16 : PackedBf16Values {
  static void mix(const HeadGroup& h, int64_t rows, const P* p, const uint32_t* const* v, int blocks, float* o) {
    const int32_t d = h.shape.head_dim;
    multiply<DotBf16>(rows, reinterpret_cast<const uint32_t*>(p), run_keys / 2, v, blocks, k_block / 2, d / 16, o, d,
                      true);
  }
};

}  // namespace

namespace avx512 {

using Bf16 = AttendPair<Attend<ScoreBf16, MixBf16>, Attend<ScoreI8, MixBf16>>;

size_t attend_scratch_bf16(const Shape& s, int64_t tiles) {
  return s.dtype == SALE_BF16 ? Bf16::scratch(s, tiles) : kernels.attend_scratch(s, tiles);
}
void attend_bf16(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
  if (h.shape.dtype != SALE_BF16) return kernels.attend(h, begin, end, scratch);
  Bf16::item(h, begin, end, scratch);
}

}  // namespace avx512
}  // namespace sale
