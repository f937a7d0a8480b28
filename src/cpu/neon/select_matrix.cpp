// Selection by 8-bit matrix products. The walk is common/select.hpp's; here are the integer products.
//
// Per block of 32 keys and 64 queries at rank 64: 4096 products of 32, 2048 loads of tiles, 512 vector maxima. Floor
// 1/32 instruction a score and coordinate: 2 a score at rank 64, of which a core does two to four a cycle.
#include "cpu/common/select.hpp"
#include "cpu/common/tables.hpp"
#include "cpu/neon/pairs.hpp"

namespace sale {
namespace {

struct ScanPairs {
  static constexpr int32_t bias = 0;
  static int32_t width(int32_t rank) { return rank; }
  static void begin() {}
  static void end() {}

  static void products(const int8_t* keys, const uint32_t* panel, int32_t width, const int32_t*, int32_t* out) {
    alignas(64) int8_t k[k_block * 256], q[16 * 256];
    pair_keys(keys, width, k);
    pair_panel(panel, width / 4, q);
    for (int64_t j = 0; j < k_block; j += tile_side)
      for (int64_t i = 0; i < 16; i += tile_side) {
        int32x4_t sums[pair_tile][pair_tile];
        multiply(k + j * width, q + i * width, width, sums);
        store_pairs(sums, out + j * 16 + i, 16);
      }
  }

  static void maxima(const int8_t* keys, int64_t blocks, const uint32_t* q, int32_t width, const int32_t*,
                     i32x16 (*m)[panels]) {
    alignas(64) int8_t k[k_block * 256], pairs[q_block * 256];
    for (int p = 0; p < panels; ++p) pair_panel(q + p * 4 * width, width / 4, pairs + p * 16 * width);
    for (int64_t b = 0; b < blocks; ++b, keys += k_block * width) {
      pair_keys(keys, width, k);
      for (int64_t i = 0; i < q_block; i += tile_side) {
        int32x4_t top[pair_tile];
        for (int c = 0; c < pair_tile; ++c) top[c] = vdupq_n_s32(INT32_MIN);
        for (int64_t j = 0; j < k_block; j += tile_side) {
          int32x4_t sums[pair_tile][pair_tile];
          multiply(k + j * width, pairs + i * width, width, sums);
          for (int r = 0; r < pair_tile; ++r)
            for (int c = 0; c < pair_tile; ++c) top[c] = vmaxq_s32(top[c], sums[r][c]);
        }
        // Of each register, the even keys' and the odd keys' maxima of two queries.
        vi* to = m[b][i / 16].p + i % 16 / 4;
        for (int c = 0; c < pair_tile; c += 2)
          to[c / 2] = (vi)vcombine_s32(vmax_s32(vget_low_s32(top[c]), vget_high_s32(top[c])),
                                       vmax_s32(vget_low_s32(top[c + 1]), vget_high_s32(top[c + 1])));
      }
    }
  }

private:
  SALE_INLINE void pair_keys(const int8_t* keys, int32_t width, int8_t* to) {
    for (int64_t j = 0; j < k_block; j += 2) pair_rows(keys + j * width, keys + (j + 1) * width, width, to + j * width);
  }
  SALE_INLINE void multiply(const int8_t* k, const int8_t* q, int32_t width, int32x4_t (&sums)[pair_tile][pair_tile]) {
    zero_pairs<PairsI8>(sums);
    multiply_pairs<PairsI8>(k, 2 * width, q, 2 * width, width / 8, sums);
  }
};

}  // namespace

namespace neon {

size_t select_scratch_matrix(const Shape& s, int64_t tiles) { return Select<ScanPairs>::scratch(s, tiles); }
void select_matrix(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
  Select<ScanPairs>::item(h, begin, end, scratch);
}

}  // namespace neon
}  // namespace sale
