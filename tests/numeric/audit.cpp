// Audits against the oracle: the same rows, the same sums, whatever the backend, threads, batch and kind of call.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "harness.hpp"

namespace sale_test {
namespace {

using Audits = std::vector<sale_head_audit>;

struct Ran {
  Audits audits;
  Lists lists;
};

sale_options auditing(const Instance& in, int32_t rows, uint64_t seed) {
  sale_options o = in.options;
  o.audit = rows;
  o.audit_seed = seed;
  return o;
}

// By sale_run, or by sale_select and sale_attend.
Ran run_audited(Instance& in, const sale_layer& layer, const sale_options& o, bool in_stages) {
  const Step step(in.problem, layer, o);
  const Blocks blocks = make_blocks(step.plan);
  Ran r;
  r.audits.resize(static_cast<size_t>(in.c.batch) * static_cast<size_t>(in.c.q_heads));
  sale_stats stats{};
  stats.struct_size = sizeof stats;
  stats.audits = r.audits.data();
  sale_call call = in.call();
  step.select(call, blocks);
  call.stats = &stats;
  r.lists = read_lists(in, blocks.get());
  in.clear_outputs();
  if (in_stages)
    step.attend(call, blocks);
  else
    step.run(call);
  expect(in.outputs_intact(), "an audited call wrote outside out's or lse's rows");
  return r;
}

void near(double got, double want, double limit, const std::string& what) {
  if (!(std::fabs(got - want) <= limit))
    throw Failed(what + " is " + std::to_string(got) + ", expected " + std::to_string(want) + " within " +
                 std::to_string(limit));
}

Tally check_audit(const Case& c) {
  Instance in(c);
  const auto rows = static_cast<int32_t>(1 + c.seed * 7 % 90);
  for (const std::string& backend : backends_for(in)) {
    const sale_layer layer = with_backend(in.layer, backend);
    const sale_options o = auditing(in, rows, c.seed);
    const Ran whole = run_audited(in, layer, o, false), staged = run_audited(in, layer, o, true);
    const size_t bytes = whole.audits.size() * sizeof(sale_head_audit);
    expect(std::memcmp(whole.audits.data(), staged.audits.data(), bytes) == 0, backend + ": run and attend differ");
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t h = 0; h < c.q_heads; ++h) {
        const sale_head_audit& got = whole.audits[static_cast<size_t>(b * c.q_heads + h)];
        const auto chosen = sale_oracle::audited_rows(in.sequences[static_cast<size_t>(b)].q_len, rows, c.seed);
        const auto want = sale_oracle::audit(
            head_of(in, b, h), whole.lists[static_cast<size_t>(b)][static_cast<size_t>(h)], in.out.head(b, h), chosen);
        const std::string who = backend + ": sequence " + std::to_string(b) + " head " + std::to_string(h) + ": ";
        const double n = static_cast<double>(chosen.size());
        expect(got.rows == static_cast<int64_t>(chosen.size()), who + "rows");
        near(got.size, want.size, 1e-5 * want.size, who + "size");
        near(got.error, want.error, 1e-5 * want.size, who + "error");
        near(got.mass, want.mass, 1e-4 * n, who + "mass");
        near(got.least_mass, want.least_mass, 1e-4, who + "least mass");
      }
  }
  Tally tally;
  tally.cases = 1;
  return tally;
}

Case some_case(int64_t i) {
  Case c = sale_case::random_case(static_cast<uint64_t>(i) + 5000, {1600, 6'000'000});
  const bool regular = c.data < sale_case::Data::large;
  if (!regular) c.data = sale_case::Data::real_like;
  if (c.format == SALE_FP8) c.format = SALE_INT8, c.rank = 0;
  if (c.compute == SALE_COMPUTE_FP8) c.compute = SALE_COMPUTE_EXACT;
  c.compensate = false, c.page_size = 0;
  return c;
}

TEST(Audit, AgreesWithTheOracle) {
  Tally total;
  const std::string failures = in_parallel(30, some_case, check_audit, total);
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_EQ(total.cases, 30);
}

// An audit only looks: out is what it is without, and numbers of threads change nothing in either.
TEST(Audit, ChangesNothingAndDoesNotDependOnThreads) {
  Instance in(sale_case::parse("batch=2 qheads=6 kvheads=2 q=500 k=1500 d=64 type=bf16 tau=0.02 threads=1"));
  for (const std::string& backend : backends_for(in)) {
    sale_layer layer = with_backend(in.layer, backend);
    sale_options o = auditing(in, 40, 3);
    const Ran one = run_audited(in, layer, o, false);
    const std::vector<std::byte> out(in.out.memory->begin(), in.out.memory->begin() + in.out.memory->size());
    layer.threads = 3;
    const Ran three = run_audited(in, layer, o, false);
    EXPECT_EQ(std::memcmp(one.audits.data(), three.audits.data(), one.audits.size() * sizeof(sale_head_audit)), 0);
    o.audit = 0;
    run_audited(in, layer, o, false);
    EXPECT_EQ(std::memcmp(out.data(), in.out.memory->begin(), out.size()), 0) << backend;
  }
}

// Every row of a dense head: all mass kept, and no more error than the tensors' type rounds off.
TEST(Audit, DenseHeadsLoseNothing) {
  Instance in(sale_case::parse("qheads=2 kvheads=1 k=1200 d=64 type=bf16 taus=0,0.05"));
  for (const std::string& backend : backends_for(in)) {
    const Ran r = run_audited(in, with_backend(in.layer, backend), auditing(in, 65536, 0), false);
    EXPECT_EQ(r.audits[0].rows, 1200);
    EXPECT_NEAR(r.audits[0].least_mass, 1, 1e-5);
    EXPECT_LT(r.audits[0].error, 0.005 * r.audits[0].size);
    EXPECT_LT(r.audits[1].mass, 1200 * 0.99);
    EXPECT_GT(r.audits[1].error, 2 * r.audits[0].error);
  }
}

TEST(Audit, RowsOfOneSeedAreInOrderAndOfAnotherElsewhere) {
  const auto one = sale_oracle::audited_rows(1000, 64, 1), other = sale_oracle::audited_rows(1000, 64, 2);
  EXPECT_TRUE(std::is_sorted(one.begin(), one.end()));
  EXPECT_NE(one, other);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_GE(one[i], static_cast<int64_t>(i) * 1000 / 64);
    EXPECT_LT(one[i], static_cast<int64_t>(i + 1) * 1000 / 64);
  }
}

}  // namespace
}  // namespace sale_test
