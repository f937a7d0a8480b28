// Compensation on CPU backends against the oracle: pseudo-keys for dropped blocks.
#include <gtest/gtest.h>

#include <cmath>

#include "harness.hpp"

namespace sale_test {
namespace {

Case some_case(int64_t i) {
  Case c = sale_case::random_case(static_cast<uint64_t>(i) + 9000, {2048, 12'000'000});
  if (c.format == SALE_FP8) c.format = SALE_INT8, c.rank = 0;
  c.compute = SALE_COMPUTE_EXACT, c.page_size = 0;
  c.dense_below = 0;
  c.compensate = true;
  c.taus.assign(1, 0.05f);
  return c;
}

TEST(Compensation, AgreesWithTheOracle) {
  Tally total;
  const std::string failures = in_parallel(80, some_case, check_case, total);
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_EQ(total.cases, 80);
  EXPECT_LT(total.kept, total.visible) << "nothing was dropped, so nothing stood in for it";
}

// It changes what comes out, towards what dense attention gives.
TEST(Compensation, BringsTheOutputNearer) {
  const std::string line = "qheads=2 kvheads=1 k=4k d=64 type=f32 tau=0.2 seed=4";
  Instance in(sale_case::parse(line));
  for (const std::string& backend : backends_for(in)) {
    double error[2];
    for (const int32_t on : {0, 1}) {
      in.options.compensate = on;
      run(in, backend);
      error[on] = 0;
      for (int64_t h = 0; h < 2; ++h) {
        const auto head = head_of(in, 0, h);
        const auto dense = sale_oracle::attend(head, sale_oracle::all_blocks(head), {});
        const auto out = in.out.head(0, h);
        for (size_t e = 0; e < out.size(); ++e) error[on] += std::fabs(double{out[e]} - dense.out[e]);
      }
    }
    EXPECT_LT(error[1], 0.9 * error[0]) << backend;
  }
}

}  // namespace
}  // namespace sale_test
