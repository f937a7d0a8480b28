// One plan, many threads, a workspace each: the same bits for all.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "contract.hpp"

// TSan does not let a child of several threads start threads.
#if defined(__SANITIZE_THREAD__)
#define SALE_CAN_FORK 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SALE_CAN_FORK 0
#endif
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

sale_status run_into(const Good& g, const sale_plan* plan, const sale_index* const* indexes, Output& o) {
  const sale_case::Memory space(sale_plan_workspace(plan).total, 0, 64);
  return sale_run(plan, g.in->q.data(), g.in->k.data(), g.in->v.data(), o.out.data(), o.lse.data(), indexes,
                  space.begin(), space.size(), nullptr, nullptr);
}

void share(const Good& g, bool with_index) {
  const sale_plan* plan = g.plan(with_index);
  const std::vector<const sale_index*> list{g.index(0), g.index(1)};
  const sale_index* const* indexes = with_index ? list.data() : nullptr;
  Output expected(g);
  ASSERT_EQ(run_into(g, plan, indexes, expected), SALE_OK) << sale_last_error();
  std::atomic<int> different{0}, failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t)
    threads.emplace_back([&] {
      for (int i = runs(); i > 0; --i) {
        Output o(g);
        if (run_into(g, plan, indexes, o) != SALE_OK) ++failed;
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

// Plans come and go on many threads; their pool is shared and must outlive each.
TEST(Threads, PlansComeAndGo) {
  Good g;
  Output expected(g);
  ASSERT_EQ(run_into(g, g.plan(), nullptr, expected), SALE_OK);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        sale_options o = g.options;
        o.threads = 1 + (t + i) % 4;
        sale_plan* plan = nullptr;
        if (sale_plan_create(&g.problem, &o, 0, &plan) != SALE_OK) {
          ++wrong;
          continue;
        }
        Output out(g);
        if (run_into(g, plan, nullptr, out) != SALE_OK || !(out == expected)) ++wrong;
        sale_plan_destroy(plan);
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Threads, MessagesBelongToTheirThread) {
  Good g;
  g.problem.head_dim = 24;
  sale_plan* plan = nullptr;
  ASSERT_EQ(sale_plan_create(&g.problem, &g.options, 0, &plan), SALE_INVALID_ARGUMENT);
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
  g.options.threads = 3;
  sale_plan* plan = nullptr;
  ASSERT_EQ(sale_plan_create(&g.problem, &g.options, 0, &plan), SALE_OK);
  Output expected(g);
  ASSERT_EQ(run_into(g, plan, nullptr, expected), SALE_OK) << sale_last_error();
  const auto same = [&] {
    Output o(g);
    return run_into(g, plan, nullptr, o) == SALE_OK && o == expected;
  };
  EXPECT_TRUE(in_child([&] { return same() && same() && in_child([&] { return same(); }); }));
  EXPECT_TRUE(in_child([&] {
    sale_plan_destroy(plan);  // its threads are the parent's, and never ran here
    if (sale_plan_create(&g.problem, &g.options, 0, &plan) != SALE_OK) return false;
    return same();
  }));
  EXPECT_TRUE(same());

  // Forked while others compute, one child after the other: whatever they hold at that moment is not waited for.
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (int t = 0; t < 2; ++t)
    busy.emplace_back([&] {
      while (!stop) {
        Output o(g);
        run_into(g, plan, nullptr, o);
      }
    });
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(in_child(same)) << i;
  stop = true;
  for (std::thread& t : busy) t.join();
  sale_plan_destroy(plan);
}

// Blocks and workspace sizes outlive the plan they came from.
TEST(Threads, BlocksOutliveTheirPlan) {
  Good g;
  sale_plan* plan = nullptr;
  ASSERT_EQ(sale_plan_create(&g.problem, &g.options, 0, &plan), SALE_OK);
  sale_blocks* blocks = g.blocks(plan);
  sale_plan_destroy(plan);
  int64_t kept = 0, visible = 0;
  EXPECT_EQ(sale_blocks_row(blocks, 1, 3, 1, nullptr, 0, &kept, &visible), SALE_OK);
  EXPECT_EQ(kept, 5);
}

}  // namespace
}  // namespace sale_contract
