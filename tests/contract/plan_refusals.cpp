// Everything sale_plan_create can be given wrong in a problem or its options.
#include <cmath>
#include <cstdlib>
#include <limits>

#include "contract.hpp"

namespace sale_contract {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
constexpr auto bad = SALE_INVALID_ARGUMENT;

using Change = std::function<void(Good&)>;

// The estimator is the good one.
void refuse_plan(const std::string& what, const std::string& named, const Change& change, sale_status status = bad) {
  Good g;
  const sale_estimator* const estimator = g.estimator();
  change(g);
  sale_plan* const sentinel = reinterpret_cast<sale_plan*>(0x1234);
  sale_plan* plan = sentinel;
  refused("plan: " + what, sale_plan_create(&g.problem, &g.options, &estimator, 1, &plan), status, named);
  EXPECT_EQ(plan, sentinel) << what << ": the output was touched";
}

TEST(Plan, TheGoodOneIsGood) {
  Good g;
  EXPECT_NE(g.plan(), nullptr);
}

TEST(Plan, NullArguments) {
  Good g;
  const sale_estimator* estimators[]{g.estimator(), nullptr};
  sale_plan* plan = nullptr;
  const auto create = [&](const sale_problem* p, const sale_options* o, const sale_estimator* const* e, int64_t n,
                          sale_plan** to) { return sale_plan_create(p, o, e, n, to); };
  refused("plan: null problem", create(nullptr, &g.options, estimators, 1, &plan), bad, "problem");
  refused("plan: null options", create(&g.problem, nullptr, estimators, 1, &plan), bad, "options");
  refused("plan: null plan", create(&g.problem, &g.options, estimators, 1, nullptr), bad, "plan");
  refused("plan: null estimators", create(&g.problem, &g.options, nullptr, 1, &plan), bad, "estimators");
  refused("plan: second estimator null", create(&g.problem, &g.options, estimators, 2, &plan), bad, "estimators[1]");
  for (const int64_t n : {int64_t{0}, int64_t{-1}, INT64_MIN})
    refused("plan: n_estimators " + std::to_string(n), create(&g.problem, &g.options, estimators, n, &plan), bad,
            "n_estimators");
  EXPECT_EQ(plan, nullptr);
}

TEST(Plan, Heads) {
  for (const int32_t n : {0, -1, 65537, INT32_MAX, INT32_MIN})
    refuse_plan("batch " + std::to_string(n), "batch", [&](Good& g) { g.problem.batch = n; });
  for (const int32_t n : {0, -1, 65537, INT32_MIN}) {
    refuse_plan("kv_heads " + std::to_string(n), "kv_heads", [&](Good& g) { g.problem.kv_heads = n; });
    refuse_plan("q_heads " + std::to_string(n), "q_heads", [&](Good& g) { g.problem.q_heads = n; });
  }
  for (const int32_t n : {1, 3, 5})
    refuse_plan("q_heads " + std::to_string(n) + " on 2", "q_heads", [&](Good& g) { g.problem.q_heads = n; });
  for (const int32_t n : {0, -16, 8, 24, 63, 65, 272, 512, INT32_MAX, INT32_MIN})
    refuse_plan("head_dim " + std::to_string(n), "head_dim", [&](Good& g) { g.problem.head_dim = n; });
  for (const int n : {-1, 3, 100})
    refuse_plan("dtype " + std::to_string(n), "dtype", [&](Good& g) { std::memcpy(&g.problem.dtype, &n, sizeof n); });
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

// SALE_AUTO, the default: dense below the backend's own length, sparse from there on.
TEST(Plan, DenseBelowWhatPays) {
  EXPECT_EQ(sale_options_init().dense_below, SALE_AUTO);
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const sale_backend_facts facts = facts_of(i);
    EXPECT_GE(facts.dense_below_projected, 1024) << sale_backend_name(i);
    EXPECT_LE(facts.dense_below_projected, facts.dense_below) << sale_backend_name(i);
  }
  Good g;
  const std::string name = sale_estimator_backend(g.estimator());
  int64_t pays = 0;
  for (int32_t i = 0; i < sale_backend_count(); ++i)
    if (name == sale_backend_name(i)) pays = facts_of(i).dense_below;
  for (const int64_t keys : {pays - 1, pays}) {
    g.problem = sale_problem_init(g.layer.q_heads, g.layer.kv_heads, g.layer.head_dim, g.layer.dtype, 1, keys);
    g.options.dense_below = SALE_AUTO;
    const std::string told = sale_plan_explain(g.plan());
    const char* const sequences = keys < pays ? "1 of 1 sequences by length" : "0 of 1 sequences by length";
    EXPECT_NE(told.find(sequences), std::string::npos) << told;
  }
}

TEST(Plan, Windows) {
  for (const int64_t n : {int64_t{-1}, (int64_t{1} << 31) + 1, INT64_MAX, INT64_MIN})
    refuse_plan("window " + std::to_string(n), "window", [&](Good& g) { g.problem.window = n; });
  for (const int32_t n : {-1, 2, INT32_MAX})
    refuse_plan("window_sink " + std::to_string(n), "window_sink",
                [&](Good& g) { g.problem.window = 100, g.problem.window_sink = n; });
  refuse_plan("window_sink without a window", "window_sink", [](Good& g) { g.problem.window_sink = 1; });
  for (const int32_t n : {-1, 1})
    refuse_plan("reserved " + std::to_string(n), "reserved", [&](Good& g) { g.problem.reserved = n; });
}

TEST(Plan, Options) {
  refuse_plan("a pseudo-key for a part's last block", "compensate: of a part", [](Good& g) {
    g.problem.part = 1;
    g.problem.k_len = 500, g.problem.q_offset = 2000;
    g.options.compensate = 1;
  });
  for (const int64_t n : {int64_t{-2}, INT64_MIN})
    refuse_plan("dense_below " + std::to_string(n), "dense_below", [&](Good& g) { g.options.dense_below = n; });
  for (const int n : {-1, 4, 8})
    refuse_plan("compute " + std::to_string(n), "compute",
                [&](Good& g) { std::memcpy(&g.options.compute, &n, sizeof n); });
  for (const int32_t n : {-1, 65537, INT32_MIN, INT32_MAX})
    refuse_plan("audit " + std::to_string(n), "audit", [&](Good& g) { g.options.audit = n; });
  for (const int32_t n : {-1, 3, INT32_MAX})
    refuse_plan("with_index " + std::to_string(n), "with_index", [&](Good& g) { g.options.with_index = n; });
  for (const int32_t n : {-1, 2, INT32_MIN})
    refuse_plan("part " + std::to_string(n), "part", [&](Good& g) { g.problem.part = n; });
}

// Problems that are right, but not for this layer.
TEST(Plan, OfAnotherLayer) {
  refuse_plan("more query heads than the layer", "estimators: made for 4 query",
              [](Good& g) { g.problem.q_heads = 6, g.problem.q.batch = g.problem.out.batch = 6 * 100 * 64; });
  refuse_plan("fewer kv heads than the layer", "2 kv heads", [](Good& g) { g.problem.kv_heads = 1; });
  refuse_plan("head_dim of another layer", "of 64", [](Good& g) { g.problem.head_dim = 32; });
  refuse_plan("dtype of another layer", "dtype", [](Good& g) { g.problem.dtype = SALE_F16; });
  refuse_plan("device of another layer", "device", [](Good& g) { g.problem.device = 0; });
  Good g;
  g.layer.sink = 0;
  const sale_estimator* const part = g.estimator();
  sale_plan* plan = nullptr;
  refused("plan: sink 0 of whole sequences", g.make_plan(part, &plan), bad, "sink: 0");
  EXPECT_EQ(plan, nullptr);
  g.problem.part = 1;
  EXPECT_EQ(g.make_plan(part, &plan), SALE_OK) << sale_last_error();
  sale_plan_destroy(plan);
}

}  // namespace
}  // namespace sale_contract
