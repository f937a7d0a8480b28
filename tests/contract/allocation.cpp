// Memory: none taken by the calls, and every failure to get some while making things leaves nothing behind.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "contract.hpp"
#include "heap.hpp"

namespace sale_contract {
namespace {

#define NEEDS_WATCHED_HEAP \
  if (!heap_is_watched()) GTEST_SKIP() << "the sanitizer brings its own heap"

TEST(Allocation, TheWatchSeesAllocations) {
  NEEDS_WATCHED_HEAP;
  const int64_t before = heap_calls();
  const std::unique_ptr<std::vector<int>> v(new std::vector<int>(100));
  EXPECT_GE(heap_calls(), before + 2);
  fail_allocation(1);
  EXPECT_THROW(v->resize(100000), std::bad_alloc);
  EXPECT_TRUE(allocation_failed());
  fail_allocation(0);
}

TEST(Allocation, NoneInTheCalls) {
  NEEDS_WATCHED_HEAP;
  for (const std::string text : {"", "estimator=int4", "estimator=int8:32", "type=f16 compute=int8", "type=f32"}) {
    for (int32_t i = 0; i < sale_backend_count(); ++i) {
      if (*sale_backend_why_not(i) != '\0' || facts_of(i).on_device != 0) continue;
      for (const bool with_index : {false, true}) {
        Good g(text);
        g.layer.backend = sale_backend_name(i);
        g.options.audit = 7;
        Arguments a(g, with_index);
        std::vector<sale_head_audit> audits(8);
        a.stats.audits = audits.data();
        ASSERT_EQ(a.run(), SALE_OK) << sale_last_error();
        const int64_t before = heap_calls();
        const sale_status run = a.run(), select = a.select(), attend = a.attend();
        const int64_t after = heap_calls();
        EXPECT_EQ(run, SALE_OK);
        EXPECT_EQ(select, SALE_OK);
        EXPECT_EQ(attend, SALE_OK);
        EXPECT_EQ(after, before) << sale_backend_name(i) << " " << text << ": the calls allocate";
      }
    }
  }
}

// The promise of the README: the key index takes at most 0.35 of the bytes of K and V, the selection one bit for each
// block that a tile of queries can see. Exactly, the bits of a tile are rounded up to words of 64.
TEST(Allocation, WorkspaceIsWithinItsFigures) {
  const char* const shapes[] = {"q=64k k=64k", "q=16k k=128k", "q=1024 k=1m qheads=32 kvheads=8", "q=4k k=4k batch=3"};
  const char* const estimators[] = {"int8", "int4", "int8:16", "int8:32", "int8:64"};
  for (const char* shape : shapes)
    for (const char* type : {"bf16", "f16", "f32"})
      for (const int32_t d : {64, 128})
        for (const std::string estimator : estimators) {
          if (estimator == "int8:64" && d == 64) continue;  // all coordinates
          const std::string line =
              std::string(shape) + " d=" + std::to_string(d) + " type=" + type + " estimator=" + estimator;
          const sale_case::Case c = sale_case::parse(line);
          sale_problem p = sale_problem_init(c.q_heads, c.kv_heads, c.head_dim, c.dtype, c.q_len, c.k_len);
          p.batch = c.batch;
          sale_layer l = sale_layer_init(c.q_heads, c.kv_heads, c.head_dim, c.dtype);
          l.format = c.format, l.rank = c.rank, l.threads = 1;
          const std::vector<float> projection(static_cast<size_t>(c.kv_heads * c.head_dim * c.rank));
          if (c.rank > 0) l.q_projection = l.k_projection = projection.data();
          sale_estimator* made = nullptr;
          ASSERT_EQ(sale_estimator_create(&l, &made), SALE_OK) << line << ": " << sale_last_error();
          const sale_estimator* const one = made;
          const sale_options o = sale_options_init();
          sale_plan* plan = nullptr;
          ASSERT_EQ(sale_plan_create(&p, &o, &one, 1, &plan), SALE_OK) << line << ": " << sale_last_error();
          const sale_workspace w = workspace_of(plan);
          const double kv =
              2.0 * c.batch * c.kv_heads * static_cast<double>(c.k_len) * d * (c.dtype == SALE_F32 ? 4 : 2);
          // INT4's q_mean . k, a number per key and query head, is counted as the keys' too.
          const double bias = c.format == SALE_INT4 ? 4.0 * c.batch * c.q_heads * static_cast<double>(c.k_len) : 0;
          EXPECT_LE(static_cast<double>(w.key_index) + bias, 0.35 * kv) << line;
          int64_t words = 0;
          for (int64_t row = 0; row < c.q_len; row += SALE_Q_BLOCK) {
            const int64_t sees = std::min(c.k_len, row + SALE_Q_BLOCK + c.k_len - c.q_len);
            words += ((sees + SALE_K_BLOCK - 1) / SALE_K_BLOCK + 63) / 64;
          }
          EXPECT_EQ(static_cast<int64_t>(w.selection), (8 * words * c.q_heads * c.batch + 63) / 64 * 64) << line;
          sale_plan_destroy(plan);

          // An index that lives beside the cache is held to the same figure.
          sale_index* index = nullptr;
          const int64_t keys = std::min<int64_t>(c.k_len, 8192);
          const sale_index_options room = index_options(keys);
          ASSERT_EQ(sale_index_create(made, &room, &index), SALE_OK) << line << ": " << sale_last_error();
          EXPECT_EQ(sale_index_bytes(index), sale_index_memory(made, keys)) << line;
          EXPECT_LE(static_cast<double>(sale_index_bytes(index)),
                    0.35 * kv / c.batch * static_cast<double>(keys) / static_cast<double>(c.k_len))
              << line;
          sale_index_destroy(index);
          sale_estimator_destroy(made);
        }
}

// Fails the 1st, 2nd, 3rd ... allocation of `make` until one run meets no failure.
void fail_each(const char* what, const std::function<sale_status()>& make, const std::function<void()>& unmake) {
  ASSERT_EQ(make(), SALE_OK) << sale_last_error();
  unmake();  // whatever is made once and kept is there now
  int64_t n = 1;
  for (; n < 10'000; ++n) {
    const int64_t before = heap_live();
    fail_allocation(n);
    const sale_status status = make();
    const bool hit = allocation_failed();
    fail_allocation(0);
    if (!hit) {
      EXPECT_EQ(status, SALE_OK);
      unmake();
      break;
    }
    // Some failures are survived (a stable sort without its buffer); the others have one name.
    if (status == SALE_OK) {
      unmake();
    } else {
      EXPECT_EQ(status, SALE_OUT_OF_MEMORY) << what << ": allocation " << n << ": " << sale_last_error();
      EXPECT_STRNE(sale_last_error(), "");
    }
    EXPECT_EQ(heap_live(), before) << what << ": allocation " << n << " failed and something leaks";
  }
  EXPECT_GT(n, 1) << what << " allocates nothing?";
  std::printf("%s: %lld allocations, each failed once\n", what, static_cast<long long>(n - 1));
}

TEST(Allocation, EveryFailureWhileMakingAnEstimator) {
  NEEDS_WATCHED_HEAP;
  const struct {
    const char* line;
    int32_t threads;
  } each[] = {{"", 1}, {"estimator=int8:32", 1}, {"estimator=int4", 1}, {"", 3}};
  for (const auto& [line, threads] : each) {
    Good g(line);
    g.layer.threads = threads;
    const std::vector<float> smoothing(128, 0.5f);
    g.layer.smoothing = smoothing.data();
    sale_estimator* const sentinel = reinterpret_cast<sale_estimator*>(0x40);
    sale_estimator* estimator = sentinel;
    fail_each((std::string("estimator ") + line + (threads > 1 ? " with threads" : "")).c_str(),
              [&] {
                estimator = sentinel;
                const sale_status s = sale_estimator_create(&g.layer, &estimator);
                if (s != SALE_OK && estimator != sentinel) ADD_FAILURE() << "the output was touched";
                return s;
              },
              [&] { sale_estimator_destroy(estimator); });
  }
}

TEST(Allocation, EveryFailureWhileMakingAPlan) {
  NEEDS_WATCHED_HEAP;
  for (const char* line : {"", "estimator=int8:32", "estimator=int4"})
    for (const bool with_index : {false, true}) {
      Good g(line);
      const sale_estimator* estimator = g.estimator();
      sale_plan* const sentinel = reinterpret_cast<sale_plan*>(0x40);
      sale_plan* plan = sentinel;
      fail_each((std::string("plan ") + line).c_str(),
                [&] {
                  plan = sentinel;
                  const sale_status s = g.make_plan(estimator, &plan, with_index);
                  if (s != SALE_OK && plan != sentinel) ADD_FAILURE() << "the output was touched";
                  return s;
                },
                [&] { sale_plan_destroy(plan); });
    }
}

TEST(Allocation, EveryFailureWhileMakingAnIndex) {
  NEEDS_WATCHED_HEAP;
  Good g("estimator=int8:32");
  const sale_estimator* estimator = g.estimator();
  const sale_index_options options = index_options(1000);
  sale_index* index = nullptr;
  fail_each(
      "index", [&] { return sale_index_create(estimator, &options, &index); }, [&] { sale_index_destroy(index); });
}

TEST(Allocation, EveryFailureWhileMakingBlocks) {
  NEEDS_WATCHED_HEAP;
  Good g;
  sale_plan* plan = g.plan();
  sale_blocks* blocks = nullptr;
  fail_each("blocks", [&] { return sale_blocks_create(plan, &blocks); }, [&] { sale_blocks_destroy(blocks); });
}

// Refusals may allocate for their message; when that fails too, the status is still the truth.
TEST(Allocation, EveryFailureWhileRefusing) {
  NEEDS_WATCHED_HEAP;
  Good g;
  const sale_estimator* estimator = g.estimator();
  g.problem.head_dim = 24;
  sale_plan* plan = nullptr;
  for (int64_t n = 1; n < 1000; ++n) {
    const int64_t before = heap_live();
    fail_allocation(n);
    const sale_status status = g.make_plan(estimator, &plan);
    const bool hit = allocation_failed();
    fail_allocation(0);
    EXPECT_TRUE(status == SALE_INVALID_ARGUMENT || status == SALE_OUT_OF_MEMORY) << sale_status_name(status);
    EXPECT_EQ(heap_live(), before);
    EXPECT_EQ(plan, nullptr);
    if (!hit) break;
  }
}

// Sizes that pass every single limit and together ask for more than there is. In a process of its own with 3 GB of
// address space: the answer must be a status, soon, and neither a signal nor an endless computation.
int status_within_3_gb(const Good& g) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit limit{rlim_t{3} << 30, rlim_t{3} << 30};
    setrlimit(RLIMIT_AS, &limit);
    alarm(60);
    sale_estimator* estimator = nullptr;
    sale_plan* plan = nullptr;
    sale_status status = sale_estimator_create(&g.layer, &estimator);
    if (status == SALE_OK) status = g.make_plan(estimator, &plan);
    const size_t total = status == SALE_OK ? workspace_of(plan).total : 0;
    // A size that wrapped around is the worst of all answers: 2^31 rows need 2^31 keys' index, and more.
    _exit(status == SALE_OK && total < (size_t{1} << 34) ? 100 : static_cast<int>(status));
  }
  int how = 0;
  waitpid(child, &how, 0);
  return WIFEXITED(how) ? WEXITSTATUS(how) : -WTERMSIG(how);
}

