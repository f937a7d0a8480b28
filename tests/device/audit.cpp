// Audits on a GPU against the oracle: every form of attention, pages, ragged batches, more rows than one launch takes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "device.hpp"

namespace sale_device {
namespace {

struct Ran {
  std::vector<sale_head_audit> audits;
  Lists lists;
};

Ran run_audited(Copy& copy, int32_t rows, uint64_t seed) {
  Instance& in = copy.in;
  sale_options o = copy.options;
  o.audit = rows;
  o.audit_seed = seed;
  const Work work(copy.problem, copy.layer, o);
  const Blocks blocks = make_blocks(work.plan);
  sale_call call = copy.call();
  work.select(call, blocks);
  Ran ran;
  ran.lists = narrow(read_wide_lists(in, blocks), in);
  ran.audits.resize(static_cast<size_t>(in.c.batch) * static_cast<size_t>(in.c.q_heads));
  sale_stats stats{};
  stats.struct_size = sizeof stats;
  stats.audits = ran.audits.data();
  call.stats = &stats;
  copy.clear_outputs();
  work.run(call);
  copy.fetch();
  expect(work.workspace.margin_intact() && in.outputs_intact(),
         "an audited call wrote outside its outputs or its workspace");
  return ran;
}

void check(const char* line, int32_t rows) {
  SCOPED_TRACE(line);
  Instance in(served_line(line));
  Copy copy(in);
  const Ran ran = run_audited(copy, rows, 7);
  for (int64_t b = 0; b < in.c.batch; ++b)
    for (int64_t h = 0; h < in.c.q_heads; ++h) {
      const sale_head_audit& got = ran.audits[static_cast<size_t>(b * in.c.q_heads + h)];
      const auto chosen = sale_oracle::audited_rows(in.sequences[static_cast<size_t>(b)].q_len, rows, 7);
      const auto want = sale_oracle::audit(head_of(in, b, h), ran.lists[static_cast<size_t>(b)][static_cast<size_t>(h)],
                                           in.out.head(b, h), chosen);
      EXPECT_EQ(got.rows, static_cast<int64_t>(chosen.size()));
      EXPECT_NEAR(got.size, want.size, 2e-5 * want.size) << "head " << h;
      EXPECT_NEAR(got.error, want.error, 2e-5 * want.size) << "head " << h;
      EXPECT_NEAR(got.mass, want.mass, 1e-4 * static_cast<double>(chosen.size())) << "head " << h;
      EXPECT_NEAR(got.least_mass, want.least_mass, 1e-4) << "head " << h;
    }
}

TEST(Audit, AgreesWithTheOracle) {
  check("qheads=4 kvheads=2 k=2500 d=128 densebelow=0 tau=0.02 estimator=fp8", 40);
  check("qheads=6 kvheads=2 q=500 k=2300 d=64 type=f16 tau=0.05 estimator=fp8", 33);
  check("batch=2 qheads=2 kvheads=1 q=300 k=1500 d=128 type=f16 tau=0.02 estimator=fp8:28", 64);
  check("qheads=3 kvheads=1 k=1300 d=64 densebelow=0 tau=0.1 estimator=fp8 page=16", 17);
  check("qheads=2 kvheads=1 k=1300 d=128 densebelow=0 tau=0.1 estimator=int8 page=64", 20);
  check("qheads=2 kvheads=1 k=2000 d=128 tau=0.05 estimator=fp8 compute=fp8", 30);
  check("qheads=2 kvheads=1 k=2000 d=64 tau=0.05 estimator=fp8 compensate=1", 30);
}

TEST(Audit, DenseHeadsLoseNothing) {
  check("qheads=2 kvheads=1 k=900 d=128 taus=0,0.05 densebelow=0 estimator=fp8", 900);
}

// More rows than one launch takes: the sums are over all of them. Two runs give the same bits.
TEST(Audit, ManyRows) {
  Instance in(served_line("qheads=32 kvheads=8 q=2500 k=70000 d=128 tau=0.01 estimator=fp8"));
  Copy copy(in);
  const Ran one = run_audited(copy, 2500, 1), two = run_audited(copy, 2500, 1);
  EXPECT_EQ(std::memcmp(one.audits.data(), two.audits.data(), one.audits.size() * sizeof(sale_head_audit)), 0);
  const Ran few = run_audited(copy, 500, 1);
  for (size_t h = 0; h < one.audits.size(); ++h) {
    EXPECT_EQ(one.audits[h].rows, 2500);
    const double all = one.audits[h].error / one.audits[h].size;
    EXPECT_NEAR(few.audits[h].error / few.audits[h].size, all, 0.25 * all + 0.01);
    EXPECT_NEAR(few.audits[h].mass / 500, one.audits[h].mass / 2500, 0.05);
  }
}

// What is not finite shows.
TEST(Audit, BadNumbersAreSeen) {
  Instance in(served_line("qheads=2 kvheads=1 k=1500 d=64 densebelow=0 tau=0.05 estimator=fp8"));
  sale_case::store(in.v.row(0, 0, 3) + 2, in.c.dtype, std::nanf(""));
  Copy copy(in);
  for (const sale_head_audit& a : run_audited(copy, 30, 1).audits) EXPECT_TRUE(std::isnan(a.error));
}

}  // namespace
}  // namespace sale_device
