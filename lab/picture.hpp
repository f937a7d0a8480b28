// Which blocks were kept, as small pictures: the query tiles downwards, the key blocks across.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lab/adapter.hpp"

namespace sale::lab {

// Shares of kept blocks of one head on a coarse grid.
class KeptGrid {
public:
  KeptGrid() = default;
  KeptGrid(int64_t queries, int64_t keys, int cells);
  // One row of blocks: `first_query` is the position of its first query row.
  void add(int64_t first_query, const BlockList::Row& row);
  // The same of a row that does not see every block up to its last one.
  void add(int64_t first_query, const std::vector<int32_t>& kept, const std::vector<int32_t>& visible);
  int rows() const { return rows_; }
  int columns() const { return columns_; }
  // 0 .. 1; -1 where nothing is visible.
  double share(int row, int column) const;
  double density() const;

private:
  int64_t queries_ = 1, keys_ = 1;
  int rows_ = 0, columns_ = 0;
  int64_t kept_blocks_ = 0, visible_blocks_ = 0;
  std::vector<float> kept_, visible_;
};

// All heads of a model, gathered while it runs.
class Pictures : public Watcher {
public:
  Pictures(const lm::Config& config, int64_t tokens, int cells);
  void saw(const lm::AttentionCall& call, const BlockList& blocks) override;
  const KeptGrid& head(size_t i) const { return grids_[i]; }  // layer * q_heads + head

private:
  int q_heads_;
  std::vector<KeptGrid> grids_;
};

// What the question's own rows kept: which heads can see a fact from where it is asked for.
class Finders : public Watcher {
public:
  explicit Finders(const lm::Config& config);
  // The key range [begin, end) of the fact asked for next.
  void look_for(int64_t begin, int64_t end) { begin_ = begin, end_ = end, ++asked_; }
  void saw(const lm::AttentionCall& call, const BlockList& blocks) override;
  // Questions in which some tile of the head kept every block of the fact.
  int found(size_t head) const { return found_[head]; }
  int asked() const { return asked_; }

private:
  int q_heads_, asked_ = 0;
  int64_t begin_ = 0, end_ = 0;
  std::vector<int> found_;
};

struct KeyMark {
  int64_t begin, end;  // keys
};
// RGB PNG; kept blocks dark on light, marked keys as coloured columns. `keys`: of the whole grid. A cell becomes as
// many whole pixels as bring each side near `pixels`, at least one.
std::string png_of(const KeptGrid& grid, const std::vector<KeyMark>& marks, int64_t keys, int pixels = 1);
std::string svg_of(const KeptGrid& grid, const std::vector<KeyMark>& marks, int64_t keys);

}  // namespace sale::lab
