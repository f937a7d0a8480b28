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
    refused((e.name + what).c_str(), (a.*e.call)(), bad, named);
    EXPECT_TRUE(a.untouched(g)) << e.name << what << ": an output or the workspace was touched";
  }
}

template <class T>
T* shifted(T* p, std::ptrdiff_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
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
  refuse_calls("null q", "q", all, [](Arguments& a, Good&) { a.q = nullptr; });
  refuse_calls("null k", "k", all, [](Arguments& a, Good&) { a.k = nullptr; });
  refuse_calls("null v", "v", run_attend, [](Arguments& a, Good&) { a.v = nullptr; });
  refuse_calls("null out", "out", run_attend, [](Arguments& a, Good&) { a.out = nullptr; });
  refuse_calls("null workspace", "workspace", all, [](Arguments& a, Good&) { a.workspace = nullptr; });
  refuse_calls("null blocks", "blocks", select_only | attend_only, [](Arguments& a, Good&) { a.blocks = nullptr; });
}

// Given with the problem, read by runs and selections.
TEST(Calls, Reference) {
  const auto refuse = [](const char* what, const std::function<const float*(Good&)>& reference) {
    for (const bool select : {false, true}) {
      Good g;
      g.problem.reference = reference(g);
      Arguments a(g, false);
      refused(what, select ? a.select() : a.run(), bad, "reference");
      EXPECT_TRUE(a.untouched(g)) << what;
    }
  };
  static const std::vector<float> numbers(100'000);
  refuse("reference misaligned", [](Good&) { return shifted(numbers.data(), 2); });
  Good g;
  g.problem.reference = reinterpret_cast<const float*>(g.in->out.data());
  Arguments a(g, false);
  refused("reference is out", a.run(), bad, "reference");
  EXPECT_TRUE(a.untouched(g));
}

// An audit needs somewhere to put what it finds.
TEST(Calls, Audits) {
  for (const bool whole : {true, false}) {
    Good g;
    g.options.audit = 5;
    Arguments a(g);
    const std::string what = whole ? "run: " : "attend: ";
    const auto call = [&](sale_stats* stats) {
      return whole ? sale_run(a.plan, a.q, a.k, a.v, a.out, a.lse, nullptr, a.workspace, a.bytes, stats, nullptr)
                   : sale_attend(a.plan, a.q, a.k, a.v, a.blocks, a.out, a.lse, a.workspace, a.bytes, stats, nullptr);
    };
    refused((what + "audit without stats").c_str(), call(nullptr), bad, "stats");
    refused((what + "audit without audits").c_str(), call(&a.stats), bad, "stats: without audits");
    EXPECT_TRUE(a.untouched(g)) << what;
    std::vector<sale_head_audit> audits(8);
    a.stats.audits = audits.data();
    EXPECT_EQ(call(&a.stats), SALE_OK) << sale_last_error();
    EXPECT_EQ(audits[7].rows, 5);
    EXPECT_EQ(a.select(), SALE_OK) << "a selection audits nothing, and needs no place for it";
  }
}

TEST(Calls, Alignment) {
  refuse_calls("q misaligned", "q", all, [](Arguments& a, Good&) { a.q = shifted(a.q, 1); });
  refuse_calls("k misaligned", "k", all, [](Arguments& a, Good&) { a.k = shifted(a.k, 1); });
  refuse_calls("v misaligned", "v", run_attend, [](Arguments& a, Good&) { a.v = shifted(a.v, 1); });
  refuse_calls("out misaligned", "out", run_attend, [](Arguments& a, Good&) { a.out = shifted(a.out, 1); });
  for (const int by : {1, 2, 3})
    refuse_calls("lse misaligned by " + std::to_string(by), "lse", run_attend,
                 [&](Arguments& a, Good&) { a.lse = shifted(a.lse, by); });
  for (const int by : {1, 4, 16, 32, 63})
    refuse_calls("workspace misaligned by " + std::to_string(by), "workspace", all,
                 [&](Arguments& a, Good&) { a.workspace = shifted(a.workspace, by); });
  refuse_calls("q at the end of the address space", "q", all,
               [](Arguments& a, Good&) { a.q = reinterpret_cast<void*>(UINTPTR_MAX - 63); });
  refuse_calls("k at the end of the address space", "k", all,
               [](Arguments& a, Good&) { a.k = reinterpret_cast<void*>(UINTPTR_MAX - 63); });
}

TEST(Calls, WorkspaceBytes) {
  refuse_calls("workspace one byte short", "workspace_bytes", all, [](Arguments& a, Good&) { --a.bytes; });
  refuse_calls("workspace of 0 bytes", "workspace_bytes", all, [](Arguments& a, Good&) { a.bytes = 0; });
  refuse_calls(
      "workspace one byte short, with indexes", "workspace_bytes", all, [](Arguments& a, Good&) { --a.bytes; }, true);
  Good g;
  Arguments a(g);
  const sale_workspace w = sale_plan_workspace(a.plan);
  EXPECT_EQ(w.total, w.key_index + w.selection + w.scratch);
  EXPECT_GT(w.key_index, 0u);
  EXPECT_EQ(sale_plan_workspace(g.plan(true)).key_index, 0u);
  EXPECT_EQ(sale_plan_workspace(nullptr).total, 0u);
  EXPECT_EQ(a.run(), SALE_OK) << "exactly enough";
}

TEST(Calls, Overlap) {
  refuse_calls("out is q", "out", run_attend, [](Arguments& a, Good&) { a.out = const_cast<void*>(a.q); });
  refuse_calls("out is k", "out", run_attend, [](Arguments& a, Good&) { a.out = const_cast<void*>(a.k); });
  refuse_calls("out is v", "out", run_attend, [](Arguments& a, Good&) { a.out = const_cast<void*>(a.v); });
  refuse_calls("out reaches into q", "out", run_attend, [](Arguments& a, Good& g) {
    a.out = shifted(const_cast<void*>(a.q), static_cast<std::ptrdiff_t>(g.in->q.memory->size()) - 128);
  });
  refuse_calls("out begins before q", "out", run_attend,
               [](Arguments& a, Good&) { a.out = shifted(const_cast<void*>(a.q), -128); });
  refuse_calls("out in the workspace", "out", run_attend, [](Arguments& a, Good&) { a.out = a.workspace; });
  refuse_calls("lse is out", "lse", run_attend, [](Arguments& a, Good&) { a.lse = static_cast<float*>(a.out); });
  refuse_calls("lse in q", "lse", run_attend,
               [](Arguments& a, Good&) { a.lse = static_cast<float*>(const_cast<void*>(a.q)); });
  refuse_calls("lse in k", "lse", run_attend,
               [](Arguments& a, Good&) { a.lse = static_cast<float*>(const_cast<void*>(a.k)); });
  refuse_calls("lse in v", "lse", run_attend,
               [](Arguments& a, Good&) { a.lse = static_cast<float*>(const_cast<void*>(a.v)); });
  refuse_calls("lse in the workspace", "lse", run_attend,
               [](Arguments& a, Good&) { a.lse = static_cast<float*>(a.workspace); });
  // The other way round, so that a call that goes through stays inside memory that is there.
  refuse_calls("q in the workspace", "workspace", all, [&](Arguments& a, Good&) { a.q = a.workspace; });
  refuse_calls("k in the workspace", "workspace", all, [&](Arguments& a, Good&) { a.k = a.workspace; });
  refuse_calls("v in the workspace", "workspace", run_attend, [&](Arguments& a, Good&) { a.v = a.workspace; });
}

TEST(Calls, Indexes) {
  refuse_calls("indexes to a plan without", "indexes", run_select, [](Arguments& a, Good& g) {
    a.list = {g.index(0), g.index(1)};
    a.indexes = a.list.data();
  });
  refuse_calls(
      "no indexes to a plan with", "indexes", run_select, [](Arguments& a, Good&) { a.indexes = nullptr; }, true);
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
        EXPECT_EQ(sale_index_update(i, a.k, g.problem.k, 160, nullptr, nullptr), SALE_OK);
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
          const sale_problem kept = g.problem;
          g.problem.kv_heads = o.kv_heads;
          g.problem.head_dim = o.head_dim;
          a.list[0] = g.index(0);
          g.problem = kept;
        },
        true);
}

