// Prints the backend that would run, then one attention through the C ABI; 0 when the output is the mean of V, as it
// must be for queries of zero.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "sale/sale.h"

int main() {
  const sale_problem p = sale_problem_init(2, 1, 64, SALE_F32, 3, 3);
  const sale_layer l = sale_layer_init(2, 1, 64, SALE_F32);
  const sale_options o = sale_options_init();
  sale_estimator* estimator = nullptr;
  sale_plan* plan = nullptr;
  sale_workspace w{};
  w.struct_size = sizeof w;
  if (sale_estimator_create(&l, &estimator) != SALE_OK || sale_plan_create(&p, &o, &estimator, 1, &plan) != SALE_OK ||
      sale_plan_workspace(plan, &w) != SALE_OK) {
    std::fprintf(stderr, "%s\n", sale_last_error());
    return 1;
  }
  std::printf("sale %s, backend %s\n", sale_version(), sale_plan_backend(plan));
  std::vector<float> q(2 * 3 * 64), k(3 * 64, 1.0f), v(3 * 64), out(q.size());
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i / 64);
  sale_call call = sale_call_init();
  call.q = q.data(), call.k = k.data(), call.v = v.data(), call.out = out.data();
  call.workspace = std::aligned_alloc(64, (w.total + 63) / 64 * 64), call.workspace_bytes = w.total;
  const sale_status status = sale_run(plan, estimator, &call);
  if (status != SALE_OK) std::fprintf(stderr, "%s\n", sale_last_error());
  const bool right = status == SALE_OK && std::abs(out[0]) < 1e-6 && std::abs(out[64] - 0.5f) < 1e-6 &&
                     std::abs(out[128] - 1.0f) < 1e-6;
  std::free(call.workspace);
  sale_plan_destroy(plan);
  sale_estimator_destroy(estimator);
  return right ? 0 : 1;
}
