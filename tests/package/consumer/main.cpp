// Prints the backend that would run, then one attention through the C ABI; 0 when the output is the mean of V, as it
// must be for queries of zero.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "sale/sale.h"

int main() {
  const sale_problem p = sale_problem_init(1, 2, 1, 3, 3, 64, SALE_F32);
  const sale_options o = sale_options_init();
  sale_plan* plan = nullptr;
  if (sale_plan_create(&p, &o, 0, &plan) != SALE_OK) {
    std::fprintf(stderr, "%s\n", sale_last_error());
    return 1;
  }
  std::printf("sale %s, backend %s\n", sale_version(), sale_plan_backend(plan));
  std::vector<float> q(2 * 3 * 64), k(3 * 64, 1.0f), v(3 * 64), out(q.size());
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i / 64);
  const size_t bytes = sale_plan_workspace(plan).total;
  void* workspace = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  const sale_status status =
      sale_run(plan, q.data(), k.data(), v.data(), out.data(), nullptr, nullptr, workspace, bytes, nullptr, nullptr);
  if (status != SALE_OK) std::fprintf(stderr, "%s\n", sale_last_error());
  const bool right = status == SALE_OK && std::abs(out[0]) < 1e-6 && std::abs(out[64] - 0.5f) < 1e-6 &&
                     std::abs(out[128] - 1.0f) < 1e-6;
  std::free(workspace);
  sale_plan_destroy(plan);
  return right ? 0 : 1;
}
