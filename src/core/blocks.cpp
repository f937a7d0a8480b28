// Block lists: rows of bits, read and written in words.
#include <algorithm>
#include <bit>

#include "core/checked.hpp"
#include "core/objects.hpp"

using namespace sale;

namespace {

struct Row {
  uint64_t* words;  // in the memory of the plan's device
  const Sequence& sequence;
  int64_t tile;

  int64_t end() const { return sequence.end_block(tile); }
  int64_t visible() const { return sequence.visible_blocks(tile); }
};

Row block_row(const sale_blocks& blocks, const sale_tile& at) {
  const Plan& plan = *blocks.plan;
  require(at.sequence >= 0 && at.sequence < plan.problem.batch, "sequence: ", at.sequence, " is not in 0 .. ",
          plan.problem.batch - 1);
  require(at.head >= 0 && at.head < plan.problem.q_heads, "head: ", at.head, " is not in 0 .. ",
          plan.problem.q_heads - 1);
  const Sequence& s = plan.sequences[static_cast<size_t>(at.sequence)];
  require(at.tile >= 0 && at.tile < s.tiles, "tile: ", at.tile, " is not in 0 .. ", s.tiles - 1);
  return {blocks.words() + s.bits_at + at.head * s.words + s.row_word[static_cast<size_t>(at.tile)], s, at.tile};
}

// A row is handled in pieces of this many words.
constexpr int64_t row_piece = 512;

// Everything kept, of all rows.
std::vector<uint64_t> all_kept(const Plan& plan) {
  std::vector<uint64_t> words(static_cast<size_t>(plan.bits_words));
  for (const Sequence& s : plan.sequences)
    for (int64_t h = 0; h < plan.problem.q_heads; ++h)
      for (int64_t t = 0; t < s.tiles; ++t) {
        uint64_t* row = words.data() + s.bits_at + h * s.words + s.row_word[static_cast<size_t>(t)];
        const auto fill = [&](int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b) row[b / 64] |= uint64_t{1} << (b % 64);
        };
        const int64_t first = s.sight.first_block(t, s.q_block);
        fill(first, s.end_block(t));
        fill(0, std::min(s.sight.sink_blocks(), first));
      }
  return words;
}

// Rows in the order of the CSR matrix: f(first word, words).
template <class F>
void each_row(const Plan& plan, F&& f) {
  for (const Sequence& s : plan.sequences)
    for (int64_t h = 0; h < plan.problem.q_heads; ++h)
      for (int64_t t = 0; t < s.tiles; ++t) {
        const int64_t begin = s.row_word[static_cast<size_t>(t)];
        f(s.bits_at + h * s.words + begin, s.row_word[static_cast<size_t>(t) + 1] - begin);
      }
}
int64_t rows_of(const Plan& plan) {
  int64_t rows = 0;
  for (const Sequence& s : plan.sequences) rows += s.tiles * plan.problem.q_heads;
  return rows;
}

}  // namespace

sale_status sale_blocks_create(const sale_plan* plan, sale_blocks** blocks) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    require(blocks != nullptr, "blocks: null");
    auto made = std::make_unique<sale_blocks>();
    made->plan = plan->forms.front();
    const Plan& p = *made->plan;
    const Space& space = p.stages().space;
    made->bits = space.allocate(static_cast<size_t>(p.bits_words) * 8, p.problem.device);
    const std::vector<uint64_t> words = all_kept(p);
    space.write(made->words(), words.data(), words.size() * 8, p.problem.device);
    *blocks = made.release();
  });
}

void sale_blocks_destroy(sale_blocks* blocks) { delete blocks; }

sale_status sale_blocks_row(const sale_blocks* blocks, sale_tile at, int32_t* out, int64_t capacity,
                            sale_row_counts* counts) {
  return guarded([&] {
    require(blocks != nullptr, "blocks: null");
    require(capacity >= 0, "capacity: ", capacity, " is negative");
    require(out != nullptr || capacity == 0, "out: null, but capacity is ", capacity);
    require(counts != nullptr, "counts: null");
    const Row row = block_row(*blocks, at);
    const Plan& plan = *blocks->plan;
    uint64_t piece[row_piece];
    int64_t n = 0;
    const int64_t end = row.end();
    for (int64_t i = 0; i < end; ++i) {
      if (i % (64 * row_piece) == 0)
        plan.stages().space.read(piece, row.words + i / 64,
                                 static_cast<size_t>(std::min(row_piece, ceil_div(end - i, 64))) * 8,
                                 plan.problem.device);
      if ((piece[i / 64 % row_piece] >> (i % 64) & 1) == 0) continue;
      if (n < capacity) out[n] = static_cast<int32_t>(i);
      ++n;
    }
    *counts = {n, row.visible()};
  });
}

