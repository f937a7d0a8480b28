// The C++ layer: owners, builders, and that errors arrive as sale::Error with the library's words.
#include <gtest/gtest.h>
#include <algorithm>
#include <functional>
#include <random>

#include "sale/sale.hpp"

namespace {

struct Data {
  std::vector<float> q, k, v, out;
  explicit Data(int64_t tokens) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (auto* t : {&q, &k, &v})
      for (int64_t i = 0; i < 2 * tokens * 32; ++i) t->push_back(normal(random));
    out.resize(q.size());
  }
  sale::Tensors tensors() { return {q.data(), k.data(), v.data(), out.data(), nullptr}; }
};

sale_status status_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const sale::Error& e) {
    EXPECT_STRNE(e.what(), "");
    return e.status();
  }
  return SALE_OK;
}

TEST(Hpp, RunIsSelectAndAttend) {
  constexpr int64_t n = 2048;
  Data data(n);
  const sale::Problem problem(1, 2, 2, n, n, 32, SALE_F32);
  const sale::Plan plan(problem, sale::Options().threshold(0.02f));
  const sale::Workspace workspace(plan.workspace().total);
  sale::Stats stats;
  stats.per_head = true;
  plan.run(data.tensors(), workspace, {}, &stats);
  EXPECT_EQ(stats.heads.size(), 2u);
  EXPECT_GT(stats.density(), 0);
  const std::vector<float> whole = data.out;

  sale::BlockList blocks(plan);
  EXPECT_EQ(static_cast<int64_t>(blocks.row(0, 1, 5).kept.size()), blocks.row(0, 1, 5).visible);
  plan.select(data.tensors(), blocks, workspace);
  plan.attend(data.tensors(), blocks, workspace);
  EXPECT_EQ(data.out, whole);

  sale::KeyIndex index(problem, sale::Options(), n);
  index.update(data.k.data(), problem.c().k, n);
  EXPECT_EQ(index.length(), n);
  const sale::Plan indexed(problem, sale::Options().threshold(0.02f), sale::Plan::Keys::have_an_index);
  const sale::Workspace less(indexed.workspace().total);
  const sale_index* handle = index.get();
  indexed.run(data.tensors(), less, {&handle, 1});
  EXPECT_EQ(data.out, whole);
  index.truncate(100);
  EXPECT_EQ(index.length(), 100);
}

// A cache of eight pages, two prompts of 128 keys in it of which the second shares the first's beginning.
TEST(Hpp, CodesInPages) {
  constexpr int64_t n = 128, d = 32, page = 32;
  Data data(2 * n);
  const std::vector<float> smoothing(2 * d, 0.1f);
  const std::vector<int32_t> table{3, 1, 2, 0, 3, 1, 5, 4};
  const std::vector<int64_t> coded{0, 2 * page};
  sale::Problem problem(2, 2, 2, n, n, d, SALE_F32);
  problem.paged(page, 4).k_coded(coded);
  const sale_strides pages{2 * page * d, page * d, d};
  const sale_strides rows{0, 2 * n * d, d};
  const std::vector<int64_t> starts{0, n};
  problem.strides(rows, pages, pages, rows).q_starts(starts);
  const auto options = sale::Options().threshold(0.02f).dense_below(0).smoothing(smoothing);
  const sale::Estimator layer(problem, options);
  const sale::Plan own(problem, options), plan(problem, options, {&layer, 1}, sale::Plan::Keys::coded_in_pages);
  const sale::Workspace workspace(std::max(own.workspace().total, plan.workspace().total));
  sale::Tensors tensors = data.tensors();
  tensors.lse = nullptr;
  tensors.page_table = table.data();
  own.run(tensors, workspace);
  const std::vector<float> expected = data.out;
  std::fill(data.out.begin(), data.out.end(), -1.0f);
  const sale::Workspace codes(layer.index_page_bytes(page) * 6);
  tensors.index_pages = sale::index_pages(codes.data(), layer.index_page_bytes(page), 6);
  plan.run(layer, tensors, workspace);
  EXPECT_EQ(data.out, expected);
  tensors.index_pages.reset();
  EXPECT_EQ(status_of([&] { plan.run(layer, tensors, workspace); }), SALE_INVALID_ARGUMENT);
}

TEST(Hpp, RaggedProblemsOwnTheirArrays) {
  sale::Problem copy(2, 2, 2, 64, 64, 32, SALE_F32);
  {
    const std::vector<int64_t> lens{64, 33};
    sale::Problem problem(2, 2, 2, 64, 64, 32, SALE_F32);
    problem.q_lens(lens).k_lens(lens);
    copy = problem;
  }
  EXPECT_EQ(copy.c().q_lens[1], 33);
  EXPECT_NO_THROW(sale::Plan(copy, sale::Options()));
}

TEST(Hpp, Errors) {
  const sale::Problem problem(1, 2, 2, 2048, 2048, 32, SALE_F32);
  const std::vector<int64_t> lens{1, 2, 3};
  const std::vector<float> three(3), projection(2 * 32 * 16);
  EXPECT_EQ(status_of([&] { sale::Plan(sale::Problem(1, 3, 2, 8, 8, 32, SALE_F32), {}); }), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { sale::Problem(problem).q_lens(lens); }), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { sale::Options().thresholds({}); }), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { sale::Plan(problem, sale::Options().thresholds(three)); }), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { sale::Plan(problem, sale::Options().backend("none such")); }), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { sale::Options().estimator(SALE_INT8, 16, projection, three); }), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { sale::Plan(problem, sale::Options().estimator(SALE_INT8, 16, three, three)); }),
            SALE_INVALID_ARGUMENT);
  EXPECT_EQ(status_of([&] { sale::Plan(problem, sale::Options().estimator(SALE_INT8, 16, projection, projection)); }),
            SALE_OK);
  Data data(2048);
  const sale::Plan plan(problem, {});
  const sale::Workspace small(64);
  EXPECT_EQ(status_of([&] { plan.run(data.tensors(), small); }), SALE_INVALID_ARGUMENT);
  const sale_index* none = nullptr;
  EXPECT_EQ(status_of([&] { plan.run(data.tensors(), small, {&none, 1}); }), SALE_INVALID_ARGUMENT);
}

TEST(Hpp, DenseKeepsEverything) {
  Data data(2048);
  const sale::Plan plan(sale::Problem(1, 2, 2, 2048, 2048, 32, SALE_F32), sale::Options().dense());
  const sale::Workspace workspace(plan.workspace().total);
  sale::Stats stats;
  plan.run(data.tensors(), workspace, {}, &stats);
  EXPECT_EQ(stats.density(), 1);
}

TEST(Hpp, Backends) {
  const auto all = sale::backends();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.back().why_not, "");
  EXPECT_EQ(all.back().facts.on_device, 0);
  EXPECT_EQ(all.back().facts.q_block, SALE_Q_BLOCK);
  const auto last = static_cast<int32_t>(all.size()) - 1;
  EXPECT_EQ(sale::why_not(last, sale::Problem(1, 1, 1, 64, 64, 32, SALE_F32), {}), "");
}

}  // namespace
