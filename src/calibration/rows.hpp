// Attention of single rows in double precision, from the very tensors the library is given, summed up block by block:
// what any selection of blocks keeps is then a sum over blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "calibration/layer.hpp"

namespace sale::calibration {

// The key blocks a row keeps, one bit each.
using Bits = std::vector<uint64_t>;

class ExactRow {
public:
  // Row `row` of query head `head`. Refuses scores and values that are not finite.
  void compute(const Layer& layer, int32_t head, int64_t row);
  // Sum of |O|.
  double size() const;
  struct Loss {
    double error;  // sum of |O - O~|, O~ over the kept blocks alone
    double mass;   // share of the attention in them
  };
  Loss loss(const Bits& kept) const;

private:
  int64_t blocks_ = 0;
  int32_t dim_ = 0;
  std::vector<double> weights_;  // [keys]; softmax, sums to 1
  std::vector<double> mass_;     // [blocks]
  std::vector<double> sums_;     // [blocks, dim]: weights times values
  std::vector<double> output_;   // [dim]
};

// Rows to look at: `count` of every layer and head, beyond the first 1024 tokens where there are more, the same for the
// same seed; and seven near the end, where built prompts ask for facts.
std::vector<int64_t> sample_rows(uint64_t seed, int32_t layer, int32_t head, int64_t tokens, int32_t count);

}  // namespace sale::calibration
