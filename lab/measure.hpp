// Attention of single rows in double precision, from the very tensors the library was given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lm/attention.hpp"

namespace sale::lab {

// Row `row` of the call's queries, query head `head`.
class ExactRow {
public:
  ExactRow(const lm::AttentionCall& call, int head, int64_t row);
  int64_t keys() const { return static_cast<int64_t>(weights_.size()); }
  // Share of the row's attention that lies in these key blocks (of 32).
  double mass(std::span<const int32_t> kept) const;
  // Output over all keys, and over those in the kept blocks alone.
  std::vector<double> output() const;
  std::vector<double> output(std::span<const int32_t> kept) const;

private:
  void accumulate(int64_t begin, int64_t end, std::vector<double>& to, double& sum) const;
  const lm::AttentionCall* call_;
  const uint16_t* values_;
  std::vector<double> weights_;  // softmax, sums to 1
};

double l1(std::span<const double> x);
double l1_distance(std::span<const double> a, std::span<const double> b);

}  // namespace sale::lab
