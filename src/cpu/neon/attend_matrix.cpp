// Attention by matrix products: bf16 tensors by bf16 ones, INT8 scores of any tensors by 8-bit ones. The walk is
// common/attend.hpp's; here are the two products.
//
//   Q, K     pairs of rows as pairs.hpp has them; a K block is 16 pairs
//   V        pairs of coordinates: [d/2][8 steps of 4 keys][2 coordinates][4 keys]
//   P        rows as the walk leaves them, paired once a run (8 KiB)
//
// Floor per score at d = 128: 8 + 8 bf16 products of 16, or 4 of 32 and 8, where f32 has 32 + 32 of 4.
#include "cpu/common/attend.hpp"
#include "cpu/common/tables.hpp"
#include "cpu/neon/pairs.hpp"

namespace sale {
namespace {

// C[rows, columns] = A B^T over `bytes` of depth.
template <class Pairs>
SALE_INLINE void multiply_all(int64_t rows, const void* a, int64_t columns, const void* b, int64_t bytes, void* c,
                              int64_t ldc) {
  const char *at = static_cast<const char*>(a), *bt = static_cast<const char*>(b);
  for (int64_t j = 0; j < columns; j += tile_side)
    for (int64_t i = 0; i < rows; i += tile_side) {
      typename Pairs::Sum sums[pair_tile][pair_tile];
      zero_pairs<Pairs>(sums);
      multiply_pairs<Pairs>(at + i * bytes, 2 * bytes, bt + j * bytes, 2 * bytes, bytes / 8, sums);
      store_pairs(sums, static_cast<typename Pairs::Out*>(c) + i * ldc + j, ldc);
    }
}

struct ScoreBf16 {
  using Q = uint16_t;
  static int64_t k_words(int32_t d) { return k_block * d / 2; }
  static void load_q(const HeadGroup& h, int64_t at, int64_t rows, int64_t padded, Q* to, float*) {
    const int32_t d = h.shape.head_dim;
    for (int64_t r = 0; r < padded; r += 2)
      pair_rows(row(h.q, at + r * h.q_token, r < rows), row(h.q, at + (r + 1) * h.q_token, r + 1 < rows), d * 2,
                to + r * d);
  }
  static void pack_k(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    const int32_t d = h.shape.head_dim;
    for (int64_t j = 0; j < k_block; j += 2)
      pair_rows(row(h.k, (key + j) * h.k_token, j < keys), row(h.k, (key + j + 1) * h.k_token, j + 1 < keys), d * 2,
                to + j * d / 2);
  }
  static void scores(const HeadGroup& h, int64_t rows, const Q* q, const float*, const uint32_t* const* k, int blocks,
                     float* s) {
    for (int b = 0; b < blocks; ++b)
      multiply_all<PairsBf16>(rows, q, k_block, k[b], h.shape.head_dim * 2, s + b * k_block, run_keys);
  }

private:
  static const char* row(const void* base, int64_t at, bool present) {
    return present ? element(base, SALE_BF16, at) : nullptr;
  }
};

struct ScoreI8Pairs : Int8Codes {
  static void load_q(const HeadGroup& h, int64_t at, int64_t rows, int64_t padded, Q* to, float* scale) {
    const int32_t d = h.shape.head_dim;
    Int8Codes::load_q(h, at, rows, padded, to, scale, 0);
    for (int64_t r = 0; r < padded; r += 2) {
      alignas(64) int8_t two[2 * 256];
      std::memcpy(two, to + r * d, static_cast<size_t>(2 * d));
      pair_rows(two, two + d, d, to + r * d);
    }
  }
  static void pack_k(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    const int32_t d = h.shape.head_dim;
    alignas(64) uint32_t packed[k_block * 256 / 4 + tail];
    Int8Codes::pack_k(h, key, keys, packed, 0);
    for (int64_t p = 0; p < k_block * d / 4; p += 16 * d / 4) pair_panel(packed + p, d / 4, to + p);
    std::memcpy(to + k_block * d / 4, packed + k_block * d / 4, tail * 4);
  }
  static void scores(const HeadGroup& h, int64_t rows, const Q* q, const float* q_scale, const uint32_t* const* k,
                     int blocks, float* s) {
    const int32_t d = h.shape.head_dim;
    for (int b = 0; b < blocks; ++b) {
      multiply_all<PairsI8>(rows, q, k_block, k[b], d, s + b * k_block, run_keys);
      dequantize(rows, q_scale, k_scale(k[b], d), s + b * k_block);
    }
  }
};

struct MixBf16 {
  using P = uint16_t;
  static constexpr int degree = 4;
  static int64_t v_words(int32_t d) { return k_block * d / 2; }
  static void pack_v(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    const int32_t d = h.shape.head_dim;
    constexpr int64_t steps = k_block / 4;
    for (int64_t s = 0; s < steps; ++s)
      for (int32_t c = 0; c < d; c += 8) {
        uint16x8_t x[4];
        for (int64_t i = 0; i < 4; ++i) {
          const int64_t j = 4 * s + i;
          x[i] = j < keys ? vreinterpretq_u16_u64(load_pair(element(h.v, SALE_BF16, (key + j) * h.v_token + c)))
                          : vdupq_n_u16(0);
        }
        const uint32x4_t a = vreinterpretq_u32_u16(vzip1q_u16(x[0], x[1]));
        const uint32x4_t b = vreinterpretq_u32_u16(vzip1q_u16(x[2], x[3]));
        const uint32x4_t e = vreinterpretq_u32_u16(vzip2q_u16(x[0], x[1]));
        const uint32x4_t f = vreinterpretq_u32_u16(vzip2q_u16(x[2], x[3]));
        char* at = reinterpret_cast<char*>(to) + (c / 2 * steps + s) * 16;
        store_pair(at, vreinterpretq_u64_u32(vzip1q_u32(a, b)));
        store_pair(at + steps * 16, vreinterpretq_u64_u32(vzip2q_u32(a, b)));
        store_pair(at + steps * 32, vreinterpretq_u64_u32(vzip1q_u32(e, f)));
        store_pair(at + steps * 48, vreinterpretq_u64_u32(vzip2q_u32(e, f)));
      }
  }
  SALE_INLINE void put(P* to, const f32x16& a, const f32x16& b) {
    put(to, a);
    put(to + 16, b);
  }
  static void mix(const HeadGroup& h, int64_t rows, const P* p, const uint32_t* const* v, int blocks, float* o) {
    constexpr int64_t steps = k_block / 4, p_pair = 4 * run_keys;
    const int64_t d = h.shape.head_dim;
    alignas(64) P paired[strip_rows * run_keys];
    for (int64_t r = 0; r < rows; r += 2)
      pair_rows(p + r * run_keys, p + (r + 1) * run_keys, blocks * k_block * 2, paired + r * run_keys);
    for (int64_t c = 0; c < d; c += tile_side)
      for (int64_t r = 0; r < rows; r += tile_side) {
        float32x4_t sums[pair_tile][pair_tile];
        load_pairs(sums, o + r * d + c, d);
        for (int b = 0; b < blocks; ++b)
          multiply_pairs<PairsBf16>(paired + r * run_keys + b * 2 * k_block, p_pair, v[b] + c / 2 * steps * 4,
                                    steps * 16, steps, sums);
        store_pairs(sums, o + r * d + c, d);
      }
  }

private:
  SALE_INLINE void put(P* to, const f32x16& x) {
    for (int i = 0; i < 4; i += 2) {
      const bfloat16x8_t low = vcvtq_low_bf16_f32((float32x4_t)x.p[i]);
      vst1q_u16(to + 4 * i, vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(low, (float32x4_t)x.p[i + 1])));
    }
  }
};

using Bf16 = AttendPair<Attend<ScoreBf16, MixBf16>, Attend<ScoreI8Pairs, MixBf16>>;
using I8 = Attend<ScoreI8Pairs, MixF32>;

}  // namespace

namespace neon {

size_t attend_scratch_matrix(const Shape& s, int64_t tiles) {
  if (s.dtype == SALE_BF16) return Bf16::scratch(s, tiles);
  return s.compute == SALE_COMPUTE_INT8 ? I8::scratch(s, tiles) : kernels_dotprod.attend_scratch(s, tiles);
}
void attend_matrix(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
  if (h.shape.dtype == SALE_BF16) return Bf16::item(h, begin, end, scratch);
  if (h.shape.compute == SALE_COMPUTE_INT8) return I8::item(h, begin, end, scratch);
  kernels_dotprod.attend(h, begin, end, scratch);
}

}  // namespace neon
}  // namespace sale
