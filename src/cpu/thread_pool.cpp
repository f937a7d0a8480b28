#include "cpu/thread_pool.hpp"

#include <pthread.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace sale {
namespace {

// Forks between the first process that used the library and this one. The mutex is held across a fork, so that the
// child finds it free, and what it guards whole.
std::atomic<int> forks{0};
std::mutex fork_mutex;

void watch_forks() {
  static const int error = pthread_atfork([] { fork_mutex.lock(); }, [] { fork_mutex.unlock(); },
                                          [] {
                                            ++forks;
                                            fork_mutex.unlock();
                                          });
  if (error != 0) throw std::bad_alloc();
}

}  // namespace

class ThreadPool::Team {
public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  bool is_here() const { return forks_ == forks.load(std::memory_order_relaxed); }
  void run(int64_t items, Body body, void* context);

private:
  void work(int thread);
  void stop();

  const int forks_ = forks.load(std::memory_order_relaxed);
  std::mutex busy_;   // held by the caller whose items are being done
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_, done_;
  uint64_t round_ = 0;
  int running_ = 0;
  bool stop_ = false;
  Body body_ = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0;
  std::atomic<int64_t> next_{0};
  std::vector<std::thread> workers_;
};

ThreadPool::Team::Team(int threads) {
  try {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::Team::~Team() { stop(); }

void ThreadPool::Team::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadPool::Team::run(int64_t items, Body body, void* context) {
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

void ThreadPool::Team::work(int thread) {
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

ThreadPool::ThreadPool(int threads) : threads_(threads), team_(nullptr) {
  watch_forks();
  team_ = new Team(threads);
}

// What a parent's threads were waiting for can neither be joined nor destroyed in a child: that memory is left alone.
ThreadPool::~ThreadPool() {
  if (const Team* t = team_; t->is_here()) delete t;
}

ThreadPool::Team& ThreadPool::team() {
  Team* t = team_.load(std::memory_order_acquire);
  if (t->is_here()) return *t;
  const std::lock_guard lock(fork_mutex);
  t = team_.load(std::memory_order_acquire);
  if (!t->is_here()) team_.store(t = new Team(threads_), std::memory_order_release);
  return *t;
}

void ThreadPool::run(int64_t items, Body body, void* context) { team().run(items, body, context); }

std::shared_ptr<ThreadPool> shared_pool(int threads) {
  static std::map<int, std::weak_ptr<ThreadPool>> pools;
  const std::lock_guard lock(fork_mutex);
  auto& slot = pools[threads];
  auto pool = slot.lock();
  if (!pool) slot = pool = std::make_shared<ThreadPool>(threads);
  return pool;
}

}  // namespace sale
