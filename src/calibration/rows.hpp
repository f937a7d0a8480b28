// Attention of single rows in double precision, from the very tensors the library is given, summed up block by block:
// what any selection of blocks keeps is then a sum over blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "calibration/layer.hpp"
#include "cpu/thread_pool.hpp"

namespace sale::calibration {

// The key blocks a row keeps, one bit each.
using Bits = std::vector<uint64_t>;

// Keys and values of one kv head in f32, one token after the other: what many rows look at is read once.
struct KvHead {
  int32_t dim = 0;
  int64_t tokens = 0;
  std::vector<float> k, v;  // [tokens, dim]
  void take(const Layer& layer, int32_t kv_head, ThreadPool& pool);
};

// What stands in for dropped blocks of one kv head when attention is compensated: means of 256 keys and their values.
struct Means {
  static constexpr int64_t keys = 256;
  Means() = default;
  explicit Means(const KvHead& of);
  int64_t groups = 0;       // whole ones
  std::vector<float> k, v;  // [groups, dim]
};

class ExactRow {
public:
  // Row `row` of query head `head`, which looks at `held`. Refuses scores and values that are not finite. means: null,
  // or those of its kv head, which must live as long as losses are asked for.
  void compute(const Layer& layer, const KvHead& held, int32_t head, int64_t row, const Means* means = nullptr);
  // Sum of |O|.
  double size() const;
  struct Loss {
    double error;  // sum of |O - O~|, O~ over the kept blocks and, with means, what stands in for the others
    double mass;   // share of the attention in them
  };
  // tile: the first row of the tile that the row is in, which decides where means stand in.
  Loss loss(const Bits& kept, int64_t tile = 0) const;

private:
  int64_t blocks_ = 0;
  int32_t dim_ = 0;
  std::vector<double> weights_;  // [keys]; softmax, sums to 1
  std::vector<double> mass_;     // [blocks]
  std::vector<double> sums_;     // [blocks, dim]: weights times values
  std::vector<double> output_;   // [dim]
  const Means* means_ = nullptr;
  std::vector<double> standing_in_;  // [groups]: weight of a mean for each block it stands for
};

// Rows to look at: `count` of every layer and head, beyond the first 1024 tokens where there are more, the same for the
// same seed; and seven near the end, where built prompts ask for facts.
std::vector<int64_t> sample_rows(uint64_t seed, int32_t layer, int32_t head, int64_t tokens, int32_t count);

}  // namespace sale::calibration
