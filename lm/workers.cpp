#include "lm/workers.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace sale::lm {

void for_each_index(int threads, int64_t count, const std::function<void(int64_t, int)>& work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr first;
  std::mutex lock;
  const auto run = [&](int worker) {
    try {
      for (int64_t i = next++; i < count; i = next++) work(i, worker);
    } catch (...) {
      next = count;
      const std::lock_guard guard(lock);
      if (!first) first = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    const auto wanted = static_cast<int>(std::min<int64_t>(threads, count));
    for (int w = 1; w < wanted; ++w) others.emplace_back(run, w);
    run(0);
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace sale::lm
