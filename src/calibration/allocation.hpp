// Thresholds chosen from what a sweep measured at a ladder of them: between its steps log tau, error and blocks are
// taken to lie on straight lines, and every head chooses from a ladder eight times as fine. A local head is a choice of
// its own at the end, with nothing between.
#pragma once

#include <vector>

#include "calibration/measured.hpp"

namespace sale::calibration {

// Entry 0 is dense, then tau = 2^-13 .. 4; then, when asked for, local.
constexpr int ladder_points = 17;
Tries ladder(size_t heads, bool local);

class Allocation {
public:
  explicit Allocation(const Measured& measured);

  // Every head by itself: the largest threshold at which its error, and at every smaller one, is within the limit, by
  // bisection. 0 where no threshold is.
  std::vector<float> each_within(double error) const;
  // One budget for the whole model: the root mean square over heads of the errors as shares of what the heads of the
  // layer put out on average. With one multiplier m for all heads, each takes the threshold with the least
  // blocks + m error^2; m is the smallest that keeps the budget. No head loses more than four times the budget of its
  // own output, a local one no more than once. No clock is in it: the same measurements give the same thresholds.
  std::vector<float> within_budget(double budget) const;
  // The same, m being the largest that keeps attention's time, by the cost model, within this share of the dense one.
  std::vector<float> within_time(double share) const;

  double dense_seconds() const;
  double seconds(double kept) const { return cost_.seconds(rows_, kept); }
  const Cost& cost() const { return cost_; }

private:
  struct Choice {
    float tau;
    double error, relative, kept;
  };
  using Curve = std::vector<Choice>;  // ascending tau, dense first
  static constexpr int fineness = 8;
  std::vector<int> choose(double multiplier, double most_relative, double most_local) const;
  double rms_error(const std::vector<int>& chosen) const;
  double kept(const std::vector<int>& chosen) const;
  std::vector<float> taus(const std::vector<int>& chosen) const;

  std::vector<Curve> curves_;
  Cost cost_;
  double rows_, block_;  // block_: the price of one, such that a dense model's heads cost 1 each
};

}  // namespace sale::calibration
