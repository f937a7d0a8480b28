// Everything that a layer, and an index of it, can be given wrong: sale_estimator_create, sale_index_create.
#include <cmath>
#include <cstdlib>
#include <limits>

#include "contract.hpp"

namespace sale_contract {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
constexpr auto bad = SALE_INVALID_ARGUMENT;

using Change = std::function<void(Good&)>;

void refuse_layer(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  Good g;
  change(g);
  sale_estimator* const sentinel = reinterpret_cast<sale_estimator*>(0x1234);
  sale_estimator* estimator = sentinel;
  refused("layer: " + what, sale_estimator_create(&g.layer, &estimator), status, named);
  EXPECT_EQ(estimator, sentinel) << what << ": the output was touched";
}

void refuse_index(const std::string& what, const std::string& named,
                  const std::function<void(sale_index_options&)>& change, sale_status status = bad) {
  Good g;
  sale_index_options o = index_options(200);
  change(o);
  sale_index* const sentinel = reinterpret_cast<sale_index*>(0x1234);
  sale_index* index = sentinel;
  refused("index: " + what, sale_index_create(g.estimator(), &o, &index), status, named);
  EXPECT_EQ(index, sentinel) << what << ": the output was touched";
}

TEST(Layer, TheGoodOneIsGood) {
  Good g;
  const sale_estimator* e = g.estimator();
  EXPECT_STRNE(sale_estimator_backend(e), "");
  EXPECT_EQ(sale_estimator_q_block(e), SALE_Q_BLOCK);
  EXPECT_NE(g.index(1), nullptr);
  const sale_layer made = sale_layer_init(4, 2, 64, SALE_BF16);
  sale_estimator* made_of = nullptr;
  EXPECT_EQ(sale_estimator_create(&made, &made_of), SALE_OK) << sale_last_error();
  sale_estimator_destroy(made_of);
}

TEST(Layer, NullArguments) {
  Good g;
  sale_estimator* e = nullptr;
  refused("layer: null layer", sale_estimator_create(nullptr, &e), bad, "layer");
  refused("layer: null estimator", sale_estimator_create(&g.layer, nullptr), bad, "estimator");
  EXPECT_EQ(e, nullptr);
  EXPECT_STREQ(sale_estimator_backend(nullptr), "");
  EXPECT_EQ(sale_estimator_q_block(nullptr), 0);
  sale_estimator_destroy(nullptr);
  sale_index* index = nullptr;
  const sale_index_options o = index_options(10);
  refused("index: null estimator", sale_index_create(nullptr, &o, &index), bad, "estimator");
  refused("index: null options", sale_index_create(g.estimator(), nullptr, &index), bad, "options");
  refused("index: null index", sale_index_create(g.estimator(), &o, nullptr), bad, "index");
  EXPECT_EQ(index, nullptr);
}

TEST(Layer, Heads) {
  for (const int32_t n : {0, -1, 65537, INT32_MIN}) {
    refuse_layer("kv_heads " + std::to_string(n), "kv_heads", [&](Good& g) { g.layer.kv_heads = n; });
    refuse_layer("q_heads " + std::to_string(n), "q_heads", [&](Good& g) { g.layer.q_heads = n; });
  }
  for (const int32_t n : {1, 3, 5})
    refuse_layer("q_heads " + std::to_string(n) + " on 2", "q_heads", [&](Good& g) { g.layer.q_heads = n; });
  for (const int32_t n : {0, -16, 8, 24, 63, 65, 272, 512, INT32_MAX, INT32_MIN})
    refuse_layer("head_dim " + std::to_string(n), "head_dim", [&](Good& g) { g.layer.head_dim = n; });
  for (const int n : {-1, 3, 100})
    refuse_layer("dtype " + std::to_string(n), "dtype", [&](Good& g) { std::memcpy(&g.layer.dtype, &n, sizeof n); });
}

TEST(Layer, Thresholds) {
  refuse_layer("thresholds null", "thresholds", [](Good& g) { g.layer.thresholds = nullptr; });
  for (const int64_t n : {int64_t{0}, int64_t{2}, int64_t{3}, int64_t{5}, int64_t{-1}, INT64_MAX})
    refuse_layer("n_thresholds " + std::to_string(n), "n_thresholds", [&](Good& g) {
      g.taus.resize(8, 0.1f);
      g.layer.thresholds = g.taus.data();
      g.layer.n_thresholds = n;
    });
  for (const float t : {nan, inf, -inf, -0.1f})
    for (const size_t at : {size_t{0}, size_t{3}})
      refuse_layer("threshold " + std::to_string(at) + " " + std::to_string(t),
                   "thresholds: element " + std::to_string(at), [&](Good& g) {
                     g.taus[at] = t;
                     g.layer.thresholds = g.taus.data();
                     g.layer.n_thresholds = 4;
                   });
}

void with_projections(Good& g, std::vector<float>& matrix, int32_t rank) {
  matrix.assign(2 * 64 * static_cast<size_t>(rank), 0.1f);
  g.layer.rank = rank;
  g.layer.q_projection = g.layer.k_projection = matrix.data();
}

TEST(Layer, Form) {
  std::vector<float> matrix, other;
  for (const int f : {0, 6, 16, -4})
    refuse_layer("format " + std::to_string(f), "format", [&](Good& g) { std::memcpy(&g.layer.format, &f, sizeof f); });
  for (const int32_t r : {-16, 8, 24, 80, 1, INT32_MAX, INT32_MIN})
    refuse_layer("rank " + std::to_string(r), "rank", [&](Good& g) { g.layer.rank = r; });
  refuse_layer("rank without projections", "q_projection", [&](Good& g) { g.layer.rank = 32; });
  refuse_layer("rank without k_projection", "k_projection", [&](Good& g) {
    with_projections(g, matrix, 32);
    g.layer.k_projection = nullptr;
  });
  refuse_layer("rank without q_projection", "q_projection", [&](Good& g) {
    with_projections(g, matrix, 32);
    g.layer.q_projection = nullptr;
  });
  refuse_layer("INT4 with a rank of no multiple of 16", "rank", [&](Good& g) {
    with_projections(g, matrix, 24);
    g.layer.format = SALE_INT4;
  });
  refuse_layer("projections without a rank", "projection", [&](Good& g) {
    with_projections(g, matrix, 32);
    g.layer.rank = 0;
  });
  refuse_layer("projections with the full rank", "projection", [&](Good& g) { with_projections(g, matrix, 64); });
  for (const float x : {nan, inf}) {
    refuse_layer("q_projection with " + std::to_string(x), "q_projection: element 5", [&](Good& g) {
      with_projections(g, matrix, 16);
      matrix[5] = x;
    });
    refuse_layer("k_projection with " + std::to_string(x), "k_projection: element 2047", [&](Good& g) {
      with_projections(g, matrix, 16);
      other = matrix;
      other[2047] = x;
      g.layer.k_projection = other.data();
    });
  }
}

TEST(Layer, SmoothingAndScales) {
  std::vector<float> vectors(128, 0.5f), scales(2, 1.0f);
  for (const float x : {nan, inf, -inf})
    refuse_layer("smoothing with " + std::to_string(x), "smoothing: element 127", [&](Good& g) {
      vectors.assign(128, 0.5f);
      vectors[127] = x;
      g.layer.smoothing = vectors.data();
    });
  vectors.assign(128, 0.5f);
  for (const sale_format f : {SALE_INT4, SALE_FP4, SALE_INT8})
    refuse_layer(std::string("key_scales of ") + sale_format_name(f), "key_scales", [&](Good& g) {
      g.layer.format = f;
      g.layer.smoothing = vectors.data();
      g.layer.key_scales = scales.data();
    });
  refuse_layer("key_scales without smoothing", "key_scales", [&](Good& g) {
    g.layer.format = SALE_FP8;
    g.layer.key_scales = scales.data();
  });
  for (const float x : {nan, inf, 0.0f, -1.0f, 1e-40f})
    refuse_layer("key_scales with " + std::to_string(x) + (x > 0 && x < 1 ? " (denormal)" : ""),
                 "key_scales: element 1", [&](Good& g) {
                   scales[1] = x;
                   g.layer.format = SALE_FP8;
                   g.layer.smoothing = vectors.data();
                   g.layer.key_scales = scales.data();
                 });
}

TEST(Layer, Regions) {
  for (const int32_t n : {16, 31, 33, 288, -32, INT32_MIN})
    refuse_layer("sink " + std::to_string(n), "sink", [&](Good& g) { g.layer.sink = n; });
  for (const int32_t n : {0, 16, 100, 1056, -32, INT32_MAX})
    refuse_layer("local " + std::to_string(n), "local", [&](Good& g) { g.layer.local = n; });
}

void nobody(void*, int64_t, void (*)(void*, int64_t, int32_t), void*) {}

TEST(Layer, Threads) {
  for (const int32_t n : {-1, 1025, INT32_MAX})
    refuse_layer("threads " + std::to_string(n), "threads", [&](Good& g) { g.layer.threads = n; });
  for (const int32_t n : {0, -1, 1025})
    refuse_layer("threads " + std::to_string(n) + " of a parallel_for", "threads", [&](Good& g) {
      g.layer.parallel_for = nobody;
      g.layer.threads = n;
    });
}

TEST(Layer, Backends) {
  refuse_layer("backend unknown", "backend: no backend is called 'nonsense'",
               [](Good& g) { g.layer.backend = "nonsense"; });
  std::string capitals = last_backend();
  for (char& c : capitals) c = static_cast<char>(std::toupper(c));
  refuse_layer("backend in capitals", "'" + capitals + "'", [&](Good& g) { g.layer.backend = capitals.c_str(); });
  const std::string cut = std::string(last_backend()).substr(0, 7);
  refuse_layer("backend cut short", "'" + cut + "'", [&](Good& g) { g.layer.backend = cut.c_str(); });
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string name = sale_backend_name(i), why = sale_backend_why_not(i);
    if (why.empty()) continue;
    refuse_layer(
        "backend " + name + " on this machine", why, [&](Good& g) { g.layer.backend = name.c_str(); },
        SALE_UNSUPPORTED);
  }
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    Good narrow("d=16");
    const std::string name = sale_backend_name(i),
                      why = sale_backend_why_not_problem(i, &narrow.problem, &narrow.layer, &narrow.options);
    if (why.empty() || *sale_backend_why_not(i) != '\0') continue;
    narrow.layer.backend = name.c_str();
    sale_estimator* e = nullptr;
    refused("backend " + name + " with head_dim 16", sale_estimator_create(&narrow.layer, &e), SALE_UNSUPPORTED, why);
  }
}

