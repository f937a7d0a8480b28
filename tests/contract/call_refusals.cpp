// What can be wrong about pointers, workspaces, indexes and block lists.
#include "contract.hpp"

namespace sale_contract {
namespace {

constexpr auto bad = SALE_INVALID_ARGUMENT;

using Change = std::function<void(Arguments&, Good&)>;
enum Calls { run_only = 1, select_only = 2, attend_only = 4, all = 7, run_attend = 5, run_select = 3 };

void refuse_calls(const std::string& what, const std::string& named, int calls, const Change& change,
                  bool with_index = false) {
  const struct {
    int bit;
    const char* name;
    sale_status (Arguments::*call)();
  } each[] = {{run_only, "run: ", &Arguments::run},
              {select_only, "select: ", &Arguments::select},
              {attend_only, "attend: ", &Arguments::attend}};
  for (const auto& e : each) {
    if ((calls & e.bit) == 0) continue;
    Good g;
    Arguments a(g, with_index);
    change(a, g);
    refused(e.name + what, (a.*e.call)(), bad, named);
    EXPECT_TRUE(a.untouched(g)) << e.name << what << ": an output or the workspace was touched";
  }
}

TEST(Calls, TheGoodOnesAreGood) {
  for (const bool with_index : {false, true}) {
    Good g;
    Arguments a(g, with_index);
    EXPECT_EQ(a.run(), SALE_OK) << sale_last_error();
    EXPECT_EQ(a.select(), SALE_OK) << sale_last_error();
    EXPECT_EQ(a.attend(), SALE_OK) << sale_last_error();
    EXPECT_TRUE(g.in->outputs_intact());
  }
}

TEST(Calls, NullPointers) {
  refuse_calls("null plan", "plan", all, [](Arguments& a, Good&) { a.plan = nullptr; });
  refuse_calls("null estimator", "estimator", all, [](Arguments& a, Good&) { a.estimator = nullptr; });
  refuse_calls("null q", "q", all, [](Arguments& a, Good&) { a.call.q = nullptr; });
  refuse_calls("null k", "k", all, [](Arguments& a, Good&) { a.call.k = nullptr; });
  refuse_calls("null v", "v", run_attend, [](Arguments& a, Good&) { a.call.v = nullptr; });
  refuse_calls("null out", "out", run_attend, [](Arguments& a, Good&) { a.call.out = nullptr; });
  refuse_calls("null workspace", "workspace", all, [](Arguments& a, Good&) { a.call.workspace = nullptr; });
  refuse_calls("null blocks", "blocks", select_only | attend_only,
               [](Arguments& a, Good&) { a.call.blocks = nullptr; });
}

// What the problem says comes with every call, and nothing else does.
TEST(Calls, Reference) {
  static const std::vector<float> numbers(100'000);
  const struct {
    const char* name;
    sale_status (Arguments::*call)();
  } each[] = {{"run: ", &Arguments::run}, {"select: ", &Arguments::select}, {"attend: ", &Arguments::attend}};
  for (const auto& e : each) {
    Good g;
    g.problem.part = 1;
    Arguments a(g);
    const auto with = [&](const char* what, const float* reference) {
      a.call.reference = reference;
      refused(std::string(e.name) + what, (a.*e.call)(), bad, "reference");
      EXPECT_TRUE(a.untouched(g)) << e.name << what;
    };
    with("no reference of a part", nullptr);
    with("reference misaligned", shifted(numbers.data(), 2));
    with("reference in the workspace", static_cast<const float*>(a.call.workspace));
    if (e.call != &Arguments::select) {
      with("reference is out", static_cast<const float*>(a.call.out));
      with("reference is lse", a.call.lse);
    }
    a.call.reference = numbers.data();
    EXPECT_EQ((a.*e.call)(), SALE_OK) << sale_last_error();
    Good whole;
    Arguments b(whole);
    b.call.reference = numbers.data();
    refused(std::string(e.name) + "a reference of whole sequences", (b.*e.call)(), bad, "reference");
    EXPECT_TRUE(b.untouched(whole));
  }
}

// An audit needs somewhere to put what it finds.
TEST(Calls, Audits) {
  for (const bool whole : {true, false}) {
    Good g;
    g.options.audit = 5;
    Arguments a(g);
    const std::string what = whole ? "run: " : "attend: ";
    const auto call = [&](sale_stats* stats) {
      a.call.stats = stats;
      return whole ? a.run() : a.attend();
    };
    refused(what + "audit without stats", call(nullptr), bad, "stats");
    refused(what + "audit without audits", call(&a.stats), bad, "stats: without audits");
    EXPECT_TRUE(a.untouched(g)) << what;
    std::vector<sale_head_audit> audits(8);
    a.stats.audits = audits.data();
    EXPECT_EQ(call(&a.stats), SALE_OK) << sale_last_error();
    EXPECT_EQ(audits[7].rows, 5);
    a.stats.audits = nullptr;
    EXPECT_EQ(a.select(), SALE_OK) << "a selection audits nothing, and needs no place for it";
  }
}

TEST(Calls, Alignment) {
  refuse_calls("q misaligned", "q", all, [](Arguments& a, Good&) { a.call.q = shifted(a.call.q, 1); });
  refuse_calls("k misaligned", "k", all, [](Arguments& a, Good&) { a.call.k = shifted(a.call.k, 1); });
  refuse_calls("v misaligned", "v", run_attend, [](Arguments& a, Good&) { a.call.v = shifted(a.call.v, 1); });
  refuse_calls("out misaligned", "out", run_attend, [](Arguments& a, Good&) { a.call.out = shifted(a.call.out, 1); });
  for (const int by : {1, 2, 3})
    refuse_calls("lse misaligned by " + std::to_string(by), "lse", run_attend,
                 [&](Arguments& a, Good&) { a.call.lse = shifted(a.call.lse, by); });
  for (const int by : {1, 4, 16, 32, 63})
    refuse_calls("workspace misaligned by " + std::to_string(by), "workspace", all,
                 [&](Arguments& a, Good&) { a.call.workspace = shifted(a.call.workspace, by); });
  refuse_calls("q at the end of the address space", "q", all,
               [](Arguments& a, Good&) { a.call.q = reinterpret_cast<void*>(UINTPTR_MAX - 63); });
  refuse_calls("k at the end of the address space", "k", all,
               [](Arguments& a, Good&) { a.call.k = reinterpret_cast<void*>(UINTPTR_MAX - 63); });
}

TEST(Calls, WorkspaceBytes) {
  refuse_calls("workspace one byte short", "workspace_bytes", all,
               [](Arguments& a, Good&) { --a.call.workspace_bytes; });
  refuse_calls("workspace of 0 bytes", "workspace_bytes", all, [](Arguments& a, Good&) { a.call.workspace_bytes = 0; });
  refuse_calls(
      "workspace one byte short, with indexes", "workspace_bytes", all,
      [](Arguments& a, Good&) { --a.call.workspace_bytes; }, true);
  Good g;
  Arguments a(g);
  const sale_workspace w = workspace_of(a.plan);
  EXPECT_EQ(w.total, w.tables + w.key_index + w.selection + w.scratch);
  EXPECT_GT(w.key_index, 0u);
  EXPECT_EQ(workspace_of(g.plan(true)).key_index, 0u);
  EXPECT_EQ(a.run(), SALE_OK) << "exactly enough";
}

TEST(Calls, Overlap) {
  refuse_calls("out is q", "out", run_attend, [](Arguments& a, Good&) { a.call.out = const_cast<void*>(a.call.q); });
  refuse_calls("out is k", "out", run_attend, [](Arguments& a, Good&) { a.call.out = const_cast<void*>(a.call.k); });
  refuse_calls("out is v", "out", run_attend, [](Arguments& a, Good&) { a.call.out = const_cast<void*>(a.call.v); });
  refuse_calls("out reaches into q", "out", run_attend, [](Arguments& a, Good& g) {
    a.call.out = shifted(const_cast<void*>(a.call.q), static_cast<std::ptrdiff_t>(g.in->q.memory->size()) - 128);
  });
  refuse_calls("out begins before q", "out", run_attend,
               [](Arguments& a, Good&) { a.call.out = shifted(const_cast<void*>(a.call.q), -128); });
  refuse_calls("out in the workspace", "out", run_attend, [](Arguments& a, Good&) { a.call.out = a.call.workspace; });
  refuse_calls("lse is out", "lse", run_attend,
               [](Arguments& a, Good&) { a.call.lse = static_cast<float*>(a.call.out); });
  refuse_calls("lse in q", "lse", run_attend,
               [](Arguments& a, Good&) { a.call.lse = static_cast<float*>(const_cast<void*>(a.call.q)); });
  refuse_calls("lse in k", "lse", run_attend,
               [](Arguments& a, Good&) { a.call.lse = static_cast<float*>(const_cast<void*>(a.call.k)); });
  refuse_calls("lse in v", "lse", run_attend,
               [](Arguments& a, Good&) { a.call.lse = static_cast<float*>(const_cast<void*>(a.call.v)); });
  refuse_calls("lse in the workspace", "lse", run_attend,
               [](Arguments& a, Good&) { a.call.lse = static_cast<float*>(a.call.workspace); });
  // The other way round, so that a call that goes through stays inside memory that is there.
  refuse_calls("q in the workspace", "workspace", all, [&](Arguments& a, Good&) { a.call.q = a.call.workspace; });
  refuse_calls("k in the workspace", "workspace", all, [&](Arguments& a, Good&) { a.call.k = a.call.workspace; });
  refuse_calls("v in the workspace", "workspace", run_attend,
               [&](Arguments& a, Good&) { a.call.v = a.call.workspace; });
}

TEST(Calls, Indexes) {
  refuse_calls("indexes to a plan without", "indexes", run_select, [](Arguments& a, Good& g) {
    a.list = {g.index(0), g.index(1)};
    a.call.indexes = a.list.data();
  });
  refuse_calls(
      "no indexes to a plan with", "indexes", run_select, [](Arguments& a, Good&) { a.call.indexes = nullptr; }, true);
  refuse_calls("second index null", "indexes[1]", run_select, [](Arguments& a, Good&) { a.list[1] = nullptr; }, true);
  refuse_calls(
      "index one key short", "indexes[1]", run_select,
      [](Arguments& a, Good& g) {
        sale_index* i = g.index(1);
        EXPECT_EQ(sale_index_truncate(i, 149), SALE_OK);
        a.list[1] = i;
      },
      true);
  refuse_calls(
      "index empty", "indexes[0]", run_select,
      [](Arguments& a, Good& g) {
        sale_index* i = g.index(0);
        EXPECT_EQ(sale_index_truncate(i, 0), SALE_OK);
        a.list[0] = i;
      },
      true);
  refuse_calls(
      "index ten keys long", "indexes[0]", run_select,
      [](Arguments& a, Good& g) {
        sale_index* i = g.index(0);  // the second sequence's keys follow the first's: there is something to read
        EXPECT_EQ(sale_index_update(i, a.call.k, g.problem.k, 160, nullptr, nullptr), SALE_OK);
        a.list[0] = i;
      },
      true);
  for (const char* estimator : {"estimator=int4", "estimator=int8:32"}) {
    const Good other(estimator);
    refuse_calls(
        std::string("index with ") + estimator, "indexes[0]", run_select,
        [&](Arguments& a, Good&) { a.list[0] = other.index(0); }, true);
  }
}

TEST(Calls, IndexOfAnotherShape) {
  const struct {
    const char* what;
    int32_t kv_heads, head_dim;
  } others[] = {{"another head_dim", 2, 32}, {"one kv head", 1, 64}};
  for (const auto& o : others)
    refuse_calls(
        std::string("index of ") + o.what, "indexes[0]", run_select,
        [&](Arguments& a, Good& g) {
          g.heads(4, o.kv_heads, o.head_dim);
          a.list[0] = g.index(0);
        },
        true);
}

// Codes of another projection or smoothing: the same form, other numbers.
TEST(Calls, IndexThatCodesOtherwise) {
  const std::vector<float> one = sale_case::random_projections(1, 2, 64, 32),
                           two = sale_case::random_projections(2, 2, 64, 32);
  const std::vector<float> half(128, 0.5f), quarter(128, 0.25f);
  const struct {
    const char* what;
    Change change;
  } others[] = {
      {"another projection", [&](Arguments&, Good& g) { g.layer.q_projection = g.layer.k_projection = two.data(); }},
      {"smoothing of its own keys", [&](Arguments&, Good& g) { g.layer.smoothing = nullptr; }},
      {"another smoothing", [&](Arguments&, Good& g) { g.layer.smoothing = quarter.data(); }},
  };
  const auto prepare = [&](Good& g) {
    g.layer.rank = 32;
    g.layer.q_projection = g.layer.k_projection = one.data();
    g.layer.smoothing = half.data();
  };
  for (const auto& o : others)
    for (const bool run : {true, false}) {
      Good g, other("seed=99");
      prepare(g), prepare(other);
      Arguments a(g, true);
      o.change(a, other);
      a.list[1] = other.index(1);
      refused(std::string(run ? "run: " : "select: ") + "index of " + o.what, run ? a.run() : a.select(), bad,
              "indexes[1]");
      EXPECT_TRUE(a.untouched(g)) << o.what;
    }
  // Another threshold or q_projection codes keys alike.
  Good g, other;
  prepare(g), prepare(other);
  Arguments a(g, true);
  other.layer.q_projection = two.data();
  const float tau = 0.5f;
  other.layer.thresholds = &tau;
  a.list[1] = other.index(1);
  EXPECT_EQ(a.run(), SALE_OK) << sale_last_error();
}

// An estimator that is none of the plan's.
TEST(Calls, EstimatorOfAnotherForm) {
  const std::vector<float> projection = sale_case::random_projections(1, 2, 64, 32);
  const float dense[4] = {};
  const struct {
    const char* what;
    const char* named;
    std::function<void(Good&)> change;
  } others[] = {
      {"of another format", "estimator: scans int4", [](Good& g) { g.layer.format = SALE_INT4; }},
      {"of another rank", "rank 32",
       [&](Good& g) {
         g.layer.rank = 32;
         g.layer.q_projection = g.layer.k_projection = projection.data();
       }},
      {"of dense heads", "every head dense", [&](Good& g) { g.layer.thresholds = dense, g.layer.n_thresholds = 4; }},
      {"of other query heads", "heads", [](Good& g) { g.heads(2, 2, 64); }},
      {"of other kv heads", "heads", [](Good& g) { g.heads(4, 4, 64); }},
      {"of another head_dim", "heads", [](Good& g) { g.heads(4, 2, 32); }},
      {"of another dtype", "dtype", [](Good& g) { g.layer.dtype = SALE_F16; }},
      {"of other threads", "threads", [](Good& g) { g.layer.threads = 1; }},
      {"with a part's sink", "sink", [](Good& g) { g.layer.sink = 0; }},
      {"of another sink", "sink 256", [](Good& g) { g.layer.sink = 256; }},
      {"of another local region", "local 1024", [](Good& g) { g.layer.local = 1024; }},
  };
  for (const auto& o : others)
    refuse_calls(std::string("estimator ") + o.what, o.named, all, [&](Arguments& a, Good& g) {
      o.change(g);
      a.estimator = g.estimator();
    });
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    Good g;
    const std::string name = sale_backend_name(i);
    Arguments a(g);
    if (*sale_backend_why_not(i) != '\0' || facts_of(i).on_device != 0 || name == sale_plan_backend(a.plan)) continue;
    g.layer.backend = name.c_str();
    a.estimator = g.estimator();
    refused("run: estimator of backend " + name, a.run(), bad, "backend " + name);
    EXPECT_TRUE(a.untouched(g));
    const sale_estimator* both[]{g.estimator(), nullptr};
    g.layer.backend = sale_plan_backend(a.plan);
    both[1] = g.estimator();
    sale_plan* plan = nullptr;
    refused("plan: estimators of two backends, one " + name, sale_plan_create(&g.problem, &g.options, both, 2, &plan),
            bad, "estimators[1]");
    EXPECT_EQ(plan, nullptr);
  }
  Good g;
  g.layer.threads = 1;
  const sale_estimator* both[]{g.estimator(), nullptr};
  g.layer.threads = 2;
  both[1] = g.estimator();
  sale_plan* plan = nullptr;
  refused("plan: estimators of 1 and 2 threads", sale_plan_create(&g.problem, &g.options, both, 2, &plan), bad,
          "estimators[1]");
  g.heads(4, 4, 64);
  both[1] = g.estimator();
  g.heads(4, 2, 64);
  refused("plan: estimators of other heads", sale_plan_create(&g.problem, &g.options, both, 2, &plan), bad,
          "estimators");
  EXPECT_EQ(plan, nullptr);
  // Other numbers of the same form are what a plan is shared for.
  Arguments a(g);
  g.layer.threads = 2;
  const float tau = 0.5f;
  g.layer.thresholds = &tau;
  a.estimator = g.estimator();
  EXPECT_EQ(a.run(), SALE_OK) << sale_last_error();
}

// Strides of a call's own are held to what a plan's are.
TEST(Calls, Strides) {
  struct Which {
    const char* name;
    const sale_strides* sale_call::* given;
    sale_strides sale_problem::* of;
    int calls;
  };
  for (const Which& w : {Which{"q", &sale_call::q_strides, &sale_problem::q, all},
                         Which{"k", &sale_call::k_strides, &sale_problem::k, all},
                         Which{"v", &sale_call::v_strides, &sale_problem::v, all},
                         Which{"out", &sale_call::out_strides, &sale_problem::out, all}}) {
    sale_strides own{};
    const auto with = [&](const std::string& what, const std::function<void(sale_strides&)>& change) {
      refuse_calls(std::string(w.name) + "_strides: " + what, w.name, w.calls, [&](Arguments& a, Good& g) {
        own = g.problem.*w.of;
        change(own);
        a.call.*w.given = &own;
      });
    };
    with("token negative", [](sale_strides& s) { s.token = -64; });
    with("token 0", [](sale_strides& s) { s.token = 0; });
    with("token below head_dim", [](sale_strides& s) { s.token = 63; });
    with("head below head_dim", [](sale_strides& s) { s.head = 63; });
    with("head largest", [](sale_strides& s) { s.head = INT64_MAX; });
    with("batch smallest", [](sale_strides& s) { s.batch = INT64_MIN; });
  }
  refuse_calls("out_strides: rows on each other", "out", all, [](Arguments& a, Good&) {
    static const sale_strides crossed{64 * 400, 64, 64};
    a.call.out_strides = &crossed;
  });
  refuse_calls("out_strides: reach q", "out", run_attend, [](Arguments& a, Good& g) {
    static sale_strides own;
    own = g.problem.out;
    own.batch = 1 << 20;  // whatever lies between
    const auto distance = reinterpret_cast<uintptr_t>(a.call.q) - reinterpret_cast<uintptr_t>(a.call.out);
    if (reinterpret_cast<uintptr_t>(a.call.q) < reinterpret_cast<uintptr_t>(a.call.out)) {
      a.call.out = const_cast<void*>(a.call.q);
    } else {
      own.batch = static_cast<int64_t>(distance / 2);
    }
    a.call.out_strides = &own;
  });
}

TEST(Calls, Prepared) {
  for (const int32_t n : {-1, 2, INT32_MAX})
    refuse_calls("prepared " + std::to_string(n), "prepared", all, [&](Arguments& a, Good&) { a.call.prepared = n; });
  Good g;
  Arguments a(g);
  const size_t bytes = a.call.workspace_bytes;
  void* const w = a.call.workspace;
  refused("prepare: null plan", sale_plan_prepare(nullptr, w, bytes, nullptr), bad, "plan");
  refused("prepare: null workspace", sale_plan_prepare(a.plan, nullptr, bytes, nullptr), bad, "workspace");
  refused("prepare: misaligned", sale_plan_prepare(a.plan, shifted(w, 32), bytes, nullptr), bad, "workspace");
  refused("prepare: one byte short", sale_plan_prepare(a.plan, w, bytes - 1, nullptr), bad, "workspace_bytes");
  refused("prepare: a stream", sale_plan_prepare(a.plan, w, bytes, &g), bad, "stream");
  EXPECT_TRUE(a.untouched(g));
}

TEST(Calls, BlocksOfAnotherPlan) {
  const auto blocks_of = [](const std::function<void(Good&)>& other) {
    return [=](Arguments& a, Good& g) {
      other(g);
      sale_plan* plan = nullptr;
      ASSERT_EQ(g.make_plan(g.estimator(), &plan), SALE_OK) << sale_last_error();
      a.call.blocks = g.blocks(plan);
      sale_plan_destroy(plan);
    };
  };
  const int calls = select_only | attend_only;
  refuse_calls("blocks of another offset", "blocks", calls, blocks_of([](Good& g) { g.problem.q_offset = 51; }));
  refuse_calls("blocks of one sequence", "blocks", calls, blocks_of([](Good& g) { g.problem.batch = 1; }));
  refuse_calls("blocks of other lengths", "blocks", calls, blocks_of([](Good& g) { g.problem.k_len = 149; }));
  refuse_calls("blocks of fewer heads", "blocks", calls, blocks_of([](Good& g) { g.heads(2, 2, 64); }));
}

TEST(IndexCalls, Update) {
  Good g;
  sale_index* i = g.index(0);
  const std::byte* k = g.in->keys(0);
  const sale_strides s = g.problem.k;
  const auto update = [&](const char* what, const char* named, sale_index* index, const void* keys,
                          sale_strides strides, int64_t k_len) {
    refused(what, sale_index_update(index, keys, strides, k_len, nullptr, nullptr), bad, named);
    EXPECT_EQ(sale_index_length(i), 150) << what;
  };
  update("update: null index", "index", nullptr, k, s, 150);
  update("update: null k", "k", i, nullptr, s, 150);
  update("update: k misaligned", "k", i, k + 1, s, 150);
  update("update: fewer keys", "k_len", i, k, s, 149);
  update("update: no keys", "k_len", i, k, s, 0);
  update("update: negative keys", "k_len", i, k, s, -1);
  update("update: beyond the capacity", "k_len", i, k, s, 201);
  update("update: far beyond the capacity", "k_len", i, k, s, INT64_MAX);
  update("update: token stride negative", "k strides", i, k, {s.batch, s.head, -64}, 150);
  update("update: token stride 0", "k strides", i, k, {s.batch, s.head, 0}, 150);
  update("update: head stride negative", "k strides", i, k, {s.batch, -64, s.token}, 150);
  update("update: head stride below head_dim", "k strides", i, k, {s.batch, 63, s.token}, 150);
  update("update: token stride largest", "k strides", i, k, {s.batch, s.head, INT64_MAX}, 150);
  update("update: head stride largest", "k strides", i, k, {s.batch, INT64_MAX, s.token}, 150);
}

TEST(IndexCalls, TheRest) {
  Good g;
  sale_index* i = g.index(0);
  refused("truncate: null index", sale_index_truncate(nullptr, 0), bad, "index");
  refused("truncate: negative", sale_index_truncate(i, -1), bad, "k_len");
  refused("truncate: more than there are", sale_index_truncate(i, 151), bad, "k_len");
  EXPECT_EQ(sale_index_length(i), 150);
  const int8_t* codes = nullptr;
  refused("codes: null index", sale_index_codes(nullptr, 0, &codes, nullptr, nullptr), bad, "index");
  refused("codes: head -1", sale_index_codes(i, -1, &codes, nullptr, nullptr), bad, "head");
  refused("codes: head beyond", sale_index_codes(i, 2, &codes, nullptr, nullptr), bad, "head");
  EXPECT_EQ(codes, nullptr);
  EXPECT_EQ(sale_index_length(nullptr), 0);
  EXPECT_EQ(sale_index_bytes(nullptr), 0u);
  sale_index_destroy(nullptr);
}

TEST(BlockCalls, Rows) {
  Good g;
  sale_plan* plan = g.plan();
  sale_blocks* b = g.blocks(plan);
  refused("blocks: null plan", sale_blocks_create(nullptr, &b), bad, "plan");
  refused("blocks: null blocks", sale_blocks_create(plan, nullptr), bad, "blocks");
  std::vector<int32_t> out(8, -7);
  sale_row_counts counts{-7, -7};
  const auto row = [&](const char* what, const char* named, const sale_blocks* blocks, sale_tile at, int32_t* to,
                       int64_t capacity, sale_row_counts* c) {
    refused(what, sale_blocks_row(blocks, at, to, capacity, c), bad, named);
    EXPECT_EQ(counts.kept, -7);
    EXPECT_EQ(counts.visible, -7);
    EXPECT_EQ(out[0], -7);
  };
  int32_t* o = out.data();
  row("row: null blocks", "blocks", nullptr, {0, 0, 0}, o, 8, &counts);
  row("row: sequence -1", "sequence", b, {-1, 0, 0}, o, 8, &counts);
  row("row: sequence beyond", "sequence", b, {2, 0, 0}, o, 8, &counts);
  row("row: head -1", "head", b, {0, -1, 0}, o, 8, &counts);
  row("row: head beyond", "head", b, {0, 4, 0}, o, 8, &counts);
  row("row: tile -1", "tile", b, {0, 0, -1}, o, 8, &counts);
  row("row: tile beyond", "tile", b, {0, 0, 2}, o, 8, &counts);
  row("row: tile largest", "tile", b, {0, 0, INT64_MAX}, o, 8, &counts);
  row("row: capacity negative", "capacity", b, {0, 0, 0}, o, -1, &counts);
  row("row: null out", "out", b, {0, 0, 0}, nullptr, 1, &counts);
  row("row: null counts", "counts", b, {0, 0, 0}, o, 8, nullptr);
  EXPECT_EQ(sale_blocks_row(b, {0, 0, 0}, o, 2, &counts), SALE_OK);
  EXPECT_EQ(counts.kept, counts.visible);
  EXPECT_EQ(counts.visible, 4);  // row 63 of tile 0 stands at key 113
  EXPECT_EQ(out[1], 1);
  EXPECT_EQ(out[2], -7) << "more than the capacity was written";
}

TEST(BlockCalls, InBulk) {
  Good g;
  const sale_blocks* b = g.blocks(g.plan());
  constexpr int64_t rows = 2 * 4 * 2, kept = 2 * 4 * (4 + 5);
  std::vector<int64_t> starts(rows + 1, -7);
  std::vector<int32_t> indices(kept, -7);
  sale_csr_counts counts{-7, -7};
  const auto csr = [&](const char* what, const char* named, const sale_blocks* blocks, int64_t* s, int64_t n,
                       int32_t* to, int64_t m, sale_csr_counts* c) {
    refused(what, sale_blocks_csr(blocks, s, n, to, m, c), bad, named);
    EXPECT_EQ(counts.rows, -7);
    EXPECT_EQ(starts[0], -7);
    EXPECT_EQ(indices[0], -7);
  };
  int64_t* const s = starts.data();
  int32_t* const to = indices.data();
  csr("csr: null blocks", "blocks", nullptr, s, rows, to, kept, &counts);
  csr("csr: null counts", "counts", b, s, rows, to, kept, nullptr);
  csr("csr: row_capacity negative", "row_capacity", b, s, -1, to, kept, &counts);
  csr("csr: index_capacity negative", "index_capacity", b, s, rows, to, -1, &counts);
  csr("csr: null starts", "starts", b, nullptr, rows, to, kept, &counts);
  csr("csr: null indices", "indices", b, s, rows, nullptr, kept, &counts);
  // Too little room: the counts, and of what has room the starts.
  EXPECT_EQ(sale_blocks_csr(b, s, rows - 1, to, kept, &counts), SALE_OK);
  EXPECT_EQ(counts.rows, rows);
  EXPECT_EQ(counts.kept, kept);
  EXPECT_EQ(starts[0], -7);
  EXPECT_EQ(indices[0], -7);
  EXPECT_EQ(sale_blocks_csr(b, s, rows, to, kept - 1, &counts), SALE_OK);
  EXPECT_EQ(starts[rows], kept);
  EXPECT_EQ(indices[0], -7);
  EXPECT_EQ(sale_blocks_csr(b, s, rows, to, kept, &counts), SALE_OK);
  EXPECT_EQ(indices[kept - 1], 4);

  uint64_t* words = nullptr;
  std::vector<int64_t> at(rows + 1, -7);
  int64_t n = -7;
  const auto raw = [&](const char* what, const char* named, const sale_blocks* blocks, uint64_t** w, int64_t* where,
                       int64_t capacity, int64_t* r) {
    refused(what, sale_blocks_words(blocks, w, where, capacity, r), bad, named);
    EXPECT_EQ(words, nullptr);
    EXPECT_EQ(n, -7);
    EXPECT_EQ(at[0], -7);
  };
  raw("words: null blocks", "blocks", nullptr, &words, at.data(), rows, &n);
  raw("words: null words", "words", b, nullptr, at.data(), rows, &n);
  raw("words: null rows", "rows", b, &words, at.data(), rows, nullptr);
  raw("words: row_capacity negative", "row_capacity", b, &words, at.data(), -1, &n);
  raw("words: null word_starts", "word_starts", b, &words, nullptr, rows, &n);
  EXPECT_EQ(sale_blocks_words(b, &words, at.data(), rows - 1, &n), SALE_OK);
  EXPECT_NE(words, nullptr);
  EXPECT_EQ(n, rows);
  EXPECT_EQ(at[0], -7) << "word_starts was written without room for it";
}

TEST(BlockCalls, SetRow) {
  Good g;
  sale_blocks* b = g.blocks(g.plan());
  const auto state = [&] {
    std::vector<int32_t> out(8, -1);
    sale_row_counts counts{};
    EXPECT_EQ(sale_blocks_row(b, {1, 3, 1}, out.data(), 8, &counts), SALE_OK);
    return out;
  };
  const auto before = state();
  const auto set = [&](const char* what, const char* named, sale_blocks* blocks, sale_tile at,
                       std::vector<int32_t> kept, int64_t count) {
    refused(what, sale_blocks_set_row(blocks, at, kept.data(), count), bad, named);
    EXPECT_EQ(state(), before) << what;
  };
  set("set_row: null blocks", "blocks", nullptr, {0, 0, 0}, {0}, 1);
  refused("set_row: null kept", sale_blocks_set_row(b, {0, 0, 0}, nullptr, 1), bad, "kept");
  set("set_row: sequence -1", "sequence", b, {-1, 0, 0}, {0}, 1);
  set("set_row: sequence beyond", "sequence", b, {2, 0, 0}, {0}, 1);
  set("set_row: head beyond", "head", b, {0, 4, 0}, {0}, 1);
  set("set_row: head -1", "head", b, {0, -1, 0}, {0}, 1);
  set("set_row: tile beyond", "tile", b, {0, 0, 2}, {0}, 1);
  set("set_row: tile -1", "tile", b, {0, 0, -1}, {0}, 1);
  set("set_row: nothing", "count", b, {1, 3, 1}, {0}, 0);
  set("set_row: negative count", "count", b, {1, 3, 1}, {0}, -1);
  set("set_row: more than visible", "count", b, {1, 3, 1}, {0, 1, 2, 3, 4, 5}, 6);
  set("set_row: count largest", "count", b, {1, 3, 1}, {0}, INT64_MAX);
  set("set_row: repeated", "kept: element 1", b, {1, 3, 1}, {2, 2}, 2);
  set("set_row: descending", "kept: element 2", b, {1, 3, 1}, {0, 3, 1}, 3);
  set("set_row: negative block", "kept: element 0", b, {1, 3, 1}, {-1, 2}, 2);
  set("set_row: block beyond", "kept: element 1", b, {1, 3, 1}, {0, 5}, 2);
  set("set_row: block largest", "kept: element 0", b, {1, 3, 1}, {INT32_MAX}, 1);
}

TEST(Lifetime, DestroyNull) {
  sale_plan_destroy(nullptr);
  sale_index_destroy(nullptr);
  sale_blocks_destroy(nullptr);
  EXPECT_STREQ(sale_plan_backend(nullptr), "");
  EXPECT_STREQ(sale_plan_explain(nullptr), "");
  EXPECT_EQ(sale_plan_q_block(nullptr), 0);
  sale_estimator_destroy(nullptr);
}

}  // namespace
}  // namespace sale_contract
