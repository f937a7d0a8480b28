// What thresholds do to a model, as it was measured: every head's blocks and error at each of several thresholds, and
// what a kept block costs in time.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "calibration/fields.hpp"

namespace sale::calibration {

// One head at one threshold, over one prompt or more.
struct Point {
  // |O - O~|_1 on sampled rows of the worst prompt, as a share of the layer's mean output and of the head's own.
  double error = 0, relative = 0;
  double mass = 0;  // share of the rows' attention kept, summed over prompts
  int64_t kept = 0, visible = 0;
};
using Points = std::vector<Point>;              // [layers * q_heads]
using Tries = std::vector<std::vector<float>>;  // thresholds, [try][layers * q_heads]

// Attention's seconds as a + b x kept blocks, a for each row of blocks: least squares over what was run.
class Cost {
public:
  void add(double rows, double kept, double seconds);
  void add(const Cost& other);
  double per_block() const { return solve().second; }
  double seconds(double rows, double kept) const { return solve().first * rows + solve().second * kept; }
  Json json() const { return {rr_, rk_, kk_, rs_, ks_}; }
  static Cost of(const Json& json);

private:
  std::pair<double, double> solve() const;
  double rr_ = 0, rk_ = 0, kk_ = 0, rs_ = 0, ks_ = 0;
};

struct Measured {
  Measured() = default;
  Measured(size_t tries, size_t heads) : of(tries, Points(heads)) {}
  std::vector<Points> of;  // [try][layers * q_heads]
  Cost cost;
  double rows_of_blocks = 0;  // of every head and prompt
  int32_t prompts = 0;
  void add(const Measured& other);  // of the same tries
  Json json() const;
  static Measured from(const Json& json);
};

}  // namespace sale::calibration
