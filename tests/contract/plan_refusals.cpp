// Everything sale_plan_create and sale_index_create can be given wrong in a problem or its options.
#include <cmath>
#include <cstdlib>
#include <limits>

#include "contract.hpp"

namespace sale_contract {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
constexpr auto bad = SALE_INVALID_ARGUMENT;

using Change = std::function<void(Good&)>;

void refuse_plan(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  Good g;
  change(g);
  sale_plan* const sentinel = reinterpret_cast<sale_plan*>(0x1234);
  sale_plan* plan = sentinel;
  refused(("plan: " + what).c_str(), sale_plan_create(&g.problem, &g.options, 0, &plan), status, named);
  EXPECT_EQ(plan, sentinel) << what << ": the output was touched";
}

void refuse_index(const std::string& what, const std::string& named, const Change& change, int64_t capacity = 200,
                  sale_status status = bad) {
  Good g;
  change(g);
  sale_index* const sentinel = reinterpret_cast<sale_index*>(0x1234);
  sale_index* index = sentinel;
  refused(("index: " + what).c_str(), sale_index_create(&g.problem, &g.options, capacity, &index), status, named);
  EXPECT_EQ(index, sentinel) << what << ": the output was touched";
}

// What both a plan and an index check.
void refuse_both(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  refuse_plan(what, named, change, status);
  refuse_index(what, named, change, 200, status);
}

TEST(Plan, TheGoodOneIsGood) {
  Good g;
  EXPECT_NE(g.plan(), nullptr);
  EXPECT_NE(g.index(1), nullptr);
}

TEST(Plan, NullArguments) {
  Good g;
  sale_plan* plan = nullptr;
  refused("plan: null problem", sale_plan_create(nullptr, &g.options, 0, &plan), bad, "problem");
  refused("plan: null options", sale_plan_create(&g.problem, nullptr, 0, &plan), bad, "options");
  refused("plan: null plan", sale_plan_create(&g.problem, &g.options, 0, nullptr), bad, "plan");
  EXPECT_EQ(plan, nullptr);
  sale_index* index = nullptr;
  refused("index: null problem", sale_index_create(nullptr, &g.options, 10, &index), bad, "problem");
  refused("index: null options", sale_index_create(&g.problem, nullptr, 10, &index), bad, "options");
  refused("index: null index", sale_index_create(&g.problem, &g.options, 10, nullptr), bad, "index");
  EXPECT_EQ(index, nullptr);
}

TEST(Plan, StructSizes) {
  for (const int64_t by : {-1, 1, -8, 8}) {
    const std::string off = std::to_string(by) + " bytes off";
    refuse_both("problem size " + off, "problem.struct_size",
                [&](Good& g) { g.problem.struct_size += static_cast<size_t>(by); });
    refuse_both("options size " + off, "options.struct_size",
                [&](Good& g) { g.options.struct_size += static_cast<size_t>(by); });
  }
  refuse_both("problem size 0", "problem.struct_size", [](Good& g) { g.problem.struct_size = 0; });
  refuse_both("options size 0", "options.struct_size", [](Good& g) { g.options.struct_size = 0; });
}

TEST(Plan, Heads) {
  for (const int32_t n : {0, -1, 65537, INT32_MAX, INT32_MIN})
    refuse_plan("batch " + std::to_string(n), "batch", [&](Good& g) { g.problem.batch = n; });
  for (const int32_t n : {0, -1, 65537, INT32_MIN}) {
    refuse_both("kv_heads " + std::to_string(n), "kv_heads", [&](Good& g) { g.problem.kv_heads = n; });
    refuse_both("q_heads " + std::to_string(n), "q_heads", [&](Good& g) { g.problem.q_heads = n; });
  }
  for (const int32_t n : {1, 3, 5})
    refuse_both("q_heads " + std::to_string(n) + " on 2", "q_heads", [&](Good& g) { g.problem.q_heads = n; });
  for (const int32_t n : {0, -16, 8, 24, 63, 65, 272, 512, INT32_MAX, INT32_MIN})
    refuse_both("head_dim " + std::to_string(n), "head_dim", [&](Good& g) { g.problem.head_dim = n; });
  for (const int n : {-1, 3, 100})
    refuse_both("dtype " + std::to_string(n), "dtype", [&](Good& g) { std::memcpy(&g.problem.dtype, &n, sizeof n); });
}

TEST(Plan, Lengths) {
  for (const int64_t n : {int64_t{0}, int64_t{-1}, huge(), INT64_MAX, INT64_MIN}) {
    refuse_plan("q_len " + std::to_string(n), "q_len", [&](Good& g) { g.problem.q_len = n; });
    refuse_plan("k_len " + std::to_string(n), "k_len", [&](Good& g) { g.problem.k_len = n; });
  }
  for (const int64_t n : {int64_t{-2}, huge(), INT64_MAX, INT64_MIN})
    refuse_plan("q_offset " + std::to_string(n), "q_offset", [&](Good& g) { g.problem.q_offset = n; });
  refuse_plan("automatic offset, more queries than keys", "q_offset", [](Good& g) { g.problem.q_len = 151; });
  for (const float s : {-1.0f, nan, inf, -inf})
    refuse_plan("scale " + std::to_string(s), "scale", [&](Good& g) { g.problem.scale = s; });
}

TEST(Plan, Strides) {
  struct Axis {
    const char* name;
    int64_t sale_strides::* stride;
  };
  struct Which {
    const char* name;
    sale_strides sale_problem::* tensor;
  };
  for (const Which& w : {Which{"q", &sale_problem::q}, Which{"k", &sale_problem::k}, Which{"v", &sale_problem::v},
                         Which{"out", &sale_problem::out}})
    for (const Axis& a : {Axis{"batch", &sale_strides::batch}, Axis{"head", &sale_strides::head},
                          Axis{"token", &sale_strides::token}}) {
      const std::string which = std::string(w.name) + " " + a.name;
      const auto set = [&](int64_t to) { return [&, to](Good& g) { g.problem.*w.tensor.*a.stride = to; }; };
      refuse_plan(which + " stride negative", w.name, set(-64));
      refuse_plan(which + " stride largest", w.name, set(INT64_MAX));
      refuse_plan(which + " stride smallest", w.name, set(INT64_MIN));
      refuse_plan(which + " stride beyond 2^62 bytes", w.name, set(int64_t{1} << 61));
      if (a.stride == &sale_strides::batch) continue;
      // A head may be repeated where it is read (what that gives: numeric, Invariance.StrideZeroRepeats).
      if (a.stride == &sale_strides::head && w.tensor != &sale_problem::out) {
        Good g;
        set(0)(g);
        EXPECT_NE(g.plan(), nullptr) << which;
      } else {
        refuse_plan(which + " stride 0", w.name, set(0));
      }
      refuse_plan(which + " stride below head_dim", w.name, set(63));
    }
}

TEST(Plan, OutRowsMayNotOverlap) {
  refuse_plan("out heads and tokens on each other", "out", [](Good& g) { g.problem.out = {64 * 400, 64, 64}; });
  refuse_plan("out heads one token short", "out", [](Good& g) { g.problem.out = {64 * 400, 64 * 99, 64}; });
  refuse_plan("out batch 0", "out", [](Good& g) { g.problem.out.batch = 0; });
  refuse_plan("out batch inside a head", "out", [](Good& g) { g.problem.out.batch = 64; });
  refuse_plan("out tokens inside interleaved heads", "out",
              [](Good& g) { g.problem.out = {64 * 4 * 100, 64, 64 * 3}; });
}

TEST(Plan, Ragged) {
  const auto list = [](const int64_t* sale_problem::* field, std::vector<int64_t> values) {
    return [=](Good& g) {
      g.lens = values;
      g.problem.*field = g.lens.data();
    };
  };
  refuse_plan("q_lens 0", "q_len of sequence 1", list(&sale_problem::q_lens, {100, 0}));
  refuse_plan("q_lens negative", "q_len of sequence 0", list(&sale_problem::q_lens, {-5, 100}));
  refuse_plan("q_lens huge", "q_len of sequence 1", list(&sale_problem::q_lens, {5, huge()}));
  refuse_plan("q_lens above keys, automatic offset", "sequence 1", list(&sale_problem::q_lens, {5, 151}));
  refuse_plan("k_lens 0", "k_len of sequence 1", list(&sale_problem::k_lens, {150, 0}));
  refuse_plan("k_lens negative", "k_len of sequence 0", list(&sale_problem::k_lens, {-1, 150}));
  refuse_plan("k_lens largest", "k_len of sequence 1", list(&sale_problem::k_lens, {150, INT64_MAX}));
  refuse_plan("q_offsets -2", "q_offset of sequence 1", list(&sale_problem::q_offsets, {0, -2}));
  refuse_plan("q_offsets huge", "q_offset of sequence 0", list(&sale_problem::q_offsets, {huge(), 0}));
  refuse_plan("q_starts negative", "q_starts of sequence 0", list(&sale_problem::q_starts, {-1, 100}));
  refuse_plan("q_starts smallest", "q_starts of sequence 1", list(&sale_problem::q_starts, {0, INT64_MIN}));
  refuse_plan("q_starts huge", "q_starts of sequence 1", list(&sale_problem::q_starts, {0, huge()}));
  refuse_plan("k_starts negative", "k_starts of sequence 1", list(&sale_problem::k_starts, {0, -1}));
  refuse_plan("k_starts huge", "k_starts of sequence 0", list(&sale_problem::k_starts, {INT64_MAX, 0}));
  refuse_plan("packed sequences that overlap", "q_starts", [](Good& g) {
    g.starts = {0, 99};
    g.problem.q_starts = g.starts.data();
    g.problem.out = {0, 64, 256};
    g.problem.q.batch = 0;
  });
  refuse_plan("packed sequences on the same start", "q_starts", [](Good& g) {
    g.starts = {100, 100};
    g.problem.q_starts = g.starts.data();
    g.problem.out = {0, 64, 256};
    g.problem.q.batch = 0;
  });
}

TEST(Plan, Thresholds) {
  refuse_plan("thresholds null", "thresholds", [](Good& g) { g.options.thresholds = nullptr; });
  for (const int64_t n : {int64_t{0}, int64_t{2}, int64_t{3}, int64_t{5}, int64_t{-1}, INT64_MAX})
    refuse_plan("n_thresholds " + std::to_string(n), "n_thresholds", [&](Good& g) {
      g.taus.resize(8, 0.1f);
      g.options.thresholds = g.taus.data();
      g.options.n_thresholds = n;
    });
  for (const float t : {nan, inf, -inf, -0.1f})
    for (const size_t at : {size_t{0}, size_t{3}})
      refuse_plan("threshold " + std::to_string(at) + " " + std::to_string(t),
                  "thresholds: element " + std::to_string(at), [&](Good& g) {
                    g.taus[at] = t;
                    g.options.thresholds = g.taus.data();
                    g.options.n_thresholds = 4;
                  });
}

void with_projections(Good& g, std::vector<float>& matrix, int32_t rank) {
  matrix.assign(2 * 64 * static_cast<size_t>(rank), 0.1f);
  g.options.rank = rank;
  g.options.q_projection = g.options.k_projection = matrix.data();
}

TEST(Plan, Estimator) {
  std::vector<float> matrix, other;
  for (const int f : {0, 5, 16, -4})
    refuse_both("format " + std::to_string(f), "format",
                [&](Good& g) { std::memcpy(&g.options.format, &f, sizeof f); });
  for (const int32_t r : {-16, 8, 24, 80, 1, INT32_MAX, INT32_MIN})
    refuse_both("rank " + std::to_string(r), "rank", [&](Good& g) { g.options.rank = r; });
  refuse_both("rank without projections", "q_projection", [&](Good& g) { g.options.rank = 32; });
  refuse_both("rank without k_projection", "k_projection", [&](Good& g) {
    with_projections(g, matrix, 32);
    g.options.k_projection = nullptr;
  });
  refuse_both("rank without q_projection", "q_projection", [&](Good& g) {
    with_projections(g, matrix, 32);
    g.options.q_projection = nullptr;
  });
  refuse_both("INT4 with a rank of no multiple of 16", "rank", [&](Good& g) {
    with_projections(g, matrix, 24);
    g.options.format = SALE_INT4;
  });
  refuse_both("projections without a rank", "projection", [&](Good& g) {
    with_projections(g, matrix, 32);
    g.options.rank = 0;
  });
  refuse_both("projections with the full rank", "projection", [&](Good& g) { with_projections(g, matrix, 64); });
  for (const float x : {nan, inf}) {
    refuse_both("q_projection with " + std::to_string(x), "q_projection: element 5", [&](Good& g) {
      with_projections(g, matrix, 16);
      matrix[5] = x;
    });
    refuse_both("k_projection with " + std::to_string(x), "k_projection: element 2047", [&](Good& g) {
      with_projections(g, matrix, 16);
      other = matrix;
      other[2047] = x;
      g.options.k_projection = other.data();
    });
  }
}

TEST(Plan, Regions) {
  for (const int32_t n : {0, 16, 31, 33, 288, -32, INT32_MIN})
    refuse_plan("sink " + std::to_string(n), "sink", [&](Good& g) { g.options.sink = n; });
  static const float reference = 0;
  for (const int32_t n : {16, 288, -32})
    refuse_plan("sink " + std::to_string(n) + " of a part", "sink", [&](Good& g) {
      g.options.sink = n;
      g.problem.reference = &reference;
    });
  refuse_plan("a pseudo-key for a part's last block", "compensate: with a reference", [](Good& g) {
    g.problem.reference = &reference;
    g.problem.k_len = 500, g.problem.q_offset = 2000;
    g.options.compensate = 1;
  });
  for (const int32_t n : {0, 16, 100, 1056, -32, INT32_MAX})
    refuse_plan("local " + std::to_string(n), "local", [&](Good& g) { g.options.local = n; });
  for (const int64_t n : {int64_t{-1}, INT64_MIN})
    refuse_plan("dense_below " + std::to_string(n), "dense_below", [&](Good& g) { g.options.dense_below = n; });
  for (const int n : {-1, 4, 8})
    refuse_plan("compute " + std::to_string(n), "compute",
                [&](Good& g) { std::memcpy(&g.options.compute, &n, sizeof n); });
  for (const int32_t n : {-1, 65537, INT32_MIN, INT32_MAX})
    refuse_plan("audit " + std::to_string(n), "audit", [&](Good& g) { g.options.audit = n; });
  for (const int32_t n : {-1, 1025, INT32_MAX})
    refuse_both("threads " + std::to_string(n), "threads", [&](Good& g) { g.options.threads = n; });
}

TEST(Plan, Backends) {
  refuse_both("backend unknown", "backend: no backend is called 'nonsense'",
              [](Good& g) { g.options.backend = "nonsense"; });
  refuse_both("backend in capitals", "'PORTABLE'", [](Good& g) { g.options.backend = "PORTABLE"; });
  refuse_both("backend cut short", "'portabl'", [](Good& g) { g.options.backend = "portabl"; });
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string name = sale_backend_name(i), why = sale_backend_why_not(i);
    if (why.empty()) continue;
    refuse_both(
        "backend " + name + " on this machine", why, [&](Good& g) { g.options.backend = name.c_str(); },
        SALE_UNSUPPORTED);
  }
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const Good narrow("d=16");
    const std::string name = sale_backend_name(i),
                      why = sale_backend_why_not_problem(i, &narrow.problem, &narrow.options);
    if (why.empty() || *sale_backend_why_not(i) != '\0') continue;
    sale_options o = narrow.options;
    o.backend = name.c_str();
    sale_plan* plan = nullptr;
    refused(("backend " + name + " with head_dim 16").c_str(), sale_plan_create(&narrow.problem, &o, 0, &plan),
            SALE_UNSUPPORTED, why);
  }
}

