// Random problems out of the whole space, and every length around the block sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "harness.hpp"

namespace sale_test {
namespace {

void report(const char* what, const Tally& t) {
  std::printf(
      "%s: %lld problems, %lld backend runs; density %.1f%%; %lld of %lld candidate blocks differ from exact "
      "thresholds; worst error %.0f%% of its limit\n",
      what, static_cast<long long>(t.cases), static_cast<long long>(t.backend_runs),
      100.0 * static_cast<double>(t.kept) / static_cast<double>(t.visible), static_cast<long long>(t.exempted),
      static_cast<long long>(t.candidates), 100 * t.worst);
}

TEST(Generated, AgreesWithTheOracleOnAllBackends) {
  Tally total;
  const uint64_t seed = flags().seed * 1'000'000;
  const std::string failures = in_parallel(
      flags().cases, [&](int64_t i) { return sale_case::random_case(seed + static_cast<uint64_t>(i)); }, check_case,
      total);
  report("generated", total);
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_LE(static_cast<double>(total.exempted), 0.001 * static_cast<double>(total.candidates));
}

// Whole prompts of every length, alternating what else they are.
TEST(Generated, EveryLength) {
  Tally total;
  const std::string failures = in_parallel(
      257,
      [](int64_t i) {
        Case c;
        c.q_len = c.k_len = i + 1;
        c.head_dim = i % 2 == 0 ? 64 : 32;
        c.dense_below = 0;
        c.sink = c.local = 32;
        c.taus = {0.05f};
        c.format = i % 3 == 0 ? SALE_INT4 : i % 3 == 1 ? SALE_FP4 : SALE_INT8;
        c.dtype = static_cast<sale_dtype>(i % 3);
        c.compute = i % 5 == 0 ? SALE_COMPUTE_INT8 : SALE_COMPUTE_EXACT;
        c.seed = static_cast<uint64_t>(i);
        return c;
      },
      check_case, total);
  report("every length", total);
  EXPECT_TRUE(failures.empty()) << failures;
}

// The last rows of prompts of every length: the offset takes every remainder.
TEST(Generated, EveryChunkLength) {
  Tally total;
  const std::string failures = in_parallel(
      257,
      [](int64_t i) {
        Case c;
        c.q_len = (i * 37) % 97 + 1;
        c.k_len = c.q_len + i;
        c.head_dim = 64;
        c.dense_below = 0;
        c.sink = c.local = 32;
        c.taus = {0.02f};
        c.q_heads = c.kv_heads * 2;
        c.dtype = i % 2 == 0 ? SALE_BF16 : SALE_F16;
        c.format = i % 4 == 0 ? SALE_INT4 : i % 4 == 1 ? SALE_FP4 : SALE_INT8;
        c.seed = static_cast<uint64_t>(i) + 1000;
        return c;
      },
      check_case, total);
  report("every chunk length", total);
  EXPECT_TRUE(failures.empty()) << failures;
}

// Every head dimension that a problem may have, with every type and every kind of products. Backends that do not serve
// one say so; the last of the list serves all of them, and is compared with the oracle on each.
TEST(Generated, EveryHeadDimension) {
  struct Kind {
    sale_format format;
    bool projected;
    sale_dtype dtype;
    sale_compute compute;
  };
  constexpr Kind kinds[]{
      {SALE_INT8, false, SALE_BF16, SALE_COMPUTE_EXACT}, {SALE_INT4, false, SALE_F16, SALE_COMPUTE_EXACT},
      {SALE_FP4, false, SALE_BF16, SALE_COMPUTE_EXACT},  {SALE_FP4, true, SALE_F16, SALE_COMPUTE_EXACT},
      {SALE_INT8, true, SALE_F32, SALE_COMPUTE_EXACT},   {SALE_INT8, false, SALE_BF16, SALE_COMPUTE_INT8}};
  constexpr int64_t dims = 16;  // 16, 32 .. 256
  const auto make = [&](int64_t i) {
    const Kind& kind = kinds[i / dims];
    Case c;
    c.head_dim = static_cast<int32_t>(16 * (i % dims + 1));
    c.q_len = 90, c.k_len = 420;
    c.dense_below = 0;
    c.sink = c.local = 32;
    c.taus = {0.02f};
    c.format = kind.format, c.dtype = kind.dtype, c.compute = kind.compute;
    if (kind.projected && c.head_dim > 16) c.rank = 16 * (1 + c.head_dim / 64);
    c.seed = static_cast<uint64_t>(i) + 2000;
    return c;
  };
  const auto body = [](const Case& c) {
    const auto served = backends_for(Instance(c));
    expect(std::find(served.begin(), served.end(), last_backend()) != served.end(),
           last_backend() + " does not serve this problem");
    return check_case(c);
  };
  Tally total;
  const std::string failures = in_parallel(dims * static_cast<int64_t>(std::size(kinds)), make, body, total);
  report("every head dimension", total);
  EXPECT_TRUE(failures.empty()) << failures;
}

TEST(Generated, LongAndAwkwardLengths) {
  const char* const lines[]{"q=1023 d=64 densebelow=0",
                            "q=1024 d=64 densebelow=1k",
                            "q=1025 d=64 densebelow=1k",
                            "q=1023 d=64 densebelow=1k",
                            "q=64 k=4224 d=128 type=f16",
                            "q=1 k=5000 d=128",
                            "q=2k k=2k d=64 type=bf16 tau=0.02",
                            "q=65 k=12k d=64 estimator=int4",
                            "q=65 k=12k d=64 estimator=fp4",
                            "q=100 k=9000 d=128 qheads=4 kvheads=1 estimator=fp4:48 type=f32",
                            "q=100 k=9000 d=128 qheads=4 kvheads=1 estimator=int8:32 type=f32"};
  Tally total;
  const std::string failures = in_parallel(
      static_cast<int64_t>(std::size(lines)), [&](int64_t i) { return sale_case::parse(lines[i]); }, check_case, total);
  report("long", total);
  EXPECT_TRUE(failures.empty()) << failures;
}

TEST(Generated, LinesReadBackAsTheyWerePrinted) {
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const Case c = sale_case::random_case(seed);
    EXPECT_EQ(sale_case::parse(sale_case::print(c)), c) << sale_case::print(c);
  }
}

TEST(Generated, BadLinesAreRefusedByWord) {
  const char* const lines[]{"batch",
                            "batch=",
                            "batch=x",
                            "batch=1 batch=1",
                            "nonsense=1",
                            "q=12x",
                            "q=-1",
                            "q=99999999999999999999",
                            "q=9000000000000000m",
                            "type=f64",
                            "tau=nan",
                            "tau=-1",
                            "tau=1e99",
                            "taus=0.1,,0.2",
                            "taus=1,2",
                            "qlens=1,2",
                            "batch=2 qlens=5 ",
                            "estimator=int2",
                            "estimator=int8:",
                            "estimator=int8:0",
                            "estimator=int8:x",
                            "layout=x",
                            "data=",
                            "seed=1.5",
                            "index=2",
                            "backend=AVX",
                            "q=1 qlens=1",
                            "tau=1 tau=2",
                            "tau=1 taus=1",
                            "=",
                            "=1",
                            "q==1",
                            "offset=-1",
                            "scale=inf",
                            "compute=int4",
                            "threads=k",
                            "batch=3000000000",
                            "offsets=auto,1"};
  for (const char* line : lines) {
    try {
      sale_case::parse(line);
      ADD_FAILURE() << line << " was accepted";
    } catch (const sale_case::Error& e) {
      EXPECT_GT(std::string(e.what()).size(), 8u) << line;
    }
  }
}

}  // namespace
}  // namespace sale_test
