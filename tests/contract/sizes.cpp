// Structs of other headers: every one begins with its size, smaller ones are completed with zeros, larger ones refused.
#include <cstddef>
#include <cstring>

#include "contract.hpp"
#include "core/sized.hpp"
#include "older_client.h"

namespace sale_contract {
namespace {

constexpr auto bad = SALE_INVALID_ARGUMENT;

// What of a struct's size is not one that any header had.
template <class T>
std::vector<size_t> wrong_sizes() {
  const size_t first = sale::first_size<T>;
  return {0, 1, sizeof(size_t), first / 2, first - 8, first - 1, sizeof(T) + 1, sizeof(T) + 8, SIZE_MAX};
}

// call(size) is to refuse; named: the struct.
template <class T, class Call>
void refuse_sizes(const std::string& who, const std::string& named, Call&& call) {
  for (const size_t size : wrong_sizes<T>())
    refused(who + " of " + std::to_string(size) + " bytes", call(size), bad,
            named + ".struct_size: " + std::to_string(size));
}

TEST(Sizes, Layer) {
  Good g;
  sale_estimator* e = nullptr;
  refuse_sizes<sale_layer>("estimator: layer", "layer", [&](size_t n) {
    g.layer.struct_size = n;
    return sale_estimator_create(&g.layer, &e);
  });
  EXPECT_EQ(e, nullptr);
}

TEST(Sizes, ProblemAndOptions) {
  Good g;
  const sale_estimator* e = g.estimator();
  sale_plan* plan = nullptr;
  refuse_sizes<sale_problem>("plan: problem", "problem", [&](size_t n) {
    sale_problem p = g.problem;
    p.struct_size = n;
    return sale_plan_create(&p, &g.options, &e, 1, &plan);
  });
  refuse_sizes<sale_options>("plan: options", "options", [&](size_t n) {
    sale_options o = g.options;
    o.struct_size = n;
    return sale_plan_create(&g.problem, &o, &e, 1, &plan);
  });
  EXPECT_EQ(plan, nullptr);
}

TEST(Sizes, IndexOptions) {
  Good g;
  sale_index* index = nullptr;
  refuse_sizes<sale_index_options>("index: options", "options", [&](size_t n) {
    sale_index_options o = index_options(100);
    o.struct_size = n;
    return sale_index_create(g.estimator(), &o, &index);
  });
  EXPECT_EQ(index, nullptr);
}

TEST(Sizes, WorkspaceAndFacts) {
  Good g;
  const sale_plan* plan = g.plan();
  sale_workspace w{};
  w.total = 7;
  refuse_sizes<sale_workspace>("workspace", "workspace", [&](size_t n) {
    w.struct_size = n;
    return sale_plan_workspace(plan, &w);
  });
  EXPECT_EQ(w.total, 7u);
  refused("workspace: null plan", sale_plan_workspace(nullptr, &w), bad, "plan");
  refused("workspace: null", sale_plan_workspace(plan, nullptr), bad, "workspace");
  sale_backend_facts facts{};
  facts.q_block = 7;
  refuse_sizes<sale_backend_facts>("facts", "facts", [&](size_t n) {
    facts.struct_size = n;
    return sale_backend_describe(0, &facts);
  });
  EXPECT_EQ(facts.q_block, 7);
}

TEST(Sizes, CallAndStats) {
  const struct {
    const char* name;
    sale_status (Arguments::*call)();
  } each[] = {{"run", &Arguments::run}, {"select", &Arguments::select}, {"attend", &Arguments::attend}};
  for (const auto& e : each) {
    Good g;
    Arguments a(g);
    refuse_sizes<sale_call>(std::string(e.name) + ": call", "call", [&](size_t n) {
      a.call.struct_size = n;
      return (a.*e.call)();
    });
    a.call.struct_size = sizeof a.call;
    refuse_sizes<sale_stats>(std::string(e.name) + ": stats", "stats", [&](size_t n) {
      a.stats.struct_size = n;
      return (a.*e.call)();
    });
    EXPECT_TRUE(a.untouched(g)) << e.name;
  }
}

// Sizes between the first header's and this one's are some header's.
TEST(Sizes, AClientOfTheHeaderBeforeGetsTheSameBits) {
  EXPECT_EQ(older_problem_size(), offsetof(sale_problem, k_coded));
  EXPECT_EQ(older_call_size(), offsetof(sale_call, index_pages));
  const sale_case::Instance in(sale_case::parse("qheads=4 kvheads=2 q=700 k=700 d=64 type=bf16 densebelow=0"));
  sale_case::Memory theirs(in.out.memory->size(), 0xcb, 64);
  const older_tensors tensors{4, 2, 64, 700, in.q.data(), in.k.data(), in.v.data(), theirs.begin()};
  ASSERT_EQ(older_attention(&tensors), SALE_OK) << sale_last_error();
  const sale_layer layer = sale_layer_init(4, 2, 64, SALE_BF16);
  sale_estimator* estimator = nullptr;
  sale_plan* plan = nullptr;
  must(sale_estimator_create(&layer, &estimator));
  must(sale_plan_create(&in.problem, &in.options, &estimator, 1, &plan));
  const sale_case::Memory space(workspace_of(plan).total, 0x5a, 64);
  sale_call call = in.call();
  call.workspace = space.begin(), call.workspace_bytes = space.size();
  must(sale_run(plan, estimator, &call));
  EXPECT_EQ(std::memcmp(in.out.memory->begin(), theirs.begin(), theirs.size()), 0);
  sale_plan_destroy(plan);
  sale_estimator_destroy(estimator);
}

// What the init functions make is of this header.
TEST(Sizes, OfThisHeader) {
  EXPECT_EQ(sale_problem_init(4, 2, 64, SALE_BF16, 1, 1).struct_size, sizeof(sale_problem));
  EXPECT_EQ(sale_layer_init(4, 2, 64, SALE_BF16).struct_size, sizeof(sale_layer));
  EXPECT_EQ(sale_options_init().struct_size, sizeof(sale_options));
  EXPECT_EQ(sale_call_init().struct_size, sizeof(sale_call));
}

}  // namespace

// A struct that has grown once: what all of them go through, before any public one has a tail.
struct Grown {
  size_t struct_size;
  int64_t old;
  int64_t added;
};

}  // namespace sale_contract

