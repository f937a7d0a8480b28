// What thresholds do to a model: every head's density and output error at each of several thresholds, measured while
// the model runs densely, so that every layer sees what it would see; and what a kept block costs in time.
#pragma once

#include <vector>

#include "adapter.hpp"
#include "answers.hpp"

namespace sale::cli {

// One head at one threshold, over one prompt or more.
struct Point {
  // |O - O~|_1 on sampled rows of the worst prompt: as a share of the layer's mean output, of the head's own; and per
  // token of all rows, when that was asked for.
  double error = 0, relative = 0, per_token = 0;
  double mass = 0;  // share of the rows' attention kept, summed over prompts
  int64_t kept = 0, visible = 0;
  double density() const { return static_cast<double>(kept) / static_cast<double>(std::max<int64_t>(visible, 1)); }
};
using Points = std::vector<Point>;  // [layers * q_heads]

// Attention's seconds as a + b x kept blocks, a for each row of blocks: least squares over what was run.
class Cost {
public:
  void add(double rows, double kept, double seconds);
  void add(const Cost& other);
  double per_row() const { return solve().first; }
  double per_block() const { return solve().second; }
  double seconds(double rows, double kept) const { return per_row() * rows + per_block() * kept; }
  Json json() const { return {rr_, rk_, kk_, rs_, ks_}; }
  static Cost of(const Json& json);

private:
  std::pair<double, double> solve() const;
  double rr_ = 0, rk_ = 0, kk_ = 0, rs_ = 0, ks_ = 0;
};

struct Measured {
  std::vector<Points> tries;  // [try][layers * q_heads]
  Cost cost;
  double rows_of_blocks = 0;  // of every head and prompt
  int prompts = 0;
  void add(const Measured& other);  // of the same tries
};
Json json_of(const Measured& measured);
Measured measured_of(const Json& json);

// One prompt, whole (chunk 0).
class Sweep : public lm::Attention {
public:
  using Tries = std::vector<std::vector<float>>;  // thresholds, [try][layers * q_heads]
  struct Form {
    int rows = 48;  // sampled per head
    uint64_t seed = 1;
    bool cost = false;  // attention itself is run too, at every fourth try
  };
  Sweep(const lm::Config& config, AttentionSettings settings, Tries tries, Form form, int64_t capacity);
  void run(const lm::AttentionCall& call) override;
  void truncate(int64_t tokens) override { dense_.truncate(tokens), placement_.truncate(tokens); }
  const Measured& measured() const { return measured_; }

private:
  struct Rows;
  std::vector<Rows> exact_rows(const lm::AttentionCall& call) const;
  void measure(const lm::AttentionCall& call, const Placement::Call& placed, const KeyIndex& index, size_t at,
               const std::vector<Rows>& rows);

  SaleAttention dense_;
  AttentionSettings settings_;
  Tries tries_;
  Form form_;
  int threads_;
  Placement placement_;
  Scratch workspace_;
  Measured measured_;
};

// The paper's procedure, one prompt: a head whose L1 error per token passes theta has its threshold halved until it
// does not; below 0.0001 it becomes 0. Thresholds go from prompt to prompt, so the worst of them counts.
class Halving : public lm::Attention {
public:
  static constexpr float first = 0.008f, least = 0.0001f;
  Halving(const lm::Config& config, AttentionSettings settings, double theta, std::vector<float> thresholds,
          int64_t capacity);
  void run(const lm::AttentionCall& call) override;
  void truncate(int64_t tokens) override { dense_.truncate(tokens), placement_.truncate(tokens); }
  const std::vector<float>& thresholds() const { return thresholds_; }
  const Points& points() const { return points_; }  // at those thresholds, this prompt

private:
  SaleAttention dense_;
  AttentionSettings settings_;
  double theta_;
  std::vector<float> thresholds_;
  Placement placement_;
  Scratch workspace_;
  Points points_;
};

}  // namespace sale::cli
