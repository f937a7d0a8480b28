// A fixed set of threads that share out numbered items.
//
// Not OpenMP: the library must not bring a runtime into the process it is loaded into, and ThreadSanitizer must be able
// to see every synchronisation.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/workers.hpp"

namespace sale {

class ThreadPool : public Workers {
public:
  explicit ThreadPool(int threads);  // the caller of run is one of them
  ~ThreadPool() override;

  using Workers::run;
  int threads() const override { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(context, i, thread) for every i in [0, items), thread in [0, threads()). Items are taken in order, one
  // at a time. When another caller is using the pool, the calling thread does all items itself, as thread 0.
  void run(int64_t items, Body body, void* context) override;

private:
  void work(int thread);

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

// The process's pool of that many threads, shared by all layers that use it and gone with the last of them.
std::shared_ptr<ThreadPool> shared_pool(int threads);

}  // namespace sale
