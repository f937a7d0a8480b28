// What devices brought along, asked of CPU backends: memory, pages, streams, formats that only GPUs have.
#include "contract.hpp"

namespace sale_contract {
namespace {

constexpr auto bad = SALE_INVALID_ARGUMENT;
using Change = std::function<void(Good&)>;

void refuse_plan(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  Good g;
  g.layer.backend = last_backend();
  const sale_estimator* const estimator = g.estimator();
  change(g);
  sale_plan* plan = nullptr;
  refused("device plan: " + what, g.make_plan(estimator, &plan), status, named);
  EXPECT_EQ(plan, nullptr) << what << ": the output was touched";
}
void refuse_layer(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  Good g;
  g.layer.backend = last_backend();
  change(g);
  sale_estimator* estimator = nullptr;
  refused("device layer: " + what, sale_estimator_create(&g.layer, &estimator), status, named);
  EXPECT_EQ(estimator, nullptr) << what << ": the output was touched";
}

const int32_t table[32] = {};
void with_pages(Good& g, int32_t page_size, int64_t pages) {
  g.problem.page_size = page_size;
  g.problem.pages = pages;
}

TEST(Devices, WhereTensorsAre) {
  for (const int32_t device : {-2, INT32_MIN}) {
    refuse_layer("device " + std::to_string(device), "device", [&](Good& g) { g.layer.device = device; });
    refuse_plan("device " + std::to_string(device), "device", [&](Good& g) { g.problem.device = device; });
  }
  for (const int32_t device : {0, 7, INT32_MAX}) {
    refuse_layer(
        "device " + std::to_string(device) + " on a CPU backend", "device " + std::to_string(device),
        [&](Good& g) { g.layer.device = device; }, SALE_UNSUPPORTED);
    refuse_plan("device " + std::to_string(device) + " with a CPU's layer", "device",
                [&](Good& g) { g.problem.device = device; });
  }
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    if (facts_of(i).on_device == 0) continue;
    const Good g;
    EXPECT_NE(std::string(sale_backend_why_not_problem(i, &g.problem, &g.layer, &g.options)).find("host memory"),
              std::string::npos);
  }
}

TEST(Devices, Pages) {
  for (const int32_t size : {-16, 8, 17, 24, INT32_MIN, INT32_MAX}) {
    refuse_plan("page_size " + std::to_string(size), "page_size", [&](Good& g) { with_pages(g, size, 16); });
    Good g;
    sale_index* index = nullptr;
    refused("index: page_size " + std::to_string(size), g.make_index(200, &index, size), bad, "page_size");
    EXPECT_EQ(index, nullptr);
  }
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
}

// Keys and values of 8 bits.
TEST(Devices, BytesInPages) {
  for (const int32_t type : {-1, 2, INT32_MAX})
    refuse_plan("kv_dtype " + std::to_string(type), "kv_dtype", [&](Good& g) {
      with_pages(g, 16, 16);
      g.problem.kv_dtype = static_cast<sale_kv_dtype>(type);
    });
  refuse_plan("e4m3 in order", "page_size is 0", [](Good& g) { g.problem.kv_dtype = SALE_KV_E4M3; });
  Good g;
  with_pages(g, 16, 16);
  g.problem.kv_dtype = SALE_KV_E4M3;
  g.problem.device = g.layer.device = 0;
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    if (facts_of(i).on_device == 0) continue;
    EXPECT_NE(std::string(sale_backend_why_not_problem(i, &g.problem, &g.layer, &g.options)).find("kv_dtype"),
              std::string::npos);
  }
  g.problem.device = g.layer.device = SALE_HOST;
  const std::vector<float> scales(3, 1.0f);
  for (const float* sale_call::* which : {&sale_call::k_scales, &sale_call::v_scales}) {
    const char* const name = which == &sale_call::k_scales ? "k_scales" : "v_scales";
    const Good whole;
    Arguments a(whole);
    a.call.*which = scales.data();
    refused(std::string(name) + " without e4m3", a.run(), bad, name);
    EXPECT_TRUE(a.untouched(whole));
    Arguments b(g);
    b.call.page_table = table;
    b.call.*which = shifted(scales.data(), 2);
    refused(std::string(name) + " askew", b.run(), bad, name);
    b.call.*which = static_cast<const float*>(b.call.workspace);
    refused(std::string(name) + " in the workspace", b.run(), bad, name);
    EXPECT_TRUE(b.untouched(g));
  }
}

