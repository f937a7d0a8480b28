#include "mask.hpp"

#include <algorithm>
#include <cstring>

namespace sale::ggml {
namespace {

constexpr uint16_t hidden = 0xfc00;  // -inf
bool seen(uint16_t m) { return (m & 0x7fff) == 0; }

struct Row {
  std::vector<Cells> cells;
  int64_t count = 0;
  bool binary = true;  // nothing but 0 and -inf
};

Row read_row(const uint16_t* m, int64_t keys) {
  Row row;
  for (int64_t j = 0; j < keys; ++j) {
    if (!seen(m[j])) {
      row.binary = row.binary && m[j] == hidden;
      continue;
    }
    if (row.cells.empty() || row.cells.back().end != j) row.cells.push_back({j, j});
    row.cells.back().end = j + 1;
    ++row.count;
  }
  return row;
}

// First place in [from, keys) where two rows differ.
int64_t mismatch(const uint16_t* a, const uint16_t* b, int64_t from, int64_t keys) {
  constexpr int64_t step = 512;  // compared at once by memcmp, which is as fast as memory
  for (int64_t j = from; j < keys; j += step) {
    const int64_t n = std::min(step, keys - j);
    if (std::memcmp(a + j, b + j, static_cast<size_t>(n) * 2) == 0) continue;
    for (int64_t i = j; i < j + n; ++i)
      if (a[i] != b[i]) return i;
  }
  return keys;
}

// The key that `row` sees and `before` does not, and the one that it is the other way round with, -1 where there is
// none. Rows that differ in more: gained is -1.
struct Change {
  int64_t gained = -1, lost = -1;
};
Change change(const uint16_t* before, const uint16_t* row, int64_t keys) {
  Change c;
  for (int64_t j = mismatch(before, row, 0, keys); j < keys; j = mismatch(before, row, j + 1, keys)) {
    if (seen(row[j]) && before[j] == hidden && c.gained < 0)
      c.gained = j;
    else if (seen(before[j]) && row[j] == hidden && c.lost < 0)
      c.lost = j;
    else
      return {};
  }
  return c;
}

// Cells of a list that grows at its end, from the first on.
class Oldest {
public:
  explicit Oldest(const std::vector<Cells>& keys) : keys_(keys), cell_(keys.front().begin) {}
  int64_t cell() const { return cell_; }
  void next() {
    if (++cell_ == keys_[range_].end && range_ + 1 < keys_.size()) cell_ = keys_[++range_].begin;
  }

private:
  const std::vector<Cells>& keys_;
  size_t range_ = 0;
  int64_t cell_;
};

// Adds to a causal run of one row, m, those that follow it. Returns the first row that does not.
int64_t extend(const uint16_t* m, int64_t rows, int64_t keys, Run& run) {
  int64_t r = run.row_begin + 1, last = run.keys.back().end - 1, sees = run.first_sees;
  run.ordered = true;
  Oldest oldest(run.keys);
  for (; r < rows; ++r, m += keys) {
    const Change c = change(m, m + keys, keys);
    if (c.gained < 0 || (c.lost >= 0 && c.lost != oldest.cell()) || (c.lost < 0 && run.window != 0)) break;
    run.ordered = run.ordered && c.gained > last;
    last = std::max(last, c.gained);
    if (run.keys.back().end != c.gained) run.keys.push_back({c.gained, c.gained});
    run.keys.back().end = c.gained + 1;
    if (c.lost < 0) {
      ++sees;
    } else {
      run.window = sees;
      oldest.next();
    }
  }
  run.key_count = run.first_sees + r - run.row_begin - 1;
  return r;
}

}  // namespace

std::vector<Run> read_mask(const uint16_t* mask, int64_t rows, int64_t keys) {
  std::vector<Run> runs;
  for (int64_t r = 0; r < rows;) {
    const uint16_t* m = mask + r * keys;
    Row row = read_row(m, keys);
    Run run;
    run.row_begin = r++;
    run.kind = !row.binary ? Run::other : row.count == 0 ? Run::blind : Run::causal;
    if (run.kind == Run::causal) {
      run.first_sees = row.count;
      run.keys = std::move(row.cells);
      while (r < rows && mismatch(m, mask + r * keys, 0, keys) == keys) ++r;
      if (r > run.row_begin + 1) {
        run.kind = Run::all;
        run.key_count = run.first_sees;
      } else {
        r = extend(m, rows, keys, run);
      }
    }
    run.row_end = r;
    // Rows that no list describes and rows that see nothing go on as long as their kind does.
    if (!runs.empty() && runs.back().kind == run.kind && (run.kind == Run::blind || run.kind == Run::other))
      runs.back().row_end = r;
    else
      runs.push_back(std::move(run));
  }
  return runs;
}

}  // namespace sale::ggml