TEST(Calls, IndexOfAnotherProjection) {
  Good g, other("seed=99");
  const std::vector<float> one = sale_case::random_projections(1, 2, 64, 32),
                           two = sale_case::random_projections(2, 2, 64, 32);
  g.options.rank = other.options.rank = 32;
  g.options.q_projection = g.options.k_projection = one.data();
  other.options.q_projection = other.options.k_projection = two.data();
  Arguments a(g, true);
  EXPECT_EQ(a.run(), SALE_OK) << sale_last_error();
  a.list[1] = other.index(1);
  g.in->clear_outputs();
  refused("run: index of another projection", a.run(), bad, "indexes[1]");
  EXPECT_TRUE(g.in->out.memory->untouched_outside({}));
}

TEST(Calls, BlocksOfAnotherPlan) {
  const auto blocks_of = [](const std::function<void(sale_problem&)>& other) {
    return [=](Arguments& a, Good& g) {
      sale_problem p = g.problem;
      other(p);
      sale_plan* plan = nullptr;
      ASSERT_EQ(sale_plan_create(&p, &g.options, 0, &plan), SALE_OK);
      a.blocks = g.blocks(plan);
      sale_plan_destroy(plan);
    };
  };
  const int calls = select_only | attend_only;
  refuse_calls("blocks of another offset", "blocks", calls, blocks_of([](sale_problem& p) { p.q_offset = 51; }));
  refuse_calls("blocks of one sequence", "blocks", calls, blocks_of([](sale_problem& p) { p.batch = 1; }));
  refuse_calls("blocks of other lengths", "blocks", calls, blocks_of([](sale_problem& p) { p.k_len = 149; }));
  refuse_calls("blocks of fewer heads", "blocks", calls, blocks_of([](sale_problem& p) { p.q_heads = 2; }));
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
  const std::vector<float> vectors(128, 0.5f);
  refused("smoothing: null index", sale_index_set_smoothing(nullptr, vectors.data()), bad, "index");
  refused("smoothing: null vectors", sale_index_set_smoothing(i, nullptr), bad, "vectors");
  refused("smoothing: after the first keys", sale_index_set_smoothing(i, vectors.data()), bad, "index");
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
  int64_t kept = -7, visible = -7;
  const auto row = [&](const char* what, const char* named, const sale_blocks* blocks, int32_t s, int32_t h, int64_t t,
                       int32_t* to, int64_t capacity, int64_t* k, int64_t* v) {
    refused(what, sale_blocks_row(blocks, s, h, t, to, capacity, k, v), bad, named);
    EXPECT_EQ(kept, -7);
    EXPECT_EQ(visible, -7);
    EXPECT_EQ(out[0], -7);
  };
  int32_t* o = out.data();
  row("row: null blocks", "blocks", nullptr, 0, 0, 0, o, 8, &kept, &visible);
  row("row: sequence -1", "sequence", b, -1, 0, 0, o, 8, &kept, &visible);
  row("row: sequence beyond", "sequence", b, 2, 0, 0, o, 8, &kept, &visible);
  row("row: head -1", "head", b, 0, -1, 0, o, 8, &kept, &visible);
  row("row: head beyond", "head", b, 0, 4, 0, o, 8, &kept, &visible);
  row("row: tile -1", "tile", b, 0, 0, -1, o, 8, &kept, &visible);
  row("row: tile beyond", "tile", b, 0, 0, 2, o, 8, &kept, &visible);
  row("row: tile largest", "tile", b, 0, 0, INT64_MAX, o, 8, &kept, &visible);
  row("row: capacity negative", "capacity", b, 0, 0, 0, o, -1, &kept, &visible);
  row("row: null out", "out", b, 0, 0, 0, nullptr, 1, &kept, &visible);
  row("row: null kept", "kept", b, 0, 0, 0, o, 8, nullptr, &visible);
  row("row: null visible", "visible", b, 0, 0, 0, o, 8, &kept, nullptr);
  EXPECT_EQ(sale_blocks_row(b, 0, 0, 0, o, 2, &kept, &visible), SALE_OK);
  EXPECT_EQ(kept, visible);
  EXPECT_EQ(visible, 4);  // row 63 of tile 0 stands at key 113
  EXPECT_EQ(out[1], 1);
  EXPECT_EQ(out[2], -7) << "more than the capacity was written";
}