// The table comes with every call of a paged problem, and with no other.
TEST(Devices, PageTables) {
  const struct {
    const char* name;
    sale_status (Arguments::*call)();
  } each[] = {{"run: ", &Arguments::run}, {"select: ", &Arguments::select}, {"attend: ", &Arguments::attend}};
  for (const auto& e : each) {
    Good paged;
    with_pages(paged, 16, 16);
    Arguments a(paged);
    refused(std::string(e.name) + "no page_table", (a.*e.call)(), bad, "page_table");
    EXPECT_TRUE(a.untouched(paged));
    Good whole;
    Arguments b(whole);
    b.call.page_table = table;
    refused(std::string(e.name) + "page_table without page_size", (b.*e.call)(), bad, "page_table");
    EXPECT_TRUE(b.untouched(whole));
  }
  Good g;
  sale_index* paged = nullptr;
  ASSERT_EQ(g.make_index(200, &paged, 16), SALE_OK) << sale_last_error();
  refused("update: paged index without pages",
          sale_index_update(paged, g.in->keys(0), g.problem.k, 150, nullptr, nullptr), bad, "pages");
  EXPECT_EQ(sale_index_length(paged), 0);
  sale_index_destroy(paged);
}

TEST(Devices, FormatsAndProducts) {
  const std::vector<float> matrix(2 * 64 * 64, 0.1f);
  const auto with_rank = [&](Good& g, int32_t rank) {
    g.layer.format = SALE_FP8;
    g.layer.rank = rank;
    g.layer.q_projection = g.layer.k_projection = matrix.data();
  };
  for (const int32_t rank : {-4, 2, 3, 30, 62, 68, INT32_MAX})
    refuse_layer("FP8 rank " + std::to_string(rank), "rank", [&](Good& g) { with_rank(g, rank); });
  refuse_layer("FP8 rank without projections", "q_projection", [](Good& g) {
    g.layer.format = SALE_FP8;
    g.layer.rank = 28;
  });
  for (const int32_t rank : {4, 28, 60})
    refuse_layer(
        "FP8 rank " + std::to_string(rank) + " on a CPU backend", "SALE_FP8", [&](Good& g) { with_rank(g, rank); },
        SALE_UNSUPPORTED);
  refuse_layer("FP8 on a CPU backend", "SALE_FP8", [](Good& g) { g.layer.format = SALE_FP8; }, SALE_UNSUPPORTED);
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

// Whether or not a machine has a GPU, its backends say what they would refuse.
TEST(Devices, WhatTheyServe) {
  struct Format {
    sale_format format;
    const char* name;
  };
  int64_t seen = 0;
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const sale_backend_facts facts = facts_of(i);
    if (facts.on_device == 0) continue;
    ++seen;
    Good g;
    g.problem.device = g.layer.device = 0;
    const auto why_not = [&] { return std::string(sale_backend_why_not_problem(i, &g.problem, &g.layer, &g.options)); };
    // Those of Hopper scan FP8 and multiply in it, those before INT4, and multiply in INT8.
    const bool fp8 = facts.format == SALE_FP8;
    std::vector<sale_compute> computes{SALE_COMPUTE_EXACT, SALE_COMPUTE_FP8};
    if (!fp8) computes = {SALE_COMPUTE_EXACT, SALE_COMPUTE_INT8, SALE_COMPUTE_F16};
    for (const sale_compute compute : computes)
      for (const int32_t compensate : {0, 1})
        for (const Format& f : {Format{SALE_INT4, "SALE_INT4"},
                                {SALE_FP4, "SALE_FP4"},
                                {SALE_INT8, "SALE_INT8"},
                                {SALE_FP8, "SALE_FP8"}}) {
          g.options.compute = compute, g.options.compensate = compensate, g.layer.format = f.format;
          if ((facts.formats >> f.format & 1) != 0)
            EXPECT_EQ(why_not(), "") << compute << compensate << f.name;
          else
            EXPECT_NE(why_not().find(f.name), std::string::npos) << why_not();
        }
    g.options.compensate = 0, g.layer.format = facts.format;
    if (fp8) {
      g.options.compute = SALE_COMPUTE_INT8;
      EXPECT_NE(why_not().find("SALE_COMPUTE_INT8"), std::string::npos) << why_not();
      g.options.compute = SALE_COMPUTE_F16;
      EXPECT_NE(why_not().find("compute SALE_COMPUTE_F16"), std::string::npos) << why_not();
    }
    g.options.compute = SALE_COMPUTE_EXACT;
    g.problem.part = 1;
    EXPECT_EQ(why_not(), "");
    g.problem.part = 0;
    g.problem.dtype = g.layer.dtype = SALE_F32;
    EXPECT_NE(why_not().find("SALE_F32"), std::string::npos) << why_not();
  }
  EXPECT_GE(seen, 1);
}

TEST(Devices, StreamsInHostMemory) {
  for (const bool attend : {false, true}) {
    Good g;
    Arguments a(g);
    a.call.stream = &a;
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
