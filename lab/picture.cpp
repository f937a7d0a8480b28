#include "lab/picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "lab/image.hpp"
#include "sale/sale.h"

#include <fmt/format.h>

namespace sale::lab {

KeptGrid::KeptGrid(int64_t queries, int64_t keys, int cells) : queries_(queries), keys_(keys) {
  const auto blocks = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  rows_ = static_cast<int>(std::min<int64_t>(cells, blocks(queries, SALE_Q_BLOCK)));
  columns_ = static_cast<int>(std::min<int64_t>(cells, blocks(keys, SALE_K_BLOCK)));
  kept_.resize(static_cast<size_t>(rows_) * static_cast<size_t>(columns_));
  visible_.resize(kept_.size());
}

void KeptGrid::add(int64_t first_query, const BlockList::Row& row) {
  std::vector<int32_t> visible(static_cast<size_t>(row.visible));
  std::iota(visible.begin(), visible.end(), 0);
  add(first_query, row.kept, visible);
}

void KeptGrid::add(int64_t first_query, const std::vector<int32_t>& kept, const std::vector<int32_t>& visible) {
  const int64_t r = std::clamp<int64_t>(first_query * rows_ / queries_, 0, rows_ - 1);
  const auto cell = [&](int64_t block) {
    return static_cast<size_t>(r * columns_ + std::min<int64_t>(block * SALE_K_BLOCK * columns_ / keys_, columns_ - 1));
  };
  for (int32_t b : visible) visible_[cell(b)] += 1;
  for (int32_t b : kept) kept_[cell(b)] += 1;
  kept_blocks_ += static_cast<int64_t>(kept.size());
  visible_blocks_ += static_cast<int64_t>(visible.size());
}

double KeptGrid::share(int row, int column) const {
  const auto at = static_cast<size_t>(row) * static_cast<size_t>(columns_) + static_cast<size_t>(column);
  return visible_[at] > 0 ? static_cast<double>(kept_[at]) / static_cast<double>(visible_[at]) : -1;
}

double KeptGrid::density() const {
  return visible_blocks_ > 0 ? static_cast<double>(kept_blocks_) / static_cast<double>(visible_blocks_) : 1;
}

Pictures::Pictures(const lm::Config& config, int64_t tokens, int cells) : q_heads_(config.q_heads) {
  grids_.assign(static_cast<size_t>(config.layers * config.q_heads), KeptGrid(tokens, tokens, cells));
}

void Pictures::saw(const lm::AttentionCall& call, const BlockList& blocks) {
  const int64_t start = call.k_len - call.q_len;
  for (int h = 0; h < q_heads_; ++h)
    for (int64_t row = 0; row < call.q_len; row += blocks.q_block())
      grids_[static_cast<size_t>(call.layer * q_heads_ + h)].add(start + row, blocks.row(0, h, row / blocks.q_block()));
}

Finders::Finders(const lm::Config& config)
    : q_heads_(config.q_heads), found_(static_cast<size_t>(config.layers * config.q_heads)) {}

void Finders::saw(const lm::AttentionCall& call, const BlockList& blocks) {
  if (begin_ >= end_) return;
  const auto first = static_cast<int32_t>(begin_ / SALE_K_BLOCK),
             last = static_cast<int32_t>((end_ - 1) / SALE_K_BLOCK);
  for (int h = 0; h < q_heads_; ++h) {
    bool found = false;
    for (int64_t row = 0; row < call.q_len; row += blocks.q_block()) {
      const auto kept = blocks.row(0, h, row / blocks.q_block()).kept;
      const auto from = std::lower_bound(kept.begin(), kept.end(), first);
      found = found || (kept.end() - from > last - first && *(from + (last - first)) == last);
    }
    found_[static_cast<size_t>(call.layer * q_heads_ + h)] += found ? 1 : 0;
  }
}

namespace {

using Colour = std::array<uint8_t, 3>;
constexpr Colour paper{244, 244, 240}, outside{226, 226, 222}, ink{16, 42, 84}, mark{230, 90, 40};

Colour mix(Colour a, Colour b, double t) {
  Colour c{};
  for (size_t i = 0; i < 3; ++i) c[i] = static_cast<uint8_t>(std::lround((1 - t) * a[i] + t * b[i]));
  return c;
}

// A single kept block among many should still be seen.
double shade(double share) { return share <= 0 ? 0 : 0.15 + 0.85 * std::sqrt(share); }

std::vector<bool> marked_columns(const KeptGrid& grid, const std::vector<KeyMark>& marks, int64_t keys) {
  std::vector<bool> marked(static_cast<size_t>(grid.columns()));
  for (const KeyMark& m : marks)
    for (int64_t c = m.begin * grid.columns() / keys; c <= (m.end - 1) * grid.columns() / keys; ++c)
      marked[static_cast<size_t>(std::clamp<int64_t>(c, 0, grid.columns() - 1))] = true;
  return marked;
}

}  // namespace

std::string png_of(const KeptGrid& grid, const std::vector<KeyMark>& marks, int64_t keys, int pixels) {
  const int wide = std::max(1, pixels / grid.columns()), high = std::max(1, pixels / grid.rows());
  const std::vector<bool> marked = marked_columns(grid, marks, keys);
  Image image(wide * grid.columns(), high * grid.rows());
  for (int r = 0; r < grid.rows(); ++r)
    for (int c = 0; c < grid.columns(); ++c) {
      const double share = grid.share(r, c);
      Colour colour = share < 0 ? outside : mix(paper, ink, shade(share));
      if (marked[static_cast<size_t>(c)]) colour = share > 0 ? mark : mix(colour, mark, 0.35);
      for (int y = 0; y < high; ++y)
        for (int x = 0; x < wide; ++x) image.set(wide * c + x, high * r + y, colour);
    }
  return image.png();
}

std::string svg_of(const KeptGrid& grid, const std::vector<KeyMark>& marks, int64_t keys) {
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" shape-rendering=\"crispEdges\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#f4f4f0\"/>\n",
      grid.columns(), grid.rows());
  const std::vector<bool> marked = marked_columns(grid, marks, keys);
  for (int c = 0; c < grid.columns(); ++c)
    if (marked[static_cast<size_t>(c)])
      svg += fmt::format("<rect x=\"{}\" width=\"1\" height=\"{}\" fill=\"#f3b79e\"/>\n", c, grid.rows());
  // Neighbours of one shade become one rectangle.
  for (int r = 0; r < grid.rows(); ++r)
    for (int c = 0, end = 0; c < grid.columns(); c = end) {
      const double share = grid.share(r, c);
      for (end = c + 1; end < grid.columns() && grid.share(r, end) == share;) ++end;
      if (share <= 0) continue;
      const Colour k = mix(paper, ink, shade(share));
      svg += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"1\" fill=\"#{:02x}{:02x}{:02x}\"/>\n", c, r,
                         end - c, k[0], k[1], k[2]);
    }
  return svg + "</svg>\n";
}

}  // namespace sale::lab