TEST(BlockCalls, SetRow) {
  Good g;
  sale_blocks* b = g.blocks(g.plan());
  const auto state = [&] {
    std::vector<int32_t> out(8, -1);
    int64_t kept = 0, visible = 0;
    EXPECT_EQ(sale_blocks_row(b, 1, 3, 1, out.data(), 8, &kept, &visible), SALE_OK);
    return out;
  };
  const auto before = state();
  const auto set = [&](const char* what, const char* named, sale_blocks* blocks, int32_t s, int32_t h, int64_t t,
                       std::vector<int32_t> kept, int64_t count) {
    refused(what, sale_blocks_set_row(blocks, s, h, t, kept.data(), count), bad, named);
    EXPECT_EQ(state(), before) << what;
  };
  set("set_row: null blocks", "blocks", nullptr, 0, 0, 0, {0}, 1);
  refused("set_row: null kept", sale_blocks_set_row(b, 0, 0, 0, nullptr, 1), bad, "kept");
  set("set_row: sequence -1", "sequence", b, -1, 0, 0, {0}, 1);
  set("set_row: sequence beyond", "sequence", b, 2, 0, 0, {0}, 1);
  set("set_row: head beyond", "head", b, 0, 4, 0, {0}, 1);
  set("set_row: head -1", "head", b, 0, -1, 0, {0}, 1);
  set("set_row: tile beyond", "tile", b, 0, 0, 2, {0}, 1);
  set("set_row: tile -1", "tile", b, 0, 0, -1, {0}, 1);
  set("set_row: nothing", "count", b, 1, 3, 1, {0}, 0);
  set("set_row: negative count", "count", b, 1, 3, 1, {0}, -1);
  set("set_row: more than visible", "count", b, 1, 3, 1, {0, 1, 2, 3, 4, 5}, 6);
  set("set_row: count largest", "count", b, 1, 3, 1, {0}, INT64_MAX);
  set("set_row: repeated", "kept: element 1", b, 1, 3, 1, {2, 2}, 2);
  set("set_row: descending", "kept: element 2", b, 1, 3, 1, {0, 3, 1}, 3);
  set("set_row: negative block", "kept: element 0", b, 1, 3, 1, {-1, 2}, 2);
  set("set_row: block beyond", "kept: element 1", b, 1, 3, 1, {0, 5}, 2);
  set("set_row: block largest", "kept: element 0", b, 1, 3, 1, {INT32_MAX}, 1);
}

TEST(Lifetime, DestroyNull) {
  sale_plan_destroy(nullptr);
  sale_index_destroy(nullptr);
  sale_blocks_destroy(nullptr);
  EXPECT_STREQ(sale_plan_backend(nullptr), "");
  EXPECT_STREQ(sale_plan_explain(nullptr), "");
}

}  // namespace
}  // namespace sale_contract
