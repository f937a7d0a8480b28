// Selection on AMX tiles. The walk is common/select.hpp's; here are the integer products.
//
//   A: 16 keys x 64 coordinates, straight from the index; B: 64 coordinates x 16 queries; C: 16 keys x 16 queries, i32
//
// Up to rank 64 a tile of queries is one B tile, and the four of a query tile stay in tiles 4..7 for a whole chunk. Per
// block of 32 keys: 2 loads of A, 8 products (128 cycles), 8 stores of C and 128 vector maxima, which overlap the next
// block's products. Floor 0.0625 cycles a score by the tile unit (rank 64; 0.125 at 128).
#include "cpu/amx/kernels.hpp"
#include "cpu/amx/tile.hpp"
#include "cpu/common/select.hpp"

namespace sale {
namespace {

struct ScanTiles {
  static constexpr int32_t bias = 0;
  static int32_t width(int32_t rank) { return (rank + 63) / 64 * 64; }
  static void begin() { tiles_begin(); }
  static void end() { tiles_end(); }

  static void hold(const uint32_t* q, int32_t width) {
    if (width != 64) return;
    tile_load<4>(q, 64);
    tile_load<5>(q + 256, 64);
    tile_load<6>(q + 512, 64);
    tile_load<7>(q + 768, 64);
  }

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

  static void maxima(const int8_t* keys, const uint32_t* q, int32_t width, const int32_t*, I16 m[panels]) {
    alignas(64) int32_t out[panels][k_block][16];
    if (width == 64) {
      held_products(keys, out);
    } else {
      for (int p = 0; p < panels; p += 2) two_panels(keys, q + p * 16 * (width / 4), width, out + p);
    }
    for (int p = 0; p < panels; ++p) {
      I16 a = load(out[p][0]), b = load(out[p][1]);
      for (int j = 2; j < k_block; j += 2) {
        a = max(a, load(out[p][j]));
        b = max(b, load(out[p][j + 1]));
      }
      m[p] = max(a, b);
    }
  }

private:
  template <int c, int b>
  SALE_INLINE void one(int32_t* to) {
    tile_zero<c>();
    dot_i8<c, 3, b>();
    tile_store<c>(to, 64);
  }
  SALE_INLINE void held_products(const int8_t* keys, int32_t out[panels][k_block][16]) {
    for (int half = 0; half < 2; ++half) {
      tile_load<3>(keys + half * 16 * 64, 64);
      one<0, 4>(out[0][half * 16]);
      one<1, 5>(out[1][half * 16]);
      one<2, 6>(out[2][half * 16]);
      one<0, 7>(out[3][half * 16]);
    }
  }
  SALE_INLINE void two_panels(const int8_t* keys, const uint32_t* q, int32_t width, int32_t (*out)[k_block][16]) {
    const uint32_t* second = q + 16 * (width / 4);
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    for (int32_t c = 0; c < width; c += 64) {
      tile_load<4>(keys + c, width);
      tile_load<6>(q + c / 4 * 16, 64);
      dot_i8<0, 4, 6>();
      tile_load<7>(second + c / 4 * 16, 64);
      dot_i8<1, 4, 7>();
      tile_load<5>(keys + 16 * width + c, width);
      dot_i8<2, 5, 6>();
      dot_i8<3, 5, 7>();
    }
    tile_store<0>(out[0][0], 64);
    tile_store<1>(out[1][0], 64);
    tile_store<2>(out[0][16], 64);
    tile_store<3>(out[1][16], 64);
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
