// Random problems on any number of threads, several problems at a time: no bit depends on the number, nor on the steps in
// which an index grew. Against itself alone, without the oracle: small enough for ThreadSanitizer, which looks here for
// what is between the threads of the pool, of the walks and of the index.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>

#include "case/random.hpp"
#include "contract.hpp"

namespace sale_contract {
namespace {

using sale_case::Instance;

template <class T, void (*destroy)(T*)>
struct Owner {
  T* p = nullptr;
  Owner() = default;
  Owner(Owner&& o) noexcept : p(std::exchange(o.p, nullptr)) {}
  Owner& operator=(Owner&&) = delete;
  ~Owner() { destroy(p); }
};
using Plan = Owner<sale_plan, sale_plan_destroy>;
using Index = Owner<sale_index, sale_index_destroy>;

// Of a sequence's keys: at once, or, with the same smoothing, in steps of any size, some of them undone on the way.
Index index_of(const Instance& in, int64_t b, const Index* smoothing, uint64_t seed) {
  Index made;
  const int64_t keys = in.sequences[static_cast<size_t>(b)].k_len;
  const auto update = [&](int64_t to) {
    return sale_index_update(made.p, in.keys(b), in.problem.k, to, nullptr, nullptr);
  };
  must(sale_index_create(&in.problem, &in.options, keys, &made.p));
  if (smoothing == nullptr) {
    must(update(keys));
    return made;
  }
  std::vector<float> vectors;
  for (int32_t h = 0; h < in.c.kv_heads; ++h) {
    const int8_t* codes;
    const float *scales, *vector;
    must(sale_index_codes(smoothing->p, h, &codes, &scales, &vector));
    vectors.insert(vectors.end(), vector, vector + in.c.head_dim);
  }
  must(sale_index_set_smoothing(made.p, vectors.data()));
  sale_case::Random random(seed);
  for (int64_t length = 0; length < keys;) {
    length = std::min(keys, length + random.between(1, 150));
    must(update(length));
    if (random.one_in(4)) must(sale_index_truncate(made.p, length -= random.between(0, std::min<int64_t>(length, 40))));
  }
  return made;
}

struct Bits {
  std::vector<std::byte> out, lse;
  bool operator==(const Bits&) const = default;
};

Bits run(Instance& in, const std::vector<Index>& indexes, int32_t threads) {
  in.options.threads = threads;
  Plan plan;
  must(sale_plan_create(&in.problem, &in.options, 1, &plan.p));
  std::vector<const sale_index*> list;
  for (const Index& i : indexes) list.push_back(i.p);
  const size_t bytes = sale_plan_workspace(plan.p).total;
  const sale_case::Memory space(bytes, 0, 64);
  in.clear_outputs();
  must(sale_run(plan.p, in.q.data(), in.k.data(), in.v.data(), in.out.data(), reinterpret_cast<float*>(in.lse->begin()),
                list.data(), space.begin(), bytes, nullptr, nullptr));
  const auto copy = [](const sale_case::Memory& m) { return std::vector<std::byte>(m.begin(), m.begin() + m.size()); };
  return {copy(*in.out.memory), copy(*in.lse)};
}

// Empty, or what went wrong. `ran`: on how many backends.
std::string check(uint64_t seed, std::atomic<int>& ran) {
  sale_case::Case c = sale_case::random_case(seed, {700, 4'000'000});
  c.page_size = 0;
  for (int32_t backend = 0; backend < sale_backend_count(); ++backend) {
    c.backend = sale_backend_name(backend);
    Instance in(c);
    if (*sale_backend_why_not(backend) != '\0' ||
        *sale_backend_why_not_problem(backend, &in.problem, &in.options) != '\0')
      continue;
    ++ran;
    std::vector<Index> whole, grown;
    in.options.threads = 1;
    for (int64_t b = 0; b < c.batch; ++b) whole.push_back(index_of(in, b, nullptr, seed));
    const Bits expected = run(in, whole, 1);
    for (int32_t threads : {2, 3, 7}) {
      in.options.threads = threads;
      grown.clear();
      for (int64_t b = 0; b < c.batch; ++b) grown.push_back(index_of(in, b, &whole[static_cast<size_t>(b)], seed + 1));
      if (!(run(in, grown, threads) == expected))
        return std::to_string(threads) + " threads give other bits than one: " + sale_case::print(c) + "\n";
    }
  }
  return {};
}

TEST(Threads, RandomProblems) {
  const char* given = std::getenv("SALE_CASES");
  const uint64_t cases = given != nullptr ? std::strtoull(given, nullptr, 10) : 40;
  std::atomic<uint64_t> next{0};
  std::atomic<int> ran{0};
  std::mutex mutex;
  std::string failures;
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t)
    callers.emplace_back([&] {
      for (uint64_t i; (i = next++) < cases;) {
        const std::string failure = check(300'000 + i, ran);
        const std::lock_guard lock(mutex);
        failures += failure;
      }
    });
  for (std::thread& t : callers) t.join();
  EXPECT_EQ(failures, "");
  EXPECT_GE(ran, static_cast<int>(cases));  // portable takes them all
}

}  // namespace
}  // namespace sale_contract