TEST(Layer, BackendFromTheEnvironment) {
  const char* const before = std::getenv("SALE_BACKEND");
  const std::string kept = before != nullptr ? before : "";
  setenv("SALE_BACKEND", "nonsense", 1);
  refuse_layer("SALE_BACKEND unknown", "SALE_BACKEND", [](Good& g) { g.layer.backend = nullptr; });
  Good g;
  g.layer.backend = last_backend();
  EXPECT_STREQ(sale_estimator_backend(g.estimator()), last_backend()) << "the option goes before the environment";
  setenv("SALE_BACKEND", last_backend(), 1);
  g.layer.backend = nullptr;
  EXPECT_STREQ(sale_estimator_backend(g.estimator()), last_backend());
  EXPECT_STREQ(sale_plan_backend(g.plan()), last_backend());
  if (before != nullptr) {
    setenv("SALE_BACKEND", kept.c_str(), 1);
  } else {
    unsetenv("SALE_BACKEND");
  }
}

TEST(Index, Capacity) {
  for (const int64_t n : {int64_t{0}, int64_t{-1}, huge(), INT64_MAX, INT64_MIN}) {
    refuse_index("capacity " + std::to_string(n), "capacity", [&](sale_index_options& o) { o.capacity = n; });
    EXPECT_EQ(sale_index_memory(Good().estimator(), n), 0u);
  }
  EXPECT_EQ(sale_index_memory(nullptr, 100), 0u);
  Good g;
  g.heads(65536, 65536, 256);
  sale_index* index = nullptr;
  refused("index: capacity beyond any memory", g.make_index(int64_t{1} << 31, &index), SALE_OUT_OF_MEMORY, "memory");
  EXPECT_EQ(index, nullptr);
}

