// What tiles of 128 rows keep: the union of their halves' votes.
#include <algorithm>

#include "oracle.hpp"

namespace sale_oracle {

Range wide_range(const Head& h, int64_t tile, const Regions& r) {
  const int64_t rows = 2 * tile_rows;
  const Span span = candidates_of(h, tile, rows, r);
  return {span.first, span.last,
          (h.visible_keys(std::min(h.q_len, (tile + 1) * rows) - 1) + block_keys - 1) / block_keys};
}

bool WideTile::allows(const std::vector<int32_t>& list) const {
  const auto allowed = [&](int32_t b) {
    return std::binary_search(must.begin(), must.end(), b) || std::binary_search(may.begin(), may.end(), b);
  };
  return std::is_sorted(list.begin(), list.end()) && std::all_of(list.begin(), list.end(), allowed) &&
         std::includes(list.begin(), list.end(), must.begin(), must.end());
}

std::vector<WideTile> select_wide(const Head& h, const Estimator& e, const Regions& r, float tau, bool dense,
                                  bool undefined, sale_dtype dtype) {
  dense = dense || tau == 0;
  Head wide = h;  // sink and local keys of a half are told by the tile
  wide.rule_rows = 2 * tile_rows;
  std::vector<Tile> defined;
  std::vector<Fp8Tile> bounded;
  const Floats smoothing = mean(h.k, h.k_len, h.d);
  if (!dense && e.format == SALE_FP8)
    bounded = fp8_select(wide, smoothing, fp8_keys(h.k, h.k_len, h.d, smoothing, e, h.k_len), e, r, tau, dtype);
  else if (!dense)
    defined = select(wide, smoothing, e, r, tau, false);
  std::vector<WideTile> tiles;
  for (int64_t t = 0; 2 * t < h.tiles(); ++t) {
    const Range range = wide_range(h, t, r);
    WideTile tile;
    for (int64_t b = 0; b < range.visible; ++b) {
      const auto block = static_cast<int32_t>(b);
      if (!h.sees_block(t, b, 2 * tile_rows)) continue;
      bool must = dense || b < range.first || b >= range.last, may = false;
      for (auto half = static_cast<size_t>(2 * t); half < static_cast<size_t>(2 * t + 2) && !must; ++half) {
        if (half < defined.size())
          must = std::binary_search(defined[half].kept.begin(), defined[half].kept.end(), block);
        if (half >= bounded.size()) continue;
        const Fp8Candidate& c = bounded[half][static_cast<size_t>(b - range.first)];
        must = c.low > 0;
        may = may || c.high >= 0;
      }
      const bool candidate = !dense && b >= range.first && b < range.last;
      if (undefined && candidate)
        tile.may.push_back(block);
      else if (must)
        tile.must.push_back(block);
      else if (may)
        tile.may.push_back(block);
    }
    tiles.push_back(std::move(tile));
  }
  return tiles;
}

}  // namespace sale_oracle
