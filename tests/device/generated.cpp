// Problems out of the whole space, every length around the block sizes, and one small problem per kernel.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "device.hpp"

namespace sale_device {
namespace {

void report(const char* what, const Tally& t) {
  std::printf(
      "%s: %lld problems; density %.1f%%; %lld of %lld candidate blocks decided otherwise than exact sums of "
      "the codes; worst error %.0f%% of its limit\n",
      what, static_cast<long long>(t.cases),
      t.visible > 0 ? 100.0 * static_cast<double>(t.kept) / static_cast<double>(t.visible) : 0.0,
      static_cast<long long>(t.exempted), static_cast<long long>(t.candidates), 100 * t.worst);
}

void on_cases(const char* what, int64_t n, const std::function<Case(int64_t)>& make) {
  Tally total;
  const std::string failures = in_parallel(n, [&](int64_t i) { return served(make(i)); }, check_device_case, total);
  report(what, total);
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_LE(static_cast<double>(total.exempted), 0.001 * static_cast<double>(total.candidates) + 1);
}

void on_lines(const char* what, const std::vector<const char*>& lines) {
  on_cases(what, static_cast<int64_t>(lines.size()),
           [&](int64_t i) { return served_line(lines[static_cast<size_t>(i)]); });
}

TEST(Generated, AgreesWithTheOracle) {
  const uint64_t seed = flags().seed * 1'000'000;
  on_cases("generated", flags().cases, [&](int64_t i) { return device_case(seed + static_cast<uint64_t>(i)); });
}

// Whole prompts of every length, alternating what else they are.
TEST(Generated, EveryLength) {
  on_cases("every length", 300, [](int64_t i) {
    Case c;
    c.q_len = c.k_len = i + 1;
    c.head_dim = i % 2 == 0 ? 64 : 128;
    c.dense_below = 0;
    c.sink = c.local = 32;
    c.taus = {0.05f};
    c.format = i % 4 == 0 ? SALE_INT8 : SALE_FP8;
    c.rank = i % 4 == 0 ? 0 : i % 4 == 1 ? 28 : i % 4 == 2 ? 60 : 0;
    c.dtype = i % 3 == 0 ? SALE_F16 : SALE_BF16;
    c.page_size = i % 5 == 0 ? 16 : 0;
    c.q_heads = static_cast<int32_t>(1 + i % 4);
    set_form(c, i % 7);
    c.seed = static_cast<uint64_t>(i);
    return c;
  });
}

// The last rows of prompts of every length: the offset takes every remainder.
TEST(Generated, EveryChunkLength) {
  on_cases("every chunk length", 257, [](int64_t i) {
    Case c;
    c.q_len = (i * 37) % 161 + 1;
    c.k_len = c.q_len + i;
    c.head_dim = i % 2 == 0 ? 128 : 64;
    c.dense_below = 0;
    c.sink = c.local = 32;
    c.taus = {0.02f};
    c.q_heads = 2;
    c.dtype = i % 3 == 0 ? SALE_F16 : SALE_BF16;
    c.format = i % 4 == 0 ? SALE_INT8 : SALE_FP8;
    c.rank = i % 4 == 1 ? 28 : i % 4 == 2 ? 60 : 0;
    set_form(c, i % 7);
    c.seed = static_cast<uint64_t>(i) + 1000;
    return c;
  });
}

TEST(Generated, LongAndAwkwardLengths) {
  on_lines("long",
           {"q=1023 d=64 densebelow=0 estimator=fp8:28", "q=1024 d=64 densebelow=1k estimator=fp8:28",
            "q=1025 d=64 densebelow=1k estimator=fp8", "q=1023 d=64 densebelow=1k estimator=fp8",
            "q=64 k=4224 d=128 type=f16 estimator=fp8:28", "q=1 k=5000 d=128 estimator=fp8",
            "q=1 k=9000 d=128 estimator=int8", "q=2k k=2k d=64 type=bf16 tau=0.02 estimator=int8",
            "q=129 k=12k d=64 estimator=fp8:60 page=16", "q=200 k=33000 d=128 estimator=fp8:28 page=64",
            "q=300 k=20000 d=128 estimator=fp8:28 type=f16 qheads=2 kvheads=1",
            "q=100 k=9000 d=128 qheads=4 kvheads=1 estimator=int8",
            "q=100 k=9000 d=128 qheads=8 kvheads=1 estimator=fp8:28 tau=0.001",
            "q=1 k=4097 d=64 estimator=fp8:28 compute=fp8 compensate=1",
            "q=1025 d=64 densebelow=1k estimator=fp8 type=f16 compensate=1",
            "q=129 k=12k d=64 estimator=fp8:60 page=16 compensate=1",
            "q=129 k=12k d=128 estimator=fp8:28 page=16 compute=fp8",
            "q=200 k=33000 d=128 estimator=fp8:28 page=64 compute=fp8 compensate=1",
            "q=300 k=20000 d=128 estimator=fp8:28 type=f16 qheads=2 kvheads=1 compute=fp8 compensate=1 tau=0.05"});
}

// Windows that begin at every place in a block, of a key, of a tile, near the local region, as long as the keys, over
// rows beyond the keys; with the sink in sight and without.
TEST(Generated, Windows) {
  // Where fewer problems are wanted of the generator (an emulator), fewer of these too.
  on_cases("windows", std::min<int64_t>(60 * forms, flags().cases), [](int64_t n) {
    const int64_t i = n / forms;
    constexpr int64_t windows[]{1, 2, 31, 32, 33, 64, 128, 129, 190, 222, 223, 224, 256, 300, 385, 600, 1023, 1500};
    Case c;
    c.q_len = i % 3 == 0 ? 1100 : 300 + 7 * i;
    c.k_len = 1100;
    c.q_offset = i % 7 == 6 ? 1000 : SALE_AUTO;
    c.window = windows[i % static_cast<int64_t>(std::size(windows))];
    c.window_sink = i % 2 == 1;
    c.sink = i % 5 == 0 ? 64 : 32;
    c.local = i % 4 == 0 ? 64 : 128;
    c.q_heads = static_cast<int32_t>(1 + i % 4);
    c.head_dim = i % 3 == 1 ? 64 : 128;
    c.dense_below = 0;
    c.taus = {i % 6 == 5 ? 0.0f : 0.05f};
    c.format = i % 4 == 0 ? SALE_INT8 : SALE_FP8;
    c.rank = i % 4 == 1 ? 28 : 0;
    c.page_size = i % 5 == 3 ? 16 : 0;
    c.dtype = i % 3 == 0 ? SALE_F16 : SALE_BF16;
    set_form(c, n);
    c.seed = static_cast<uint64_t>(i) + 4000;
    return c;
  });
}

TEST(Generated, LongWindows) {
  on_lines("long windows", {"q=300 k=20000 d=128 estimator=fp8:28 window=9000 qheads=2 kvheads=1",
                            "q=300 k=20000 d=64 estimator=int8 window=5000 windowsink=1",
                            "q=129 k=33000 d=128 estimator=fp8 window=4096 windowsink=1 compute=fp8 compensate=1",
                            "q=129 k=33000 d=64 estimator=fp8:28 window=700 page=64 compensate=1 tau=0.05"});
}

// Groups of query heads take 4, 2 or 1 slot of a thread block.
TEST(Generated, Groups) {
  on_cases("groups", 24 * forms, [](int64_t n) {
    const int64_t i = n / forms;
    Case c;
    c.kv_heads = 1 + static_cast<int32_t>(i % 2);
    c.q_heads = c.kv_heads * static_cast<int32_t>(1 + i / 2);
    c.q_len = c.k_len = 700;
    c.head_dim = i % 4 < 2 ? 128 : 64;
    c.dense_below = 0;
    c.format = i % 3 == 0 ? SALE_INT8 : SALE_FP8;
    c.rank = i % 3 == 1 ? 28 : 0;
    set_form(c, n);
    c.seed = static_cast<uint64_t>(i) + 50;
    return c;
  });
}

// More sequences than one launch takes.
TEST(Generated, LargeBatch) {
  on_cases("large batch", 3 * forms, [](int64_t n) {
    const int64_t i = n / forms;
    Case c;
    c.batch = 150;
    for (int64_t b = 0; b < c.batch; ++b) c.q_lens.push_back(1 + (b * 53) % 400);
    c.k_lens = c.q_lens;
    c.q_len = c.k_len = 400;
    c.layout = i == 0 ? sale_case::Layout::packed : sale_case::Layout::bhld;
    c.page_size = i == 2 ? 16 : 0;
    c.dense_below = 100;
    c.local = 32;
    c.format = SALE_FP8;
    c.rank = i == 1 ? 0 : 28;
    set_form(c, n);
    return c;
  });
}

// Heads of threshold 0 and sequences below dense_below, beside sparse ones.
TEST(Generated, DenseHeadsAndSequences) {
  on_lines(
      "dense parts",
      {"qheads=4 kvheads=2 k=900 d=128 densebelow=0 taus=0,0.02,0.02,0 estimator=fp8:28",
       "qheads=4 kvheads=2 k=900 d=64 densebelow=0 taus=0,0.02,0.02,0 estimator=int8",
       "qheads=4 kvheads=2 k=900 d=64 densebelow=0 taus=0.02,0.02,0.02,0 estimator=fp8 type=f16",
       "batch=3 qheads=2 kvheads=1 qlens=900,500,800 d=128 densebelow=600 estimator=fp8:28",
       "qheads=2 kvheads=2 k=900 d=128 tau=0 estimator=fp8:28", "k=900 d=128 densebelow=1m estimator=fp8",
       "qheads=4 kvheads=2 k=900 d=128 densebelow=0 taus=0,0.02,0.02,0 estimator=fp8:28 compute=fp8 compensate=1",
       "qheads=4 kvheads=2 k=900 d=64 densebelow=0 taus=0,0.02,0.02,0 estimator=int8 compensate=1",
       "batch=3 qheads=2 kvheads=1 qlens=900,500,800 d=128 densebelow=600 estimator=fp8:28 compute=fp8 compensate=1",
       "k=900 d=64 densebelow=1m estimator=fp8 type=f16 compute=fp8"});
}

TEST(Generated, AwkwardValues) {
  on_cases("awkward values", 15 * 6 * forms, [](int64_t n) {
    const int64_t i = n / forms;
    Case c;
    c.data = static_cast<sale_case::Data>(static_cast<int64_t>(sale_case::Data::integers) + i % 15);
    c.q_heads = 2;
    c.q_len = c.k_len = 500 + 13 * i;
    set_form(c, n);
    c.head_dim = i / 15 % 2 == 0 ? 64 : 128;
    c.dense_below = 0;
    c.local = 64;
    c.format = i / 15 % 3 == 0 ? SALE_INT8 : SALE_FP8;
    c.rank = i / 15 % 3 == 1 ? 28 : 0;
    c.dtype = i % 2 == 0 ? SALE_BF16 : SALE_F16;
    c.seed = static_cast<uint64_t>(i);
    return c;
  });
}

// Codes, scales and lists of the backend whose estimators are the CPUs'.
TEST(Generated, CodesAndListsAreThoseOfTheCpu) {
  if (!tested().int4()) GTEST_SKIP() << "FP8 is not theirs; INT8: the next test";
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Case c = device_case(800'000 + seed);
    c.page_size = 0;
    c.compute = SALE_COMPUTE_EXACT;
    c.compensate = false;
    Instance in(c);
    const Result host = sale_test::run(in, last_backend());
    Copy copy(in);
    const Result device = run(copy);
    ASSERT_TRUE(device.lists == host.lists) << sale_case::print(c);
    const int64_t rank = c.rank == 0 ? c.head_dim : c.rank, groups = c.format == SALE_INT4 ? 4 : 1;
    for (size_t b = 0; b < host.indexes.size(); ++b)
      for (int32_t h = 0; h < c.kv_heads; ++h) {
        const int64_t keys = in.sequences[b].k_len;
        const int8_t *want, *got;
        const float *want_scales, *got_scales;
        ok(sale_index_codes(host.indexes[b].get(), h, &want, &want_scales, nullptr), "sale_index_codes");
        ok(sale_index_codes(device.indexes[b].get(), h, &got, &got_scales, nullptr), "sale_index_codes");
        ASSERT_EQ(std::memcmp(want, got, static_cast<size_t>(keys * rank)), 0) << sale_case::print(c);
        for (int64_t i = 0; i < (keys + 31) / 32 * groups; ++i)
          ASSERT_TRUE(want_scales[i] == got_scales[i] || (std::isnan(want_scales[i]) && std::isnan(got_scales[i])))
              << sale_case::print(c) << ": scale " << i;
      }
  }
}

TEST(Generated, ListsOfInt8AreThoseOfTheCpu) {
  if (tested().int4()) GTEST_SKIP() << "the test before says so";
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Case c = device_case(900'000 + seed);
    c.format = SALE_INT8;
    c.rank = c.page_size = 0;
    c.compute = SALE_COMPUTE_EXACT;
    c.compensate = false;
    c.data = sale_case::Data::real_like;
    c.window = 0, c.window_sink = false;  // where one begins, a tile of 128 rows has more candidates than its halves
    Instance in(c);
    const Lists host = sale_test::run(in, last_backend()).lists;
    Copy copy(in);
    const Lists wide = run(copy).lists;
    for (size_t b = 0; b < wide.size(); ++b)
      for (size_t h = 0; h < wide[b].size(); ++h)
        for (size_t t = 0; t < wide[b][h].size(); ++t) {
          const auto range = sale_oracle::wide_range(head_of(in, static_cast<int64_t>(b), static_cast<int64_t>(h)),
                                                     static_cast<int64_t>(t), {c.sink, c.local});
          std::vector<int32_t> want;
          const bool dense = in.dense(static_cast<int64_t>(b)) || in.tau(static_cast<int64_t>(h)) == 0;
          for (int32_t block = 0; block < range.visible; ++block) {
            bool kept = dense || block < range.first || block >= range.last;
            for (size_t half = 2 * t; half < 2 * t + 2 && half < host[b][h].size(); ++half)
              kept = kept || std::binary_search(host[b][h][half].begin(), host[b][h][half].end(), block);
            if (kept) want.push_back(block);
          }
          ASSERT_EQ(wide[b][h][t], want) << sale_case::print(c) << ": head " << h << " tile " << t;
        }
  }
}

// For compute-sanitizer: every kernel once.
const char* const small[]{
    "qheads=4 kvheads=1 k=300 d=128 densebelow=0 local=32 estimator=fp8:28",
    "qheads=2 kvheads=1 k=300 d=64 densebelow=0 local=32 estimator=fp8:60 type=f16",
    "qheads=2 kvheads=2 k=300 d=128 densebelow=0 local=32 estimator=fp8 type=f16",
    "qheads=2 kvheads=2 k=300 d=64 densebelow=0 local=32 estimator=fp8",
    "qheads=1 kvheads=1 k=300 d=128 densebelow=0 local=32 estimator=int8",
    "qheads=2 kvheads=1 k=300 d=64 densebelow=0 local=32 estimator=int8 page=16",
    "qheads=3 kvheads=1 k=300 d=64 densebelow=0 local=32 estimator=fp8:4 type=f16",
    "qheads=2 kvheads=1 k=300 d=128 densebelow=0 local=32 estimator=fp8:60",
    // means.cu
    "qheads=2 kvheads=1 k=400 d=128 densebelow=0 local=32 tau=0.2 estimator=fp8:28 compensate=1",
    "qheads=2 kvheads=2 k=400 d=64 densebelow=0 local=32 tau=0.2 estimator=fp8 type=f16 compensate=1",
    // low_bit.cu, attend8.cu
    "qheads=2 kvheads=1 k=400 d=128 densebelow=0 local=32 tau=0.2 estimator=fp8:28 compute=fp8",
    "qheads=2 kvheads=1 k=400 d=64 densebelow=0 local=32 tau=0.2 estimator=fp8 type=f16 compute=fp8",
    "qheads=2 kvheads=1 k=400 d=128 densebelow=0 local=32 tau=0.2 estimator=fp8 type=f16 compute=fp8 "
    "compensate=1",
    "qheads=2 kvheads=1 k=400 d=64 densebelow=0 local=32 tau=0.2 estimator=fp8:28 compute=fp8 "
    "compensate=1 page=16",
    // windows
    "qheads=4 kvheads=1 k=700 d=128 densebelow=0 local=32 tau=0.2 estimator=fp8:28 window=300 compensate=1",
    "qheads=2 kvheads=1 k=600 d=64 densebelow=0 local=32 tau=0.2 estimator=int8 window=257 windowsink=1",
    "qheads=1 kvheads=1 k=500 d=128 densebelow=0 local=32 tau=0.2 estimator=fp8 type=f16 window=200 compute=fp8"};
class OneShape : public testing::TestWithParam<int> {};
TEST_P(OneShape, OfEveryKernel) {
  Case c = served_line(small[GetParam()]);
  const bool exact = c.compute == SALE_COMPUTE_EXACT;
  for (const sale_compute compute : exact ? std::vector{SALE_COMPUTE_EXACT} : low_bit_forms()) {
    c.compute = compute;
    report(small[GetParam()], check_device_case(c));
  }
}
INSTANTIATE_TEST_SUITE_P(Small, OneShape, testing::Range(0, static_cast<int>(std::size(small))));

}  // namespace
}  // namespace sale_device