TEST(Allocation, SizesBeyondAnyMemory) {
  if (!heap_is_watched()) GTEST_SKIP() << "sanitizers need more address space than this test allows";
  const int64_t most = int64_t{1} << 31;
  const struct {
    const char* what;
    int32_t batch, heads;
    int64_t tokens;
    int32_t d;
  } shapes[] = {{"2^31 tokens", 1, 1, most, 64},
                {"2^31 tokens, 64 heads", 1, 64, most, 128},
                {"65536 heads", 1, 65536, 1 << 20, 64},
                {"2^31 tokens, 1024 heads, batch 16", 16, 1024, most, 16},
                {"65536 sequences", 65536, 16, 1 << 20, 64}};
  for (const auto& s : shapes) {
    Good g;
    g.layer.threads = 1;
    g.problem.batch = s.batch;
    g.heads(s.heads, s.heads, s.d);
    g.problem.q_len = g.problem.k_len = s.tokens;
    g.problem.q = g.problem.k = g.problem.v = g.problem.out = {s.d * s.tokens * s.heads, s.d * s.tokens, s.d};
    for (const sale_format f : {SALE_INT8, SALE_INT4, SALE_FP4}) {
      g.layer.format = f;
      const int status = status_within_3_gb(g);
      EXPECT_TRUE(status == SALE_OK || status == SALE_INVALID_ARGUMENT || status == SALE_UNSUPPORTED ||
                  status == SALE_OUT_OF_MEMORY)
          << s.what << ", " << sale_format_name(f) << ": "
          << (status == 100 ? "a workspace size that wrapped around" : std::to_string(status));
    }
  }
}

}  // namespace
}  // namespace sale_contract