TEST(Index, CallersMemory) {
  Good g;
  const size_t bytes = sale_index_memory(g.estimator(), 200);
  EXPECT_GT(bytes, 0u);
  sale_case::Memory memory(bytes + 64, 0x5a, 64);
  const auto in = [&](void* at, size_t size) {
    return [=](sale_index_options& o) { o.memory = at, o.memory_bytes = size; };
  };
  refuse_index("memory one byte short", "memory_bytes", in(memory.begin(), bytes - 1));
  refuse_index("memory of 0 bytes", "memory_bytes", in(memory.begin(), 0));
  for (const int by : {1, 4, 32, 63})
    refuse_index("memory misaligned by " + std::to_string(by), "memory", in(memory.begin() + by, bytes));
  refuse_index("memory_bytes without memory", "memory", in(nullptr, bytes));
  EXPECT_TRUE(memory.untouched_outside({}));
}

TEST(Formats, Names) {
  for (const sale_format f : {SALE_INT4, SALE_FP4, SALE_INT8, SALE_FP8}) {
    sale_format back{};
    EXPECT_EQ(sale_format_from_name(sale_format_name(f), &back), SALE_OK) << sale_last_error();
    EXPECT_EQ(back, f);
  }
  for (const int n : {0, 6, -1}) EXPECT_STREQ(sale_format_name(static_cast<sale_format>(n)), "");
  sale_format untouched = SALE_FP8;
  for (const char* name : {"", "int", "INT8", "int8 ", "fp5"}) {
    refused(std::string("format name '") + name + "'", sale_format_from_name(name, &untouched), bad,
            "int4, fp4, int8, fp8");
    EXPECT_EQ(untouched, SALE_FP8);
  }
  refused("format name null", sale_format_from_name(nullptr, &untouched), bad, "name");
  refused("format to null", sale_format_from_name("int8", nullptr), bad, "format");
}

