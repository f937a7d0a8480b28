// Keys that are a part of a sequence's, with every row's reference given: lists by the definition, attention within its
// bound, parts merged by lse, audits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>

#include "device.hpp"

namespace sale_device {
namespace {

TEST(Parts, AgreeWithTheOracle) {
  Tally total;
  const std::string failures = in_parallel(
      flags().cases, [](int64_t i) { return make_part(device_case(330'000 + static_cast<uint64_t>(i))); },
      [](const Case& c) {
        Instance in(c);
        give_reference(in);
        return check_device_instance(in);
      },
      total);
  std::printf("parts: %lld problems; %lld of %lld blocks kept; %lld of %lld candidates decided otherwise\n",
              static_cast<long long>(total.cases), static_cast<long long>(total.kept),
              static_cast<long long>(total.visible), static_cast<long long>(total.exempted),
              static_cast<long long>(total.candidates));
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_LT(total.kept, flags().cases < 50 ? total.visible : total.visible * 9 / 10);  // few may drop little
  EXPECT_LE(static_cast<double>(total.exempted), 0.001 * static_cast<double>(total.candidates) + 1);
}

const char* const lines[]{"qheads=4 kvheads=2 k=3001 d=128 densebelow=0 tau=0.02 estimator=fp8:28",
                          "qheads=2 kvheads=1 k=2500 d=64 densebelow=0 tau=0.02 estimator=fp8 type=f16",
                          "qheads=2 kvheads=2 k=2500 d=128 densebelow=0 taus=0.02,0 estimator=int8",
                          "qheads=4 kvheads=1 k=3000 d=64 densebelow=0 tau=0.1 estimator=fp8:60 compensate=1",
                          "qheads=2 kvheads=1 k=2600 d=128 densebelow=0 tau=50 estimator=fp8:28",
                          "qheads=2 kvheads=1 k=2600 d=128 densebelow=0 tau=50 estimator=int8 compensate=1"};

// Of every row of a head: what its sink and local keys weigh.
std::vector<float> reference_of(const Instance& in, int64_t h) {
  const auto head = head_of(in, 0, h);
  const auto mean = sale_oracle::mean(head.k, head.k_len, head.d);
  auto smoothed = head.k;
  for (size_t i = 0; i < smoothed.size(); ++i) smoothed[i] -= mean[i % static_cast<size_t>(head.d)];
  const auto t = sale_oracle::thresholds(head, smoothed, mean, 1.0f, {in.c.sink, in.c.local}, false);
  std::vector<float> made;
  for (int64_t i = 0; i < head.q_len; ++i) {
    double mean_score = 0;
    for (int64_t c = 0; c < head.d; ++c)
      mean_score += double{head.q[static_cast<size_t>(i * head.d + c)]} * double{mean[static_cast<size_t>(c)]};
    made.push_back(static_cast<float>(t.exact[static_cast<size_t>(i)] + double{in.scale()} * mean_score));
  }
  return made;
}

struct Outcome {
  std::vector<sale_oracle::BlockLists> lists;  // [head], of tiles of 64 rows
  std::vector<float> out, lse;                 // [head, rows, d], [head, rows]
  std::vector<sale_head_audit> audits;
};

// Keys [begin, end) for rows from `row` on.
Outcome run_part(Copy& copy, const std::vector<float>& reference, int64_t begin, int64_t end, int64_t row,
                 int32_t audit = 0) {
  const Instance& in = copy.in;
  const int64_t heads = in.c.q_heads, rows = in.c.q_len - row, d = in.c.head_dim;
  std::vector<float> given;
  for (int64_t h = 0; h < heads; ++h)
    given.insert(given.end(), reference.begin() + h * in.c.q_len + row, reference.begin() + (h + 1) * in.c.q_len);
  const Buffer there(given.data(), given.size() * 4), out(static_cast<size_t>(heads * rows * d) * 2),
      lse(given.size() * 4);
  sale_problem p = copy.problem;
  p.q_len = rows;
  p.k_len = end - begin;
  p.q_offset = row - begin;
  p.out = {heads * rows * d, rows * d, d};
  p.part = 1;
  sale_layer l = copy.layer;
  if (begin > 0) l.sink = 0;
  sale_options o = copy.options;
  o.audit = audit;
  const Work work(p, l, o);
  const Blocks blocks = make_blocks(work.plan);
  sale_call call = copy.call();
  call.q = copy.row(in.q, copy.q(), 0, 0, row);
  call.k = copy.row(in.k, copy.k(), 0, 0, begin), call.v = copy.row(in.v, copy.v(), 0, 0, begin);
  call.out = out.data(), call.lse = reinterpret_cast<float*>(lse.data());
  call.reference = reinterpret_cast<const float*>(there.data());
  work.select(call, blocks);
  Outcome made;
  made.audits.resize(static_cast<size_t>(heads));
  sale_stats stats{};
  stats.struct_size = sizeof stats;
  stats.audits = made.audits.data();
  call.stats = audit > 0 ? &stats : nullptr;
  work.run(call);
  std::vector<uint16_t> raw(static_cast<size_t>(heads * rows * d));
  out.get(raw.data());
  made.lse.resize(given.size());
  lse.get(made.lse.data());
  expect(work.workspace.margin_intact() && out.margin_intact() && lse.margin_intact(), "a part wrote behind a buffer");
  for (const uint16_t& x : raw) made.out.push_back(sale_case::load(reinterpret_cast<const std::byte*>(&x), in.c.dtype));
  for (int32_t h = 0; h < heads; ++h) {
    made.lists.emplace_back();
    for (int64_t first = 0; first < rows; first += 64) {
      const int64_t t = first / tested().tile;
      made.lists.back().push_back(read_row(blocks.get(), {0, h, t}));
    }
  }
  return made;
}

std::vector<float> references_of(const Instance& in) {
  std::vector<float> all;
  for (int64_t h = 0; h < in.c.q_heads; ++h) {
    const auto one = reference_of(in, h);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

class Parts : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Problems, Parts, testing::ValuesIn(lines));

// The blocks of head h that two lists do not share, and how many there are in all.
void compare(const sale_oracle::BlockLists& a, const sale_oracle::BlockLists& b, int64_t& differ, int64_t& all) {
  for (size_t t = 0; t < a.size(); ++t) {
    std::vector<int32_t> difference;
    std::set_symmetric_difference(a[t].begin(), a[t].end(), b[t].begin(), b[t].end(), std::back_inserter(difference));
    differ += static_cast<int64_t>(difference.size());
    all += static_cast<int64_t>(2 * t + 2);
  }
}

// One part that is the whole decides as without a reference, but for rounding.
TEST_P(Parts, AReferenceOfItsOwnChangesLittle) {
  Instance in(served_line(GetParam()));
  Copy copy(in);
  const Outcome part = run_part(copy, references_of(in), 0, in.c.k_len, 0);
  const Lists whole = narrow(run(copy).lists, in);
  int64_t differ = 0, all = 0;
  for (size_t h = 0; h < part.lists.size(); ++h) compare(part.lists[h], whole[0][h], differ, all);
  std::printf("%lld of %lld blocks decided otherwise\n", static_cast<long long>(differ), static_cast<long long>(all));
  EXPECT_LE(differ, all / 500 + 2);
}

// Three parts, merged in double, are attention over the blocks of all.
TEST_P(Parts, MergeToTheWhole) {
  Instance in(served_line(GetParam()));
  Copy copy(in);
  const auto reference = references_of(in);
  const int64_t cuts[]{0, 768, 1280, in.c.k_len}, row = 1280, d = in.c.head_dim;
  std::vector<Outcome> parts;
  for (int i = 0; i < 3; ++i) parts.push_back(run_part(copy, reference, cuts[i], cuts[i + 1], row));
  const double eps = sale_case::epsilon(in.c.dtype);
  int64_t empty = 0;
  for (int64_t h = 0; h < in.c.q_heads; ++h) {
    auto head = head_of(in, 0, h);
    head.q = {head.q.begin() + row * d, head.q.end()};
    head.q_len -= row;
    head.q_offset = row;
    sale_oracle::BlockLists all(static_cast<size_t>(head.tiles()));
    for (size_t p = 0; p < parts.size(); ++p)
      for (size_t t = 0; t < all.size(); ++t) {
        const auto& list = parts[p].lists[static_cast<size_t>(h)][t];
        empty += list.empty();
        for (const int32_t block : list) all[t].push_back(block + static_cast<int32_t>(cuts[p] / 32));
      }
    const auto exact = sale_oracle::attend(head, all, form_of(in, tested().tile));
    for (int64_t r = 0; r < head.q_len; ++r) {
      const auto i = static_cast<size_t>(h * head.q_len + r);
      double top = -std::numeric_limits<double>::infinity(), total = 0;
      for (const Outcome& p : parts) top = std::max(top, double{p.lse[i]});
      for (const Outcome& p : parts) total += std::exp(double{p.lse[i]} - top);
      const double want = exact.lse[static_cast<size_t>(r)];
      ASSERT_NEAR(top + std::log(total), want, 2e-4 + 2e-6 * std::fabs(want)) << "head " << h << " row " << r;
      for (int64_t c = 0; c < d; ++c) {
        const auto at = i * static_cast<size_t>(d) + static_cast<size_t>(c), e = static_cast<size_t>(r * d + c);
        double merged = 0;
        for (const Outcome& p : parts) merged += std::exp(double{p.lse[i]} - top) / total * double{p.out[at]};
        ASSERT_NEAR(merged, exact.out[e], 2.5 * eps * exact.weighed[e] + 2e-4 * std::fabs(exact.out[e]) + 1e-30)
            << "head " << h << " row " << r << " coordinate " << c;
      }
    }
  }
  EXPECT_TRUE(empty > 0 || in.tau(0) < 50) << "every tile keeps something of every part";
}

// An audit is over the part's keys.
TEST(Parts, Audits) {
  Instance in(served_line("qheads=4 kvheads=2 k=2600 d=128 densebelow=0 taus=0.02,0.5,50,0 estimator=fp8:28"));
  Copy copy(in);
  const int64_t row = 1024, rows = in.c.q_len - row, cut = 1024;
  const Outcome a = run_part(copy, references_of(in), 0, cut, row, 50);
  for (int64_t h = 0; h < in.c.q_heads; ++h) {
    auto head = head_of(in, 0, h);
    const auto d = static_cast<int64_t>(head.d);
    head.q = {head.q.begin() + row * d, head.q.end()};
    head.k.resize(static_cast<size_t>(cut * d)), head.v.resize(static_cast<size_t>(cut * d));
    head.q_len = rows, head.k_len = cut, head.q_offset = row;
    const auto chosen = sale_oracle::audited_rows(rows, 50, copy.options.audit_seed);
    const auto i = static_cast<size_t>(h);
    const auto first = a.out.begin() + h * rows * d;
    const auto want = sale_oracle::audit(head, a.lists[i], {first, first + rows * d}, chosen);
    const sale_head_audit& got = a.audits[i];
    EXPECT_EQ(got.rows, static_cast<int64_t>(chosen.size()));
    EXPECT_NEAR(got.size, want.size, 2e-5 * want.size) << "head " << h;
    EXPECT_NEAR(got.error, want.error, 2e-5 * want.size) << "head " << h;
    EXPECT_NEAR(got.mass, want.mass, 1e-4 * static_cast<double>(chosen.size())) << "head " << h;
  }
}

TEST(Parts, Refusals) {
  Instance in(served_line("qheads=2 kvheads=1 q=200 k=900 d=64 densebelow=0 estimator=fp8:28"));
  Copy copy(in);
  const auto refused = [&](const char* named) {
    const Estimator layer = make_estimator(copy.layer);
    const sale_estimator* const one = layer.get();
    sale_plan* plan = nullptr;
    EXPECT_EQ(sale_plan_create(&copy.problem, &copy.options, &one, 1, &plan), SALE_INVALID_ARGUMENT) << named;
    EXPECT_NE(std::string(sale_last_error()).find(named), std::string::npos) << sale_last_error();
    sale_plan_destroy(plan);
  };
  copy.layer.sink = 0;
  refused("sink: 0 is not a multiple of 32 in 32");
  copy.problem.part = 1;
  copy.problem.q_offset = 1200;
  copy.options.compensate = 1;
  refused("compensate: of a part, rows beyond 900 keys");
  copy.options.compensate = 0;
  const Work work(copy);
  sale_call call = copy.call();
  EXPECT_EQ(work.try_run(call), SALE_INVALID_ARGUMENT);
  EXPECT_NE(std::string(sale_last_error()).find("reference: null"), std::string::npos) << sale_last_error();
  const std::vector<float> host(400);
  call.reference = host.data();
  EXPECT_EQ(work.try_run(call), SALE_INVALID_ARGUMENT);
  EXPECT_NE(std::string(sale_last_error()).find("reference: in host memory"), std::string::npos) << sale_last_error();
  cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

}  // namespace
}  // namespace sale_device