sale_status sale_blocks_csr(const sale_blocks* blocks, int64_t* starts, int64_t row_capacity, int32_t* indices,
                            int64_t index_capacity, sale_csr_counts* counts) {
  return guarded([&] {
    require(blocks != nullptr, "blocks: null");
    require(counts != nullptr, "counts: null");
    require(row_capacity >= 0, "row_capacity: ", row_capacity, " is negative");
    require(index_capacity >= 0, "index_capacity: ", index_capacity, " is negative");
    require(starts != nullptr || row_capacity == 0, "starts: null, but row_capacity is ", row_capacity);
    require(indices != nullptr || index_capacity == 0, "indices: null, but index_capacity is ", index_capacity);
    const Plan& plan = *blocks->plan;
    std::vector<uint64_t> words(static_cast<size_t>(plan.bits_words));
    plan.stages().space.read(words.data(), blocks->words(), words.size() * 8, plan.problem.device);
    int64_t kept = 0;
    for (const uint64_t w : words) kept += std::popcount(w);
    const int64_t rows = rows_of(plan);
    *counts = {rows, kept};
    if (starts == nullptr || row_capacity < rows) return;
    const bool fill_indices = index_capacity >= kept && indices != nullptr;
    int64_t row = 0, at = 0;
    each_row(plan, [&](int64_t first, int64_t n) {
      starts[row++] = at;
      for (int64_t i = 0; i < n; ++i)
        for (uint64_t w = words[static_cast<size_t>(first + i)]; w != 0; w &= w - 1, ++at)
          if (fill_indices) indices[at] = static_cast<int32_t>(i * 64 + std::countr_zero(w));
    });
    starts[rows] = at;
  });
}

sale_status sale_blocks_words(const sale_blocks* blocks, uint64_t** words, int64_t* word_starts, int64_t row_capacity,
                              int64_t* rows) {
  return guarded([&] {
    require(blocks != nullptr, "blocks: null");
    require(words != nullptr, "words: null");
    require(rows != nullptr, "rows: null");
    require(row_capacity >= 0, "row_capacity: ", row_capacity, " is negative");
    require(word_starts != nullptr || row_capacity == 0, "word_starts: null, but row_capacity is ", row_capacity);
    const Plan& plan = *blocks->plan;
    *words = blocks->words();
    *rows = rows_of(plan);
    if (word_starts == nullptr || row_capacity < *rows) return;
    int64_t row = 0;
    each_row(plan, [&](int64_t first, int64_t) { word_starts[row++] = first; });
    word_starts[row] = plan.bits_words;
  });
}

sale_status sale_blocks_set_row(sale_blocks* blocks, sale_tile at, const int32_t* kept, int64_t count) {
  return guarded([&] {
    require(blocks != nullptr, "blocks: null");
    require(kept != nullptr, "kept: null");
    const Row row = block_row(*blocks, at);
    require(count >= 1 && count <= row.visible(), "count: ", count, " is not in 1 .. ", row.visible(),
            ", the visible blocks");
    for (int64_t i = 0; i < count; ++i) {
      require(kept[i] >= 0 && kept[i] < row.end() && (i == 0 || kept[i] > kept[i - 1]), "kept: element ", i, " is ",
              kept[i], "; block numbers ascend, without repeats, below ", row.end());
      require(row.sequence.sees(row.tile, kept[i]), "kept: element ", i, " is ", kept[i],
              ", which the tile's windows have left behind");
    }
    const Plan& plan = *blocks->plan;
    const int64_t words = ceil_div(row.end(), 64);
    int64_t next = 0;
    for (int64_t from = 0; from < words; from += row_piece) {
      uint64_t piece[row_piece] = {};
      const int64_t n = std::min(row_piece, words - from);
      for (; next < count && kept[next] < (from + n) * 64; ++next)
        piece[kept[next] / 64 - from] |= uint64_t{1} << (kept[next] % 64);
      plan.stages().space.write(row.words + from, piece, static_cast<size_t>(n) * 8, plan.problem.device);
    }
  });
}