TEST(Plan, BackendFromTheEnvironment) {
  const char* const before = std::getenv("SALE_BACKEND");
  const std::string kept = before != nullptr ? before : "";
  setenv("SALE_BACKEND", "nonsense", 1);
  refuse_both("SALE_BACKEND unknown", "SALE_BACKEND", [](Good& g) { g.options.backend = nullptr; });
  Good g;
  g.options.backend = "portable";
  EXPECT_STREQ(sale_plan_backend(g.plan()), "portable") << "the option goes before the environment";
  setenv("SALE_BACKEND", "portable", 1);
  g.options.backend = nullptr;
  EXPECT_STREQ(sale_plan_backend(g.plan()), "portable");
  if (before != nullptr) {
    setenv("SALE_BACKEND", kept.c_str(), 1);
  } else {
    unsetenv("SALE_BACKEND");
  }
}

TEST(Index, Capacity) {
  for (const int64_t n : {int64_t{0}, int64_t{-1}, huge(), INT64_MAX, INT64_MIN})
    refuse_index("capacity " + std::to_string(n), "capacity", [](Good&) {}, n);
  refuse_index(
      "capacity beyond any memory", "memory",
      [](Good& g) {
        g.problem.q_heads = g.problem.kv_heads = 65536;
        g.problem.head_dim = 256;
      },
      int64_t{1} << 31, SALE_OUT_OF_MEMORY);
}

TEST(Backends, QuestionsOutsideTheListHaveAnswers) {
  const Good g;
  const int32_t n = sale_backend_count();
  EXPECT_GE(n, 1);
  for (const int32_t i : {-1, n, INT32_MAX, INT32_MIN}) {
    EXPECT_NE(sale_backend_name(i), nullptr);
    EXPECT_NE(sale_backend_summary(i), nullptr);
    EXPECT_STRNE(sale_backend_why_not(i), "");
    EXPECT_STRNE(sale_backend_why_not_problem(i, &g.problem, &g.options), "");
  }
  EXPECT_STRNE(sale_backend_why_not_problem(0, nullptr, &g.options), "");
  EXPECT_STRNE(sale_backend_why_not_problem(0, &g.problem, nullptr), "");
  EXPECT_STREQ(sale_backend_name(n - 1), "portable");
  EXPECT_STREQ(sale_backend_why_not(n - 1), "");
  for (int s = -1; s <= 6; ++s) EXPECT_STRNE(sale_status_name(static_cast<sale_status>(s)), "");
  EXPECT_STRNE(sale_machine(), "");
  EXPECT_STRNE(sale_version(), "");
}

}  // namespace
}  // namespace sale_contract
