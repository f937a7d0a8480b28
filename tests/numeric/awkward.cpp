// Section 7 of docs/numerics.md, row by row: awkward values have one defined outcome each.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "harness.hpp"

namespace sale_test {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();

Case plain_case(sale_dtype type) {
  Case c = sale_case::parse("q=700 d=64 tau=0.02 densebelow=0 local=64 seed=11");
  c.dtype = type;
  return c;
}

// Every backend and type; `body` throws Failed.
void everywhere(
    const std::function<void(Instance&, const std::string&)>& body,
    const std::function<void(Case&)>& adjust = [](Case&) {}) {
  for (sale_dtype type : {SALE_F32, SALE_F16, SALE_BF16}) {
    Case c = plain_case(type);
    adjust(c);
    for (const std::string& backend : usable_backends()) {
      Instance in(c);
      try {
        body(in, backend);
      } catch (const std::exception& e) {
        ADD_FAILURE() << backend << ": " << e.what() << "\n    " << sale_case::print(c);
      }
    }
  }
}

void set(sale_case::Tensor& t, int64_t row, int64_t c, float value) {
  sale_case::store(t.row(0, 0, row) + c * sale_case::bytes_of(t.dtype), t.dtype, value);
}

bool all_kept(const Result& r, const Instance& in, int64_t tile) {
  const auto head = head_of(in, 0, 0);
  return static_cast<int64_t>(r.lists[0][0][static_cast<size_t>(tile)].size()) == head.visible_blocks(tile);
}

bool row_is(const Instance& in, int64_t row, const std::function<bool(float)>& property) {
  for (int64_t c = 0; c < in.c.head_dim; ++c)
    if (!property(sale_case::load(in.out.row(0, 0, row) + c * sale_case::bytes_of(in.c.dtype), in.c.dtype)))
      return false;
  return property(in.lse_row(0, 0)[row]);
}
bool is_nan(float x) { return std::isnan(x); }
bool is_finite(float x) { return std::isfinite(x); }

void check_all(const Instance& in, const Result& r, const std::string& backend) {
  check_attention(in, 0, 0, expected_attention(in, 0, 0, r.lists[0][0]), backend);
}

TEST(Awkward, TheClearCaseIsSparse) {
  everywhere([](Instance& in, const std::string& backend) {
    const Result r = run(in, backend);
    expect(r.kept < r.visible * 95 / 100, "hardly anything is dropped: the tests here would show nothing");
  });
}

TEST(Awkward, QueryNotFinite) {
  for (const float value : {nan, inf, -inf})
    everywhere([&](Instance& in, const std::string& backend) {
      const Result clean = run(in, backend);
      set(in.q, 300, 5, value);
      const Result r = run(in, backend);
      expect(all_kept(r, in, 300 / 64), "the row's tile is not dense");
      for (size_t t = 0; t < r.lists[0][0].size(); ++t)
        if (t != 300 / 64) expect(r.lists[0][0][t] == clean.lists[0][0][t], "another tile's blocks changed");
      if (std::isnan(value)) expect(row_is(in, 300, is_nan), "the row is not NaN");
      expect(row_is(in, 299, is_finite) && row_is(in, 301, is_finite), "a neighbour is not finite");
      check_all(in, r, backend);
    });
}

TEST(Awkward, QueryNotFiniteInt4IsDense) {
  everywhere(
      [](Instance& in, const std::string& backend) {
        set(in.q, 300, 5, nan);
        const Result r = run(in, backend);
        expect(r.kept == r.visible, "the head is not dense");
        check_all(in, r, backend);
      },
      [](Case& c) { c.format = SALE_INT4; });
}

TEST(Awkward, KeyNotFinite) {
  for (const float value : {nan, inf, -inf})
    everywhere([&](Instance& in, const std::string& backend) {
      set(in.k, 200, 3, value);
      const Result r = run(in, backend);
      expect(r.kept == r.visible, "the key was there when smoothing was made: the head must be dense");
      for (int64_t i = 0; i < 200; ++i) expect(row_is(in, i, is_finite), "a row before the key is not finite");
      if (std::isnan(value))
        for (int64_t i = 200; i < 700; ++i) expect(row_is(in, i, is_nan), "a row that sees the key is not NaN");
      check_all(in, r, backend);
    });
}

// Smoothing fixed without the bad key: only its block is affected, for tiles whose reference it does not belong to.
TEST(Awkward, KeyNotFiniteAfterSmoothing) {
  everywhere([](Instance& in, const std::string& backend) {
    const auto mean = sale_oracle::mean(in.k.head(0, 0), in.c.k_len, in.c.head_dim);
    sale_layer layer = with_backend(in.layer, backend);
    layer.smoothing = mean.data();
    const auto select = [&] {
      const Step step(in.problem, layer, in.options, true);
      const Index index = make_index(step.layer, in.c.k_len);
      ok(sale_index_update(index.get(), in.keys(0), in.problem.k, in.c.k_len, nullptr, nullptr), "sale_index_update");
      const Blocks blocks = make_blocks(step.plan);
      const sale_index* const indexes[]{index.get()};
      sale_call call = in.call();
      call.indexes = indexes;
      step.select(call, blocks);
      return read_lists(in, blocks.get())[0][0];
    };
    const auto clean = select();
    set(in.k, 200, 3, nan);
    const auto lists = select();
    const auto head = head_of(in, 0, 0);
    for (int64_t t = 0; t < head.tiles(); ++t) {
      auto expected = clean[static_cast<size_t>(t)];
      const bool near = 64 * t + 1 - in.c.local < 224 && 64 * t + 63 >= 200;  // key 200 among the reference keys
      if (near) {
        expected.clear();
        for (int32_t b = 0; b < head.visible_blocks(t); ++b) expected.push_back(b);
      } else if (head.visible_blocks(t) > 6 && !std::binary_search(expected.begin(), expected.end(), 6)) {
        expected.insert(std::lower_bound(expected.begin(), expected.end(), 6), 6);
      }
      expect(lists[static_cast<size_t>(t)] == expected,
             "tile " + std::to_string(t) + " keeps other blocks than it should");
    }
  });
}

TEST(Awkward, ValueNotFinite) {
  everywhere([](Instance& in, const std::string& backend) {
    const Result clean = run(in, backend);
    set(in.v, 200, 7, nan);
    const Result r = run(in, backend);
    expect(r.lists == clean.lists, "values change the selection");
    for (int64_t i = 0; i < in.c.q_len; ++i) {
      const auto& kept = r.lists[0][0][static_cast<size_t>(i / 64)];
      const bool reached = std::binary_search(kept.begin(), kept.end(), 200 / 32);
      for (int64_t c = 0; c < in.c.head_dim; ++c) {
        const float x = sale_case::load(in.out.row(0, 0, i) + c * sale_case::bytes_of(in.c.dtype), in.c.dtype);
        if (!reached || c != 7) expect(std::isfinite(x), "NaN reached row " + std::to_string(i));
        if (reached && c == 7 && i >= 200) expect(std::isnan(x), "NaN did not reach row " + std::to_string(i));
      }
    }
    check_all(in, r, backend);
  });
}

// Zero queries: every estimate and every reference score is 0, so T = ln(tau n) with n reference keys decides.
TEST(Awkward, ZerosFollowTheThreshold) {
  for (const float tau : {0.001f, 0.5f})
    everywhere(
        [&](Instance& in, const std::string& backend) {
          const Result r = run(in, backend);
          expect((r.kept == r.visible) == (tau == 0.001f), "estimate 0 against ln(tau n): wrong decision");
          check_all(in, r, backend);
        },
        [&](Case& c) {
          c.data = sale_case::Data::zeros;
          c.taus = {tau};
        });
}

TEST(Awkward, ZerosAndConstantsInt4AreKept) {
  for (const sale_case::Data data : {sale_case::Data::zeros, sale_case::Data::constant})
    everywhere(
        [](Instance& in, const std::string& backend) {
          const Result r = run(in, backend);
          expect(r.kept == r.visible, "scales of 0 in INT4 keep every block");
          check_all(in, r, backend);
        },
        [&](Case& c) {
          c.format = SALE_INT4;
          c.taus = {0.5f};
          c.data = data;
        });
}

TEST(Awkward, ScoresBeyondF32) {
  everywhere(
      [](Instance& in, const std::string& backend) {
        if (in.c.dtype == SALE_F16) return;  // cannot get there
        for (int64_t i = 0; i < in.c.k_len; ++i) set(in.k, i, 0, i % 2 == 0 ? 3e38f : -3e38f);
        for (int64_t i = 0; i < in.c.q_len; ++i) set(in.q, i, 0, 1e10f);
        const Result r = run(in, backend);
        expect(r.kept == r.visible, "infinite scores keep every block");
        for (int64_t i = 0; i < in.c.q_len; ++i) expect(row_is(in, i, is_nan), "infinite scores give NaN");
      },
      [](Case& c) { c.taus = {0.5f}; });
}

// The caller's own lists: rows 0 .. 31 see nothing of block 1.
TEST(Awkward, RowsWithoutKeys) {
  for (const sale_compute compute : {SALE_COMPUTE_EXACT, SALE_COMPUTE_INT8})
    everywhere(
        [](Instance& in, const std::string& backend) {
          const Step step(in.problem, with_backend(in.layer, backend), in.options);
          const Blocks blocks = make_blocks(step.plan);
          const int32_t one = 1;
          ok(sale_blocks_set_row(blocks.get(), {0, 0, 0}, &one, 1), "sale_blocks_set_row");
          step.attend(in.call(), blocks);
          for (int64_t i = 0; i < 32; ++i) {
            const float lse = in.lse_row(0, 0)[i];
            expect(lse == -inf, "lse of row " + std::to_string(i) + " without keys is " + std::to_string(lse));
            in.lse_row(0, 0)[i] = 0;
            expect(row_is(in, i, [](float x) { return x == 0; }),
                   "out of row " + std::to_string(i) + " without keys is not 0");
            in.lse_row(0, 0)[i] = lse;
          }
          const auto lists = read_lists(in, blocks.get());
          check_attention(in, 0, 0, expected_attention(in, 0, 0, lists[0][0]), backend);
        },
        [&](Case& c) { c.compute = compute; });
}

TEST(Awkward, EveryScoreMinusInfinity) {
  everywhere([](Instance& in, const std::string& backend) {
    for (int64_t j = 0; j < in.c.k_len; ++j) set(in.k, j, 0, -1.0f);
    set(in.q, 100, 0, inf);
    const Result r = run(in, backend);
    for (int64_t c = 0; c < in.c.head_dim; ++c)
      expect(sale_case::load(in.out.row(0, 0, 100) + c * sale_case::bytes_of(in.c.dtype), in.c.dtype) == 0,
             "out is not 0");
    expect(in.lse_row(0, 0)[100] == -inf, "lse is not minus infinity");
    check_all(in, r, backend);
  });
}

// One row per kind of data on which the generated tests spend little.
TEST(Awkward, EveryKindOfData) {
  Tally total;
  const int64_t kinds = static_cast<int64_t>(sale_case::Data::inf_v) + 1;
  const std::string failures = in_parallel(
      kinds * 18,
      [&](int64_t i) {
        Case c = plain_case(static_cast<sale_dtype>(i / kinds % 3));
        c.q_len = c.k_len = 400;
        c.data = static_cast<sale_case::Data>(i % kinds);
        constexpr sale_format formats[]{SALE_INT8, SALE_INT4, SALE_FP4};
        c.format = formats[i / kinds / 3 % 3];
        c.compute = i / kinds / 9 == 0 ? SALE_COMPUTE_EXACT : SALE_COMPUTE_INT8;
        c.seed = static_cast<uint64_t>(i);
        return c;
      },
      check_case, total);
  EXPECT_TRUE(failures.empty()) << failures;
}

}  // namespace
}  // namespace sale_test
