// Section 8 of docs/numerics.md: which rows are audited, and what is found.
#include <algorithm>
#include <cmath>

#include "oracle.hpp"

namespace sale_oracle {

std::vector<int64_t> audited_rows(int64_t q_len, int64_t count, uint64_t seed) {
  const int64_t n = std::min(q_len, count);
  std::vector<int64_t> rows;
  uint64_t state = seed;
  for (int64_t i = 0; i < n; ++i) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    const int64_t from = i * q_len / n, size = (i + 1) * q_len / n - from;
    rows.push_back(from + static_cast<int64_t>(z % static_cast<uint64_t>(size)));
  }
  return rows;
}

Audit audit(const Head& h, const BlockLists& kept, const Floats& out, const std::vector<int64_t>& rows) {
  const Attention all = attend(h, all_blocks(h), {}), part = attend(h, kept, {});
  Audit a;
  for (int64_t row : rows) {
    for (int64_t c = row * h.d; c < (row + 1) * h.d; ++c) {
      const double exact = all.out[static_cast<size_t>(c)];
      a.error += std::fabs(double{out[static_cast<size_t>(c)]} - exact);
      a.size += std::fabs(exact);
    }
    const double whole = all.lse[static_cast<size_t>(row)];
    // A row that sees nothing loses nothing.
    const double mass = std::isinf(whole) && whole < 0 ? 1 : std::exp(part.lse[static_cast<size_t>(row)] - whole);
    a.mass += mass, a.least_mass = std::min(a.least_mass, mass);
  }
  return a;
}

}  // namespace sale_oracle
