#include "lab/quality.hpp"

#include <algorithm>

#include "lab/measure.hpp"
#include "lm/bf16.hpp"
#include "lm/prompts.hpp"
#include "lm/workers.hpp"

namespace sale::lab {

std::vector<int64_t> sample_rows(uint64_t seed, int layer, int head, int64_t first, int64_t tokens, int count) {
  std::vector<int64_t> rows;
  if (tokens <= first) first = 0;
  lm::Random random(seed ^ (static_cast<uint64_t>(layer) << 32 | static_cast<uint64_t>(head) << 16));
  for (int i = 0; i < count; ++i) rows.push_back(first + random.below(tokens - first));
  return rows;
}

Quality::Quality(const lm::Config& config, int64_t tokens, int rows_per_head, uint64_t seed, int threads)
    : q_heads_(config.q_heads),
      rows_per_head_(rows_per_head),
      threads_(threads),
      tokens_(tokens),
      seed_(seed),
      heads_(static_cast<size_t>(config.layers * config.q_heads)) {}

Quality::Head Quality::look(const lm::AttentionCall& call, const BlockList& blocks, int head, int64_t row) const {
  const ExactRow exact(call, head, row);
  const auto kept = blocks.row(0, head, row / blocks.q_block()).kept;
  const std::vector<double> want = exact.output();
  std::vector<double> got(want.size());
  const uint16_t* out = call.out + head * call.out_head_stride + row * call.out_token_stride;
  for (size_t c = 0; c < got.size(); ++c) got[c] = static_cast<double>(lm::from_bf16(out[c]));
  const double mass = exact.mass(kept);
  return {l1_distance(want, got), l1(want), mass, mass, 1};
}

void Quality::saw(const lm::AttentionCall& call, const BlockList& blocks) {
  struct Row {
    int head;
    int64_t row;
  };
  std::vector<Row> rows;
  const int64_t start = call.k_len - call.q_len;
  for (int h = 0; h < q_heads_; ++h)
    for (int64_t position : sample_rows(seed_, call.layer, h, first_position, tokens_, rows_per_head_))
      if (position >= start && position < call.k_len) rows.push_back({h, position - start});
  std::vector<Head> seen(rows.size());
  lm::for_each_index(threads_, static_cast<int64_t>(rows.size()), [&](int64_t i, int) {
    const Row& r = rows[static_cast<size_t>(i)];
    seen[static_cast<size_t>(i)] = look(call, blocks, r.head, r.row);
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    Head& to = heads_[static_cast<size_t>(call.layer * q_heads_ + rows[i].head)];
    to.error += seen[i].error, to.size += seen[i].size, to.mass += seen[i].mass;
    to.least_mass = std::min(to.least_mass, seen[i].least_mass);
    ++to.rows;
  }
}

double Quality::relative_l1() const {
  double sum = 0;
  for (const Head& h : heads_) sum += h.relative_l1();
  return sum / static_cast<double>(heads_.size());
}
double Quality::worst_relative_l1() const {
  double worst = 0;
  for (const Head& h : heads_) worst = std::max(worst, h.relative_l1());
  return worst;
}
double Quality::retained_mass() const {
  double sum = 0;
  for (const Head& h : heads_) sum += h.rows > 0 ? h.mass / static_cast<double>(h.rows) : 1;
  return sum / static_cast<double>(heads_.size());
}
double Quality::least_mass() const {
  double least = 1;
  for (const Head& h : heads_) least = std::min(least, h.least_mass);
  return least;
}
int64_t Quality::rows() const {
  int64_t n = 0;
  for (const Head& h : heads_) n += h.rows;
  return n;
}

}  // namespace sale::lab
