// Projections for a reduced estimate, and what keys are smoothed and scaled by, from keys and queries as a model makes
// them.
//
// Wanted: A and B [d, r] with q.k~ close to (A'q).(B'k~), close in the mean over the queries and keys that occur. With
// Ck = E[k~ k~'], k~ = k - mean k, and Cq = E[q q'] that mean squared error is |Cq^1/2 (I - A B') Ck^1/2|_F^2, smallest
// for the truncated singular value decomposition U S V' of Cq^1/2 Ck^1/2:
//     A = Cq^-1/2 U_r S_r^1/2        B = Ck^-1/2 V_r S_r^1/2
// The singular values are split evenly, so coordinates of both sides have the variance S: codes waste no range.
#pragma once

#include <vector>

#include "calibration/fields.hpp"
#include "calibration/layer.hpp"
#include "cpu/thread_pool.hpp"

namespace sale::calibration {

// Sums over whole prompts, since the mean of the keys is a prompt's. Each layer is seen once, and then added to others.
class Moments {
public:
  explicit Moments(const Shape& shape);
  void see(const Layer& layer, ThreadPool& pool);
  void add(const Moments& other);

  // [kv_heads, head_dim] of one layer, appended: the mean of all keys.
  void smoothing(int32_t layer, std::vector<float>& to) const;
  // [kv_heads] of one layer, appended: FP8's scales for coordinates that these projections make (empty: all as they
  // are). e4m3 reaches 4 x 112; 112 stands for six times the root mean square of the largest coordinate, so that what a
  // code cannot hold is 24 of them away.
  void scales(int32_t layer, int32_t rank, const std::vector<float>& k_projections, std::vector<float>& to) const;
  // [kv_heads, head_dim, rank] of one layer, appended to q and k. Returns the share of the scores' energy left out.
  double projections(int32_t layer, int32_t rank, std::vector<float>& q, std::vector<float>& k) const;

  Json json() const;
  static Moments of(const Shape& shape, const Json& json);

private:
  struct Sums {
    std::vector<double> mean;           // [d], a sum
    std::vector<double> keys, queries;  // [d, d]
    double key_count = 0, query_count = 0;
  };
  Shape shape_;
  std::vector<Sums> sums_;  // [layers, kv_heads]
};

}  // namespace sale::calibration
