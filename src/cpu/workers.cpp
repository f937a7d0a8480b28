#include "cpu/workers.hpp"

#include "core/machine.hpp"
#include "cpu/thread_pool.hpp"

namespace sale {
namespace {

class Callers : public Workers {
public:
  Callers(sale_parallel_for parallel_for, void* context, int threads)
      : parallel_for_(parallel_for), context_(context), threads_(threads) {}

  using Workers::run;
  int threads() const override { return threads_; }
  void run(int64_t items, Body body, void* context) override {
    if (items <= 0) return;
    Items all{body, context};
    parallel_for_(context_, items, &one, &all);
  }

private:
  struct Items {
    Body body;
    void* context;
  };
  static void one(void* data, int64_t i, int32_t thread) {
    const Items& all = *static_cast<const Items*>(data);
    all.body(all.context, i, thread);
  }

  sale_parallel_for parallel_for_;
  void* context_;
  int threads_;
};

}  // namespace

std::shared_ptr<Workers> workers_of(const sale_layer& layer) {
  if (layer.parallel_for != nullptr)
    return std::make_shared<Callers>(layer.parallel_for, layer.parallel_context, layer.threads);
  return shared_pool(layer.threads != 0 ? layer.threads : machine().cpus);
}

}  // namespace sale
