// Compensation on CPU backends against the oracle: pseudo-keys for dropped blocks.
#include <gtest/gtest.h>

#include <algorithm>
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

// Where pseudo-keys begin and end: tiles that begin between means, the local region as near as it gets, the last mean
// not whole, mostly dropped; more than the 32 means that are packed together; parts far behind and near.
TEST(Compensation, AtTheEdgesOfMeans) {
  for (const char* line :
       {"qheads=2 kvheads=1 k=1300 d=64 local=32 tau=50", "qheads=2 kvheads=1 k=1300 d=128 local=32 tau=50 type=f16",
        "qheads=2 kvheads=1 q=300 k=1500 d=64 local=32 tau=50", "qheads=2 kvheads=1 q=300 k=1511 d=80 local=32 tau=50",
        "qheads=1 kvheads=1 q=130 k=9000 d=64 tau=50",
        "qheads=1 kvheads=1 q=65 k=17000 d=32 local=256 tau=0.3 type=f32",
        "qheads=2 kvheads=1 q=100 k=1184 d=64 offset=5000 tau=50"}) {
    Case c = sale_case::parse(std::string(line) + " densebelow=0 compensate=1 seed=5");
    const Tally tally = check_case(c);
    EXPECT_LT(tally.kept, tally.visible) << line;
  }
}

// Rows of a tile whose first row does not see a mean's keys get the bits that they get without compensation.
TEST(Compensation, StandsForNothingUnseen) {
  Instance in(sale_case::parse("qheads=1 kvheads=1 k=600 d=64 local=32 tau=50 densebelow=0 seed=6"));
  for (const std::string& backend : backends_for(in)) {
    std::vector<float> out[2];
    for (const int32_t on : {0, 1}) {
      in.options.compensate = on;
      run(in, backend);
      out[on] = in.out.head(0, 0);
    }
    constexpr size_t first = 256 * 64;  // row 256 is the first to see 256 keys that its whole tile sees
    EXPECT_TRUE(std::equal(out[0].begin(), out[0].begin() + first, out[1].begin())) << backend;
    EXPECT_FALSE(std::equal(out[0].begin() + first, out[0].end(), out[1].begin() + first)) << backend;
  }
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