TEST(Backends, QuestionsOutsideTheListHaveAnswers) {
  const Good g;
  const int32_t n = sale_backend_count();
  EXPECT_GE(n, 1);
  sale_backend_facts facts = facts_of(0);
  for (const int32_t i : {-1, n, INT32_MAX, INT32_MIN}) {
    EXPECT_NE(sale_backend_name(i), nullptr);
    EXPECT_NE(sale_backend_summary(i), nullptr);
    EXPECT_STRNE(sale_backend_why_not(i), "");
    EXPECT_STRNE(sale_backend_why_not_problem(i, &g.problem, &g.layer, &g.options), "");
    refused("facts of backend " + std::to_string(i), sale_backend_describe(i, &facts), bad, "backend");
  }
  refused("facts null", sale_backend_describe(0, nullptr), bad, "facts");
  EXPECT_STRNE(sale_backend_why_not_problem(0, nullptr, &g.layer, &g.options), "");
  EXPECT_STRNE(sale_backend_why_not_problem(0, &g.problem, nullptr, &g.options), "");
  EXPECT_STRNE(sale_backend_why_not_problem(0, &g.problem, &g.layer, nullptr), "");
  EXPECT_STREQ(sale_backend_why_not(n - 1), "") << "the last of the list runs everywhere";
  for (int s = -1; s <= 6; ++s) EXPECT_STRNE(sale_status_name(static_cast<sale_status>(s)), "");
  EXPECT_STRNE(sale_machine(), "");
  EXPECT_STRNE(sale_version(), "");
}

// What is said of a backend is what it does.
TEST(Backends, Facts) {
  const std::vector<float> projection(2 * 64 * 16, 0.1f);
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const sale_backend_facts facts = facts_of(i);
    const std::string name = sale_backend_name(i);
    EXPECT_TRUE(facts.on_device == 0 || facts.on_device == 1) << name;
    EXPECT_TRUE(facts.q_block == 64 || facts.q_block == 128) << name;
    EXPECT_NE(facts.formats & (1u << facts.format), 0u) << name << ": its own format is not among those it has";
    EXPECT_EQ(facts.projected & ~facts.formats, 0u) << name;
    Good g;
    g.problem.device = g.layer.device = facts.on_device != 0 ? 0 : SALE_HOST;
    const auto runs = [&] { return *sale_backend_why_not_problem(i, &g.problem, &g.layer, &g.options) == '\0'; };
    for (const sale_format f : {SALE_INT4, SALE_FP4, SALE_INT8, SALE_FP8}) {
      g.layer.format = f;
      EXPECT_EQ(runs(), (facts.formats >> f & 1) != 0) << name << ", " << sale_format_name(f);
      g.layer.rank = 16;
      g.layer.q_projection = g.layer.k_projection = projection.data();
      EXPECT_EQ(runs(), (facts.projected >> f & 1) != 0) << name << ", " << sale_format_name(f) << ":16";
      g.layer.rank = 0;
      g.layer.q_projection = g.layer.k_projection = nullptr;
    }
    g.layer.format = facts.format;
    g.options.compensate = 1;
    EXPECT_EQ(runs(), facts.compensates != 0) << name << ": compensation";
    g.options.compensate = 0;
    g.problem.device = g.layer.device = facts.on_device != 0 ? SALE_HOST : 0;
    EXPECT_FALSE(runs()) << name << " runs in other memory too";
    if (*sale_backend_why_not(i) != '\0' || facts.on_device != 0) continue;
    Good here;
    here.layer.backend = name.c_str();
    EXPECT_EQ(sale_estimator_q_block(here.estimator()), facts.q_block) << name;
    EXPECT_EQ(sale_plan_q_block(here.plan()), facts.q_block) << name;
  }
  const int32_t host = sale_backend_for(SALE_HOST);
  ASSERT_GE(host, 0);
  EXPECT_EQ(facts_of(host).on_device, 0);
  EXPECT_STREQ(sale_backend_why_not(host), "");
  for (int32_t i = 0; i < host; ++i)
    EXPECT_TRUE(facts_of(i).on_device != 0 || *sale_backend_why_not(i) != '\0') << sale_backend_name(i);
  for (const int32_t device : {0, INT32_MAX}) {
    const int32_t i = sale_backend_for(device);
    EXPECT_TRUE(i == -1 || facts_of(i).on_device == 1) << i;
  }
}

}  // namespace
}  // namespace sale_contract
