// Who does the numbered items of a stage: the library's threads, or the caller's.
#pragma once

#include <cstdint>
#include <memory>

#include "sale/sale.h"

namespace sale {

class Workers {
public:
  using Body = void (*)(void* context, int64_t item, int thread);
  virtual ~Workers() = default;
  Workers() = default;
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  virtual int threads() const = 0;
  // Calls body(context, i, thread) for every i in [0, items), thread in [0, threads()), no thread twice at a time.
  virtual void run(int64_t items, Body body, void* context) = 0;

  template <class F>
  void run(int64_t items, F&& f) {
    run(items, [](void* c, int64_t i, int t) { (*static_cast<F*>(c))(i, t); }, &f);
  }
};

// A layer's: its parallel_for, or the process's pool of as many threads.
std::shared_ptr<Workers> workers_of(const sale_layer& layer);

}  // namespace sale