template <>
inline constexpr size_t sale::first_size<sale_contract::Grown> = offsetof(sale_contract::Grown, added);

namespace sale_contract {
namespace {

TEST(Sizes, AnOlderClientsTailIsZeroAndNotTouched) {
  constexpr size_t older = offsetof(Grown, added);
  // An older client's struct ends before an unreadable page.
  const sale_case::Memory memory(older, 0, 8);
  auto* const theirs = reinterpret_cast<Grown*>(memory.begin());
  theirs->struct_size = older;
  theirs->old = 5;
  const Grown whole = sale::sized(theirs, "grown");
  EXPECT_EQ(whole.struct_size, sizeof(Grown));
  EXPECT_EQ(whole.old, 5);
  EXPECT_EQ(whole.added, 0);
  sale::fill(theirs, "grown", Grown{0, 6, 9});
  EXPECT_EQ(theirs->struct_size, older) << "the size is the caller's";
  EXPECT_EQ(theirs->old, 6);

  Grown ours{sizeof(Grown), 1, 2};
  EXPECT_EQ(sale::sized(&ours, "grown").added, 2);
  sale::fill(&ours, "grown", Grown{0, 3, 4});
  EXPECT_EQ(ours.added, 4);
  EXPECT_EQ(ours.struct_size, sizeof(Grown));
  for (const size_t size : {size_t{0}, older - 1, sizeof(Grown) + 1}) {
    ours.struct_size = size;
    EXPECT_THROW(sale::sized(&ours, "grown"), sale::Failure) << size;
    EXPECT_THROW(sale::fill(&ours, "grown", Grown{}), sale::Failure) << size;
  }
}

}  // namespace
}  // namespace sale_contract
