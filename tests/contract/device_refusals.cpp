// What devices brought along, asked of CPU backends: memory, pages, streams, formats that only GPUs have.
#include "contract.hpp"

namespace sale_contract {
namespace {

constexpr auto bad = SALE_INVALID_ARGUMENT;
using Change = std::function<void(Good&)>;

void refuse_plan(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  Good g;
  g.options.backend = "portable";
  change(g);
  sale_plan* plan = nullptr;
  refused(("device plan: " + what).c_str(), sale_plan_create(&g.problem, &g.options, 0, &plan), status, named);
  EXPECT_EQ(plan, nullptr) << what << ": the output was touched";
}
void refuse_index(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  Good g;
  g.options.backend = "portable";
  change(g);
  sale_index* index = nullptr;
  refused(("device index: " + what).c_str(), sale_index_create(&g.problem, &g.options, 200, &index), status, named);
  EXPECT_EQ(index, nullptr) << what << ": the output was touched";
}
void refuse_both(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  refuse_plan(what, named, change, status);
  refuse_index(what, named, change, status);
}

const int32_t table[32] = {};
void with_pages(Good& g, int32_t page_size, int64_t pages) {
  g.problem.page_size = page_size;
  g.problem.pages = pages;
  g.problem.page_table = table;
}

TEST(Devices, WhereTensorsAre) {
  for (const int32_t device : {-2, INT32_MIN})
    refuse_both("device " + std::to_string(device), "device", [&](Good& g) { g.problem.device = device; });
  for (const int32_t device : {0, 7, INT32_MAX})
    refuse_both(
        "device " + std::to_string(device) + " on a CPU backend", "device " + std::to_string(device),
        [&](Good& g) { g.problem.device = device; }, SALE_UNSUPPORTED);
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    if (sale_backend_name(i) != std::string("sm90")) continue;
    const Good g;
    EXPECT_NE(std::string(sale_backend_why_not_problem(i, &g.problem, &g.options)).find("host memory"),
              std::string::npos);
  }
}

TEST(Devices, Pages) {
  for (const int32_t size : {-16, 8, 17, 24, INT32_MIN, INT32_MAX})
    refuse_both("page_size " + std::to_string(size), "page_size", [&](Good& g) { with_pages(g, size, 16); });
  refuse_plan("page_table null", "page_table", [](Good& g) {
    with_pages(g, 16, 16);
    g.problem.page_table = nullptr;
  });
  refuse_plan("page_table without page_size", "page_table", [](Good& g) { with_pages(g, 0, 0); });
  refuse_plan("pages without page_size", "pages", [](Good& g) { g.problem.pages = 1; });
  for (const int64_t pages : {int64_t{0}, int64_t{9}, int64_t{-1}, huge(), INT64_MAX})
    refuse_plan("pages " + std::to_string(pages), "pages", [&](Good& g) { with_pages(g, 16, pages); });
  refuse_plan("k_starts with pages", "k_starts", [](Good& g) {
    with_pages(g, 16, 16);
    g.problem.k_starts = g.starts.data();
  });
  refuse_plan("page strides of one head too small", "k strides", [](Good& g) {
    with_pages(g, 16, 16);
    g.problem.k.token = 63;
  });
  refuse_both("pages on a CPU backend", "page_size 16", [](Good& g) { with_pages(g, 16, 16); }, SALE_UNSUPPORTED);
}

TEST(Devices, FormatsAndProducts) {
  const std::vector<float> matrix(2 * 64 * 64, 0.1f);
  const auto with_rank = [&](Good& g, int32_t rank) {
    g.options.format = SALE_FP8;
    g.options.rank = rank;
    g.options.q_projection = g.options.k_projection = matrix.data();
  };
  for (const int32_t rank : {-4, 2, 3, 30, 62, 68, INT32_MAX})
    refuse_both("FP8 rank " + std::to_string(rank), "rank", [&](Good& g) { with_rank(g, rank); });
  refuse_both("FP8 rank without projections", "q_projection", [](Good& g) {
    g.options.format = SALE_FP8;
    g.options.rank = 28;
  });
  for (const int32_t rank : {4, 28, 60})
    refuse_both(
        "FP8 rank " + std::to_string(rank) + " on a CPU backend", "SALE_FP8", [&](Good& g) { with_rank(g, rank); },
        SALE_UNSUPPORTED);
  refuse_both("FP8 on a CPU backend", "SALE_FP8", [](Good& g) { g.options.format = SALE_FP8; }, SALE_UNSUPPORTED);
  refuse_plan(
      "FP8 products", "SALE_COMPUTE_FP8", [](Good& g) { g.options.compute = SALE_COMPUTE_FP8; }, SALE_UNSUPPORTED);
  refuse_plan(
      "F16 products", "compute SALE_COMPUTE_F16", [](Good& g) { g.options.compute = SALE_COMPUTE_F16; },
      SALE_UNSUPPORTED);
  refuse_plan(
      "compensate INT8 products on a CPU backend", "compensate",
      [](Good& g) { g.options.compensate = 1, g.options.compute = SALE_COMPUTE_INT8; }, SALE_UNSUPPORTED);
  for (const int32_t n : {-1, 2, INT32_MAX})
    refuse_plan("compensate " + std::to_string(n), "compensate", [&](Good& g) { g.options.compensate = n; });
}

// Whether or not a machine has a GPU, its backend says what it would refuse.
TEST(Devices, WhatSm90Serves) {
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    if (sale_backend_name(i) != std::string("sm90")) continue;
    Good g;
    g.problem.device = 0;
    const auto why_not = [&] { return std::string(sale_backend_why_not_problem(i, &g.problem, &g.options)); };
    for (const sale_compute compute : {SALE_COMPUTE_EXACT, SALE_COMPUTE_FP8})
      for (const int32_t compensate : {0, 1})
        for (const sale_format format : {SALE_INT8, SALE_FP8}) {
          g.options.compute = compute, g.options.compensate = compensate, g.options.format = format;
          EXPECT_EQ(why_not(), "") << compute << compensate << format;
        }
    g.options.compute = SALE_COMPUTE_INT8;
    EXPECT_NE(why_not().find("SALE_COMPUTE_INT8"), std::string::npos) << why_not();
    g.options.compute = SALE_COMPUTE_F16;
    EXPECT_NE(why_not().find("compute SALE_COMPUTE_F16"), std::string::npos) << why_not();
    g.options.compute = SALE_COMPUTE_EXACT, g.options.format = SALE_INT4;
    EXPECT_NE(why_not().find("SALE_INT4"), std::string::npos) << why_not();
  }
}

