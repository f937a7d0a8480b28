// Attention on AMX tiles. The walk is common/attend.hpp's; here are the two products.
//
//   tiles 0..3  C: [2 halves of 16 rows][2 panels of 16 columns]
//   tiles 4, 5  A: the strip's rows (Q or P), 16 x 64 bytes each
//   tiles 6, 7  B: a panel each (K or V, packed by avx512/bf16.hpp)
//
// Per 32 x 32 block of C and 64 bytes of depth: 4 loads of 8 cycles and 4 products of 16, so the tile unit is the limit
// (512 bf16 products a cycle) as long as panels come from L2 or nearer.
#include "cpu/amx/tile.hpp"
#include "cpu/avx512/bf16.hpp"
#include "cpu/common/tables.hpp"

namespace sale {
namespace {

struct Bf16Dot {
  template <int c, int a, int b>
  SALE_INLINE void step() {
    dot_bf16<c, a, b>();
  }
};
struct I8Dot {
  template <int c, int a, int b>
  SALE_INLINE void step() {
    dot_i8<c, a, b>();
  }
};

SALE_INLINE char* bytes(void* p) { return static_cast<char*>(p); }
SALE_INLINE const char* bytes(const void* p) { return static_cast<const char*>(p); }

// C[rows, 32] (+)= A[rows, segments * depth * 64 bytes] * B, rows 16 or 32; panel p of segment s starts at
// b[s] + (column panel + p) * depth tiles. Strides in bytes.
template <class Dot, bool two>
SALE_INLINE void multiply_tiles(const void* a, int64_t lda, const uint32_t* const* b, int segments, int64_t depth,
                                int64_t panel, void* c, int64_t ldc, bool accumulate) {
  constexpr int64_t tile = 1024;
  char *c0 = bytes(c), *c1 = c0 + 16 * ldc;
  if (accumulate) {
    tile_load<0>(c0, ldc);
    tile_load<1>(c0 + 64, ldc);
    if constexpr (two) {
      tile_load<2>(c1, ldc);
      tile_load<3>(c1 + 64, ldc);
    }
  } else {
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (two) {
      tile_zero<2>();
      tile_zero<3>();
    }
  }
  const char* at = bytes(a);
  for (int s = 0; s < segments; ++s) {
    const char* bp = bytes(b[s]) + panel * depth * tile;
    for (int64_t k = 0; k < depth; ++k, at += 64) {
      tile_load<4>(at, lda);
      tile_load<6>(bp + k * tile, 64);
      Dot::template step<0, 4, 6>();
      tile_load<7>(bp + (depth + k) * tile, 64);
      Dot::template step<1, 4, 7>();
      if constexpr (two) {
        tile_load<5>(at + 16 * lda, lda);
        Dot::template step<2, 5, 6>();
        Dot::template step<3, 5, 7>();
      }
    }
  }
  tile_store<0>(c0, ldc);
  tile_store<1>(c0 + 64, ldc);
  if constexpr (two) {
    tile_store<2>(c1, ldc);
    tile_store<3>(c1 + 64, ldc);
  }
}

template <class Dot>
SALE_INLINE void multiply_strip(int64_t rows, const void* a, int64_t lda, const uint32_t* const* b, int segments,
                                int64_t depth, int64_t panel, void* c, int64_t ldc, bool accumulate) {
  if (rows > 16) {
    multiply_tiles<Dot, true>(a, lda, b, segments, depth, panel, c, ldc, accumulate);
  } else {
    multiply_tiles<Dot, false>(a, lda, b, segments, depth, panel, c, ldc, accumulate);
  }
}

struct ScoreTiles : PackedBf16Keys {
  static void scores(const HeadGroup& h, int64_t rows, const Q* q, const float*, const uint32_t* const* k, int blocks,
                     float* s) {
    const int64_t d = h.shape.head_dim;
    for (int b = 0; b < blocks; ++b)
      multiply_strip<Bf16Dot>(rows, q, d * 2, k + b, 1, d / 32, 0, s + b * k_block, run_keys * 4, false);
  }
};

struct ScoreI8Tiles : Int8Codes {
  static void load_q(const HeadGroup& h, int64_t at, int64_t rows, int64_t padded, Q* to, float* scale) {
    Int8Codes::load_q(h, at, rows, padded, to, scale, 0);
  }
  static void pack_k(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    Int8Codes::pack_k(h, key, keys, to, 0);
  }
  static void scores(const HeadGroup& h, int64_t rows, const Q* q, const float* q_scale, const uint32_t* const* k,
                     int blocks, float* s) {
    const int32_t d = h.shape.head_dim;
    for (int b = 0; b < blocks; ++b) {
      multiply_strip<I8Dot>(rows, q, d, k + b, 1, d / 64, 0, s + b * k_block, run_keys * 4, false);
      dequantize(rows, q_scale, k_scale(k[b], d), s + b * k_block);
    }
  }
};

struct MixTiles : PackedBf16Values {
  static void mix(const HeadGroup& h, int64_t rows, const P* p, const uint32_t* const* v, int blocks, float* o) {
    const int64_t d = h.shape.head_dim;
    for (int64_t c = 0; c < d; c += 32)
      multiply_strip<Bf16Dot>(rows, p, run_keys * 2, v, blocks, 1, c / 16, o + c, d * 4, true);
  }
};

using Tiled = AttendPair<Attend<ScoreTiles, MixTiles>, Attend<ScoreI8Tiles, MixTiles>>;

}  // namespace

namespace amx {

size_t attend_scratch(const Shape& s, int64_t tiles) {
  return s.dtype == SALE_BF16 ? Tiled::scratch(s, tiles) : avx512::kernels.attend_scratch(s, tiles);
}
void attend(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
  if (h.shape.dtype != SALE_BF16) return avx512::kernels.attend(h, begin, end, scratch);
  tiles_begin();
  Tiled::item(h, begin, end, scratch);
  tiles_end();
}

}  // namespace amx
}  // namespace sale
