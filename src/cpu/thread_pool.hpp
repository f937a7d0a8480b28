// A fixed set of threads that share out numbered items.
//
// Not OpenMP: the library must not bring a runtime into the process it is loaded into, and ThreadSanitizer must be able
// to see every synchronisation.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "cpu/workers.hpp"

namespace sale {

class ThreadPool : public Workers {
public:
  explicit ThreadPool(int threads);  // the caller of run is one of them
  ~ThreadPool() override;

  using Workers::run;
  int threads() const override { return threads_; }

  // Calls body(context, i, thread) for every i in [0, items), thread in [0, threads()). Items are taken in order, one
  // at a time. When another caller is using the pool, the calling thread does all items itself, as thread 0.
  //
  // A forked child has none of its parent's threads: its first run starts new ones, and throws what std::thread throws
  // when it cannot.
  void run(int64_t items, Body body, void* context) override;

private:
  class Team;  // the threads and what they share; of one process
  Team& team();

  const int threads_;
  std::atomic<Team*> team_;
};

// The process's pool of that many threads, shared by all layers that use it and gone with the last of them.
std::shared_ptr<ThreadPool> shared_pool(int threads);

}  // namespace sale
