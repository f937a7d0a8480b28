// Random problems on any number of threads, several problems at a time: no bit depends on the number, nor on the steps
// in which an index grew. Against itself alone, without the oracle: small enough for ThreadSanitizer, which looks here
// for what is between the threads of the pool, of the walks and of the index.
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
using Estimator = Owner<sale_estimator, sale_estimator_destroy>;
using Plan = Owner<sale_plan, sale_plan_destroy>;
using Index = Owner<sale_index, sale_index_destroy>;

// Of a sequence's keys: at once, or, with the same smoothing, in steps of any size, some of them undone on the way.
Index index_of(const Instance& in, int64_t b, const sale_layer& layer, uint64_t seed, bool in_steps) {
  Estimator estimator;
  must(sale_estimator_create(&layer, &estimator.p));
  Index made;
  const int64_t keys = in.sequences[static_cast<size_t>(b)].k_len;
  const auto update = [&](int64_t to) {
    return sale_index_update(made.p, in.keys(b), in.problem.k, to, nullptr, nullptr);
  };
  sale_index_options options{};
  options.struct_size = sizeof options;
  options.capacity = keys;
  must(sale_index_create(estimator.p, &options, &made.p));
  sale_case::Random random(seed);
  for (int64_t length = 0; length < keys;) {
    length = in_steps ? std::min(keys, length + random.between(1, 150)) : keys;
    must(update(length));
    if (in_steps && random.one_in(4))
      must(sale_index_truncate(made.p, length -= random.between(0, std::min<int64_t>(length, 40))));
  }
  return made;
}

struct Bits {
  std::vector<std::byte> out, lse;
  bool operator==(const Bits&) const = default;
};

Bits run(Instance& in, const std::vector<Index>& indexes, const sale_layer& layer) {
  Estimator estimator;
  must(sale_estimator_create(&layer, &estimator.p));
  sale_options options = in.options;
  options.with_index = 1;
  Plan plan;
  const sale_estimator* const one = estimator.p;
  must(sale_plan_create(&in.problem, &options, &one, 1, &plan.p));
  std::vector<const sale_index*> list;
  for (const Index& i : indexes) list.push_back(i.p);
  sale_workspace w{};
  w.struct_size = sizeof w;
  must(sale_plan_workspace(plan.p, &w));
  const sale_case::Memory space(w.total, 0, 64);
  in.clear_outputs();
  sale_call call = in.call();
  call.indexes = list.data();
  call.workspace = space.begin(), call.workspace_bytes = w.total;
  must(sale_run(plan.p, estimator.p, &call));
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
    // Vectors of the layer: codes are then those of the keys alone, however they came.
    sale_case::Random random(seed);
    std::vector<float> smoothing;
    for (int64_t i = 0; i < int64_t{c.kv_heads} * c.head_dim; ++i)
      smoothing.push_back(static_cast<float>(random.between(-1000, 1000)) / 1000);
    sale_layer layer = in.layer;
    layer.smoothing = smoothing.data();
    if (*sale_backend_why_not(backend) != '\0' ||
        *sale_backend_why_not_problem(backend, &in.problem, &layer, &in.options) != '\0')
      continue;
    ++ran;
    std::vector<Index> whole, grown;
    layer.threads = 1;
    for (int64_t b = 0; b < c.batch; ++b) whole.push_back(index_of(in, b, layer, seed, false));
    const Bits expected = run(in, whole, layer);
    for (int32_t threads : {2, 3, 7}) {
      layer.threads = threads;
      grown.clear();
      for (int64_t b = 0; b < c.batch; ++b) grown.push_back(index_of(in, b, layer, seed + 1, true));
      if (!(run(in, grown, layer) == expected))
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
