// Projections for a reduced estimate, from keys and queries as a model makes them.
//
// Wanted: A and B [d, r] with q.k~ close to (A'q).(B'k~), close in the mean over the queries and keys that occur. With
// Ck = E[k~ k~'], k~ = k - mean k, and Cq = E[q q'] that mean squared error is |Cq^1/2 (I - A B') Ck^1/2|_F^2, smallest
// for the truncated singular value decomposition U S V' of Cq^1/2 Ck^1/2:
//     A = Cq^-1/2 U_r S_r^1/2        B = Ck^-1/2 V_r S_r^1/2
// The singular values are split evenly, so coordinates of both sides have the variance S: codes waste no range.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "adapter.hpp"

namespace sale::cli {

// Runs dense attention and sums up the covariances of what passes through; whole prompts only (chunk 0), since the mean
// of the keys is the prompt's.
class Covariances : public lm::Attention {
public:
  Covariances(const lm::Config& config, AttentionSettings dense, int64_t capacity, int threads);
  void run(const lm::AttentionCall& call) override;
  void truncate(int64_t tokens) override { dense_.truncate(tokens); }

  // [kv_heads, head_dim, rank] of one layer, appended to q and k. Returns the share of the scores' energy left out.
  double projections(int layer, int rank, std::vector<float>& q, std::vector<float>& k) const;

private:
  struct Sums {
    Eigen::MatrixXd keys, queries;
    double key_count = 0, query_count = 0;
  };
  const Sums& at(int layer, int kv_head) const { return sums_[static_cast<size_t>(layer * kv_heads_ + kv_head)]; }
  SaleAttention dense_;
  int kv_heads_, head_dim_, threads_;
  std::vector<Sums> sums_;
};

}  // namespace sale::cli
