// One plan, many threads, a workspace each: the same bits for all.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "contract.hpp"

// TSan does not let a child of several threads start threads. In a child that was forked while another thread
// allocated, ASan's own heap waits for ever: its locks are not given back there, as those of the C library's are.
#if defined(__SANITIZE_THREAD__)
#define SALE_CAN_FORK 0
#elif defined(__SANITIZE_ADDRESS__)
#define SALE_HEAP_FORKS 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SALE_CAN_FORK 0
#elif __has_feature(address_sanitizer)
#define SALE_HEAP_FORKS 0
#endif
#endif
#ifndef SALE_HEAP_FORKS
#define SALE_HEAP_FORKS 1
#endif
#ifndef SALE_CAN_FORK
#define SALE_CAN_FORK 1
#endif

namespace sale_contract {
namespace {

struct Output {
  explicit Output(const Good& g) : out(g.in->out.memory->size()), lse(g.in->lse->size() / 4) {}
  std::vector<std::byte> out;
  std::vector<float> lse;
  bool operator==(const Output& o) const {
    return out == o.out && std::memcmp(lse.data(), o.lse.data(), lse.size() * 4) == 0;
  }
};

// Of each thread. A sanitizer finds in few what it finds in many, and takes a hundred times as long.
int runs() {
  const char* n = std::getenv("SALE_REPEATS");
  return n != nullptr ? std::atoi(n) : 60;
}

sale_status run_into(const Good& g, const sale_plan* plan, const sale_estimator* estimator,
                     const sale_index* const* indexes, Output& o) {
  const sale_case::Memory space(workspace_of(plan).total, 0, 64);
  sale_call call = g.in->call();
  call.out = o.out.data();
  call.lse = o.lse.data();
  call.indexes = indexes;
  call.workspace = space.begin();
  call.workspace_bytes = space.size();
  return sale_run(plan, estimator, &call);
}

void share(const Good& g, bool with_index) {
  const sale_estimator* estimator = g.estimator();
  const sale_plan* plan = g.plan(estimator, with_index);
  const std::vector<const sale_index*> list{g.index(0), g.index(1)};
  const sale_index* const* indexes = with_index ? list.data() : nullptr;
  Output expected(g);
  ASSERT_EQ(run_into(g, plan, estimator, indexes, expected), SALE_OK) << sale_last_error();
  std::atomic<int> different{0}, failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t)
    threads.emplace_back([&] {
      for (int i = runs(); i > 0; --i) {
        Output o(g);
        if (run_into(g, plan, estimator, indexes, o) != SALE_OK) ++failed;
        if (!(o == expected)) ++different;
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(different, 0);
}

TEST(Threads, OnePlanSharedBy16) {
  for (const char* line : {"", "estimator=int4 compute=int8", "estimator=int8:32"}) {
    share(Good(line), false);
    share(Good(line), true);
  }
}

// Layers and plans come and go on many threads; their pool is shared and must outlive each.
TEST(Threads, LayersAndPlansComeAndGo) {
  Good g;
  Output expected(g);
  const sale_estimator* one = g.estimator();
  ASSERT_EQ(run_into(g, g.plan(one), one, nullptr, expected), SALE_OK);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        sale_layer layer = g.layer;
        layer.threads = 1 + (t + i) % 4;
        sale_estimator* estimator = nullptr;
        sale_plan* plan = nullptr;
        if (sale_estimator_create(&layer, &estimator) != SALE_OK || g.make_plan(estimator, &plan) != SALE_OK) {
          ++wrong;
        } else {
          Output out(g);
          if (run_into(g, plan, estimator, nullptr, out) != SALE_OK || !(out == expected)) ++wrong;
        }
        sale_plan_destroy(plan);
        sale_estimator_destroy(estimator);
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Threads, MessagesBelongToTheirThread) {
  Good g;
  g.layer.head_dim = 24;
  sale_estimator* estimator = nullptr;
  ASSERT_EQ(sale_estimator_create(&g.layer, &estimator), SALE_INVALID_ARGUMENT);
  std::string other = "unset";
  std::thread([&] { other = sale_last_error(); }).join();
  EXPECT_EQ(other, "");
  EXPECT_NE(std::string(sale_last_error()).find("head_dim"), std::string::npos);
}

// In a child of fork: true when body is, within 60 s.
template <class F>
bool in_child(F&& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// A child has its parent's plans and indexes, but none of its threads. It gets the same bits, may let go of what it was
// given, and may have children.
TEST(Threads, AForkedChildComputesTheSame) {
  if (!SALE_CAN_FORK) GTEST_SKIP() << "not under TSan";
  Good g;
  g.layer.threads = 3;
  sale_estimator* layer = nullptr;
  sale_plan* plan = nullptr;
  ASSERT_EQ(sale_estimator_create(&g.layer, &layer), SALE_OK);
  ASSERT_EQ(g.make_plan(layer, &plan), SALE_OK);
  Output expected(g);
  ASSERT_EQ(run_into(g, plan, layer, nullptr, expected), SALE_OK) << sale_last_error();
  const auto same = [&] {
    Output o(g);
    return run_into(g, plan, layer, nullptr, o) == SALE_OK && o == expected;
  };
  EXPECT_TRUE(in_child([&] { return same() && same() && in_child([&] { return same(); }); }));
  EXPECT_TRUE(in_child([&] {
    sale_plan_destroy(plan);
    sale_estimator_destroy(layer);  // its threads are the parent's, and never ran here
    if (sale_estimator_create(&g.layer, &layer) != SALE_OK || g.make_plan(layer, &plan) != SALE_OK) return false;
    return same();
  }));
  EXPECT_TRUE(same());

  // Forked while others compute, one child after the other: whatever they hold at that moment is not waited for.
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (int t = 0; t < 2 * SALE_HEAP_FORKS; ++t)
    busy.emplace_back([&] {
      while (!stop) {
        Output o(g);
        run_into(g, plan, layer, nullptr, o);
      }
    });
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(in_child(same)) << i;
  stop = true;
  for (std::thread& t : busy) t.join();
  sale_plan_destroy(plan);
  sale_estimator_destroy(layer);
}

// What was made of a thing keeps what it needs of it.
TEST(Threads, BlocksOutliveTheirPlan) {
  Good g;
  sale_plan* plan = nullptr;
  ASSERT_EQ(g.make_plan(g.estimator(), &plan), SALE_OK);
  sale_blocks* blocks = g.blocks(plan);
  sale_plan_destroy(plan);
  sale_row_counts counts{};
  EXPECT_EQ(sale_blocks_row(blocks, {1, 3, 1}, nullptr, 0, &counts), SALE_OK);
  EXPECT_EQ(counts.kept, 5);
}

TEST(Threads, PlansAndIndexesOutliveTheirEstimator) {
  Good g;
  Output expected(g), out(g);
  const sale_estimator* kept = g.estimator();
  ASSERT_EQ(run_into(g, g.plan(kept), kept, nullptr, expected), SALE_OK);
  sale_estimator* gone = nullptr;
  ASSERT_EQ(sale_estimator_create(&g.layer, &gone), SALE_OK);
  sale_plan* plan = nullptr;
  ASSERT_EQ(g.make_plan(gone, &plan, true), SALE_OK);
  sale_index* indexes[2]{};
  for (int64_t b = 0; b < 2; ++b) {
    const sale_index_options o = index_options(150);
    ASSERT_EQ(sale_index_create(gone, &o, &indexes[b]), SALE_OK);
  }
  sale_estimator_destroy(gone);
  for (int64_t b = 0; b < 2; ++b)
    EXPECT_EQ(sale_index_update(indexes[b], g.in->keys(b), g.problem.k, 150, nullptr, nullptr), SALE_OK);
  EXPECT_EQ(run_into(g, plan, kept, indexes, out), SALE_OK) << sale_last_error();
  EXPECT_TRUE(out == expected);
  sale_plan_destroy(plan);
  for (sale_index* i : indexes) sale_index_destroy(i);
}

}  // namespace
}  // namespace sale_contract
