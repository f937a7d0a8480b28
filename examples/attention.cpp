// Sparse attention over 8,192 tokens of random numbers. Build: link sale::sale.
#include <cstdio>
#include <random>
#include <vector>

#include "sale/sale.hpp"

int main() {
  const int32_t heads = 4, kv_heads = 2, dim = 64;
  const int64_t tokens = 8192;
  std::vector<float> q(heads * tokens * dim), k(kv_heads * tokens * dim), v(k.size()), out(q.size());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (auto* tensor : {&q, &k, &v})
    for (float& x : *tensor) x = normal(random);

  const sale::Problem problem(1, heads, kv_heads, tokens, tokens, dim, SALE_F32);
  const sale::Plan plan(problem, sale::Options().threshold(0.004f));
  const sale::Workspace workspace(plan.workspace().total);
  sale::Stats stats;
  plan.run({.q = q.data(), .k = k.data(), .v = v.data(), .out = out.data()}, workspace, {}, &stats);
  std::printf("%s: kept %.1f %% of the blocks\n", plan.backend().c_str(), 100 * stats.density());
}
