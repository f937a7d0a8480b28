// Heads whose audited error passes a limit are made denser: first at an eighth of their threshold, then dense. What a
// head was found to need it keeps, for the rest of the prompt and its questions.
#pragma once

#include <string>
#include <vector>

#include "sale/sale.hpp"

namespace sale::lab {

struct GuardStep {
  int layer, head;
  float tau;       // at this threshold
  double error;    // this relative L1 error was audited
  float next_tau;  // and this is what the head runs at since; 0 = dense
};

class Guard {
public:
  // limit: of a head's relative L1 error; 0 = never passed.
  Guard(double limit, int layers, int q_heads)
      : limit_(limit), q_heads_(q_heads), levels_(static_cast<size_t>(layers * q_heads)) {}

  // Applies what was found to a layer's thresholds, [q_heads].
  void apply(int layer, std::vector<float>& thresholds) const;
  // Whether this head has to run again; then its threshold has just been lowered. tau: what it ran at.
  bool passes(int layer, int head, float tau, const sale_head_audit& audit);
  const std::vector<GuardStep>& steps() const { return steps_; }

private:
  double limit_;
  int q_heads_;
  std::vector<int> levels_;  // [layers * q_heads]: 0 as calibrated, 1 an eighth, 2 dense
  std::vector<GuardStep> steps_;
};

// "layer 6 head 1: audited error 12.3 % at threshold 0.125, so 0.0156", a line each.
std::string lines_of(const std::vector<GuardStep>& steps);

}  // namespace sale::lab
