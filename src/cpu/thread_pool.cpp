#include "cpu/thread_pool.hpp"

#include <map>

namespace sale {

ThreadPool::ThreadPool(int threads) {
  try {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& w : workers_) w.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadPool::run(int64_t items, Body body, void* context) {
  std::unique_lock turn(busy_, std::try_to_lock);
  if (!turn.owns_lock() || workers_.empty() || items <= 1) {
    for (int64_t i = 0; i < items; ++i) body(context, i, 0);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    body_ = body;
    context_ = context;
    items_ = items;
    next_.store(0, std::memory_order_relaxed);
    running_ = static_cast<int>(workers_.size());
    ++round_;
  }
  wake_.notify_all();
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < items;) body(context, i, 0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return running_ == 0; });
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    Body body;
    void* context;
    int64_t items;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
      body = body_;
      context = context_;
      items = items_;
    }
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < items;) body(context, i, thread);
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) done_.notify_one();
  }
}

std::shared_ptr<ThreadPool> shared_pool(int threads) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<ThreadPool>> pools;
  const std::lock_guard lock(mutex);
  auto& slot = pools[threads];
  auto pool = slot.lock();
  if (!pool) slot = pool = std::make_shared<ThreadPool>(threads);
  return pool;
}

}  // namespace sale
