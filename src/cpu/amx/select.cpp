// Selection on AMX tiles. The walk is common/select.hpp's; here are the integer products.
//
//   A: 16 keys x 64 coordinates, straight from the index; B: 64 coordinates x 16 queries; C: 16 keys x 16 queries, i32
//
// Per block of 32 keys and 64 queries at rank 64: 6 tile loads (48 cycles), 8 products (128), 8 stores of C (128) and,
// for the block before, 128 vector maxima (64), all on different units. Floor 0.0625 cycles a score by the tile unit
// (rank 64; 0.125 at 128).
#include "cpu/common/select.hpp"
#include "cpu/amx/tile.hpp"
#include "cpu/common/tables.hpp"

namespace sale {
namespace {

struct ScanTiles {
  static constexpr int32_t bias = 0;
  static int32_t width(int32_t rank) { return (rank + 63) / 64 * 64; }
  static void begin() { tiles_begin(); }
  static void end() { tiles_end(); }

  static void products(const int8_t* keys, const uint32_t* panel, int32_t width, const int32_t*, int32_t* out) {
    tile_zero<0>();
    tile_zero<1>();
    for (int32_t c = 0; c < width; c += 64) {
      tile_load<4>(panel + c / 4 * 16, 64);
      tile_load<2>(keys + c, width);
      tile_load<3>(keys + 16 * width + c, width);
      dot_i8<0, 2, 4>();
      dot_i8<1, 3, 4>();
    }
    tile_store<0>(out, 64);
    tile_store<1>(out + 256, 64);
  }

  // The tile unit works on one block while the vector units reduce the one before: two buffers, alternating.
  static void maxima(const int8_t* keys, int64_t blocks, const uint32_t* q, int32_t width, const int32_t*,
                     i32x16 (*m)[panels]) {
    alignas(64) int32_t out[2][panels][k_block][16];
    for (int64_t b = 0; b <= blocks; ++b, keys += k_block * width) {
      Block *now = &out[b & 1], *before = &out[(b + 1) & 1];
      if (b == 0) {
        step<true, false>(keys, q, width, *now, *before, nullptr);
      } else if (b < blocks) {
        step<true, true>(keys, q, width, *now, *before, m[b - 1]);
      } else {
        step<false, true>(keys, q, width, *now, *before, m[b - 1]);
      }
    }
  }

private:
  using Block = int32_t[panels][k_block][16];

  SALE_INLINE i32x16 top_of(const int32_t (*rows)[16]) {
    i32x16 a = load(rows[0]), b = load(rows[1]);
    for (int j = 2; j < 16; j += 2) {
      a = max(a, load(rows[j]));
      b = max(b, load(rows[j + 1]));
    }
    return max(a, b);
  }

  // Panel p of this block into C tiles c and c + 1, panel p of the block before to its maximum. A product takes 52
  // cycles to come out and 16 to follow the next, so C tiles alternate in pairs; queries are read again for every block
  // (L1).
  template <bool multiply, bool reduce, int c>
  SALE_INLINE void panel(const int8_t* keys, const uint32_t* q, int32_t width, int32_t (*to)[16],
                         const int32_t (*from)[16], i32x16* m) {
    if constexpr (multiply) {
      tile_zero<c>();
      tile_zero<c + 1>();
      for (int32_t w = 0; w < width; w += 64) {
        tile_load<6>(q + w / 4 * 16, 64);
        if (width > 64) {
          tile_load<4>(keys + w, width);
          tile_load<5>(keys + 16 * width + w, width);
        }
        dot_i8<c, 4, 6>();
        dot_i8<c + 1, 5, 6>();
      }
      tile_store<c>(to[0], 64);
    }
    i32x16 top = splat(INT32_MIN);
    if constexpr (reduce) top = top_of(from);
    if constexpr (multiply) tile_store<c + 1>(to[16], 64);
    if constexpr (reduce) *m = max(top, top_of(from + 16));
  }

  template <bool multiply, bool reduce>
  SALE_INLINE void step(const int8_t* keys, const uint32_t* q, int32_t width, Block& now, const Block& before,
                        i32x16* m) {
    const int64_t next = 16 * (width / 4);
    if (multiply && width == 64) {  // one tile deep: the keys stay
      tile_load<4>(keys, 64);
      tile_load<5>(keys + 16 * 64, 64);
    }
    panel<multiply, reduce, 0>(keys, q, width, now[0], before[0], m);
    panel<multiply, reduce, 2>(keys, q + next, width, now[1], before[1], m + 1);
    panel<multiply, reduce, 0>(keys, q + 2 * next, width, now[2], before[2], m + 2);
    panel<multiply, reduce, 2>(keys, q + 3 * next, width, now[3], before[3], m + 3);
  }
};

}  // namespace

namespace amx {

size_t select_scratch(const Shape& s, int64_t tiles) { return Select<ScanTiles>::scratch(s, tiles); }
void select(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
  Select<ScanTiles>::item(h, begin, end, scratch);
}

}  // namespace amx
}  // namespace sale
