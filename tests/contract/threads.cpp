// One plan, many threads, a workspace each: the same bits for all.
#include <atomic>
#include <cstdlib>
#include <thread>

#include "contract.hpp"

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
