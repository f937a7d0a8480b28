// How good the sparse attention was: on a few rows of every head, against exact attention in double precision.
#pragma once

#include <cstdint>
#include <vector>

#include "lab/adapter.hpp"

namespace sale::lab {

// Rows to look at: `count` of every layer and head, at positions [first, tokens), the same for the same seed.
std::vector<int64_t> sample_rows(uint64_t seed, int layer, int head, int64_t first, int64_t tokens, int count);

class Quality : public Watcher {
public:
  static constexpr int64_t first_position = 1024;  // earlier rows run dense, or nearly so
  Quality(const lm::Config& config, int64_t tokens, int rows_per_head, uint64_t seed, int threads);
  void saw(const lm::AttentionCall& call, const BlockList& blocks) override;

  struct Head {
    double error = 0, size = 0;  // sums over the rows of |O - O~|_1 and |O|_1; O~ is what the library computed
    double mass = 0, least_mass = 1;
    int64_t rows = 0;
    double relative_l1() const { return size > 0 ? error / size : 0; }
  };
  const std::vector<Head>& heads() const { return heads_; }  // [layers * q_heads]
  // Means over the heads.
  double relative_l1() const;
  double retained_mass() const;
  double least_mass() const;
  double worst_relative_l1() const;
  int64_t rows() const;

private:
  Head look(const lm::AttentionCall& call, const BlockList& blocks, int head, int64_t row) const;
  int q_heads_, rows_per_head_, threads_;
  int64_t tokens_;
  uint64_t seed_;
  std::vector<Head> heads_;
};

// Hands what it sees to several.
class Watchers : public Watcher {
public:
  void add(Watcher* w) { all_.push_back(w); }
  void saw(const lm::AttentionCall& call, const BlockList& blocks) override {
    for (Watcher* w : all_) w->saw(call, blocks);
  }

private:
  std::vector<Watcher*> all_;
};

}  // namespace sale::lab