TEST(Devices, WhatSm80Serves) {
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    if (sale_backend_name(i) != std::string("sm80")) continue;
    Good g;
    g.problem.device = 0;
    const auto why_not = [&] { return std::string(sale_backend_why_not_problem(i, &g.problem, &g.options)); };
    for (const sale_compute compute : {SALE_COMPUTE_EXACT, SALE_COMPUTE_INT8, SALE_COMPUTE_F16})
      for (const int32_t compensate : {0, 1})
        for (const sale_format format : {SALE_INT4, SALE_INT8}) {
          g.options.compute = compute, g.options.compensate = compensate, g.options.format = format;
          EXPECT_EQ(why_not(), "") << compute << compensate << format;
        }
    g.options.format = SALE_FP8;
    EXPECT_NE(why_not().find("SALE_FP8"), std::string::npos) << why_not();
    g.options.format = SALE_INT4;
    const float reference = 0;
    g.problem.reference = &reference;
    EXPECT_EQ(why_not(), "");
    g.problem.reference = nullptr;
    g.problem.dtype = SALE_F32;
    EXPECT_NE(why_not().find("SALE_F32"), std::string::npos) << why_not();
  }
}

TEST(Devices, StreamsInHostMemory) {
  for (const bool attend : {false, true}) {
    Good g;
    Arguments a(g);
    a.stream = &a;
    refused(attend ? "attend: a stream" : "select: a stream", attend ? a.attend() : a.select(), bad, "stream");
    if (attend) refused("run: a stream", a.run(), bad, "stream");
    EXPECT_TRUE(a.untouched(g));
  }
  Good g;
  sale_index* i = g.index(0);
  refused("update: a stream", sale_index_update(i, g.in->keys(0), g.problem.k, 150, nullptr, &g), bad, "stream");
  refused("update: pages", sale_index_update(i, g.in->keys(0), g.problem.k, 150, table, nullptr), bad, "pages");
  EXPECT_EQ(sale_plan_q_block(g.plan()), 64);
  EXPECT_EQ(sale_plan_q_block(nullptr), 0);
}

}  // namespace
}  // namespace sale_contract
