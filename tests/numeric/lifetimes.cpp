// Layers, steps and calls: what is shared between them changes no bit of what each on its own gives.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "case/random.hpp"
#include "harness.hpp"

namespace sale_test {
namespace {

using sale_case::Random;

void unchanged(Case&) {}

// ---- one plan, many layers -----------------------------------------------------------------------------------------

// INT8, INT4, a projection, other thresholds, other regions, and a layer of dense heads.
TEST(Lifetimes, OnePlanServesLayersOfEveryForm) {
  on_random_cases(400'000, 40, unchanged, [](Instance& in, const std::string& backend) {
    const auto projection = sale_case::random_projections(7, in.c.kv_heads, in.c.head_dim, 16);
    const float tau = 0.03f, zero = 0;
    std::vector<sale_layer> layers(6, with_backend(in.layer, backend));
    for (sale_layer& l : layers)
      l.thresholds = &tau, l.n_thresholds = 1, l.rank = 0, l.q_projection = l.k_projection = nullptr;
    layers[0] = with_backend(in.layer, backend);
    layers[1].format = SALE_INT4;
    layers[2].format = SALE_INT8;
    layers[3].format = SALE_INT8, layers[3].sink = 256, layers[3].local = 1024;
    layers[4].thresholds = &zero;
    if (in.c.head_dim > 16) layers[5].rank = 16, layers[5].q_projection = layers[5].k_projection = projection.data();
    std::vector<Estimator> estimators;
    std::vector<const sale_estimator*> handles;
    for (const sale_layer& l : layers) {
      estimators.push_back(make_estimator(l));
      handles.push_back(estimators.back().get());
    }
    sale_plan* raw = nullptr;
    ok(sale_plan_create(&in.problem, &in.options, handles.data(), static_cast<int64_t>(handles.size()), &raw),
       "sale_plan_create");
    const Plan plan(raw);
    const sale_workspace needs = workspace_of(plan);
    const sale_case::Memory workspace = make_workspace(plan);
    size_t most = 0;
    sale_call call = in.call();
    call.workspace = workspace.begin(), call.workspace_bytes = workspace.size();
    for (size_t i = 0; i < layers.size(); ++i) {
      in.clear_outputs();
      const Step alone(in.problem, layers[i], in.options);
      most = std::max(most, workspace_of(alone.plan).total);
      alone.run(in.call());
      const auto expected = outputs(in);
      in.clear_outputs();
      ok(sale_run(plan.get(), handles[i], &call), "sale_run");
      expect(outputs(in) == expected,
             backend + ": layer " + std::to_string(i) + " gives other bits under a shared plan");
      expect(in.outputs_intact(), "sale_run wrote outside out's or lse's rows");
    }
    expect(needs.total == most, backend + ": the workspace is not the largest layer's");
  });
}

// ---- a call's own ---------------------------------------------------------------------------------------------------

// Strides given with a call are as good as a plan's: the plan here has those of other tensors.
TEST(Lifetimes, StridesOfACall) {
  on_random_cases(
      410'000, 60,
      [](Case& c) { c.layout = c.layout == sale_case::Layout::packed ? sale_case::Layout::padded : c.layout; },
      [](Instance& in, const std::string& backend) {
        in.clear_outputs();
        const sale_layer layer = with_backend(in.layer, backend);
        const Step own(in.problem, layer, in.options);
        own.run(in.call());
        const auto expected = outputs(in);
        const sale_problem plain = [&] {
          sale_problem p = sale_problem_init(in.c.q_heads, in.c.kv_heads, in.c.head_dim, in.c.dtype, in.longest_q(),
                                             in.problem.k_len);
          sale_problem q = in.problem;
          q.q = p.q, q.k = p.k, q.v = p.v, q.out = p.out;
          return q;
        }();
        const Step other(plain, layer, in.options);
        sale_call call = in.call();
        call.q_strides = &in.problem.q, call.k_strides = &in.problem.k;
        call.v_strides = &in.problem.v, call.out_strides = &in.problem.out;
        in.clear_outputs();
        other.run(call);
        expect(outputs(in) == expected, backend + ": strides of a call give other bits than a plan's");
        const Blocks blocks = make_blocks(other.plan);
        in.clear_outputs();
        other.select(call, blocks);
        other.attend(call, blocks);
        expect(outputs(in) == expected, backend + ": select and attend with strides of a call give other bits");
      });
}

TEST(Lifetimes, PreparedCalls) {
  on_random_cases(420'000, 30, unchanged, [](Instance& in, const std::string& backend) {
    const Step step(in.problem, with_backend(in.layer, backend), in.options);
    in.clear_outputs();
    step.run(in.call());
    const auto expected = outputs(in);
    ok(sale_plan_prepare(step.plan.get(), step.workspace.begin(), step.workspace.size(), nullptr), "sale_plan_prepare");
    sale_call call = in.call();
    call.prepared = 1;
    for (int i = 0; i < 3; ++i) {
      in.clear_outputs();
      step.run(call);
      expect(outputs(in) == expected, backend + ": prepared call " + std::to_string(i) + " gives other bits");
    }
  });
}

// ---- fixed smoothing ------------------------------------------------------------------------------------------------

TEST(Smoothing, OfTheLayerAgreesWithTheOracle) {
  Tally total;
  const std::string failures = in_parallel(
      150,
      [](int64_t i) {
        Case c = sale_case::random_case(440'000 + static_cast<uint64_t>(i), {1500, 12'000'000});
        regular(c);
        return c;
      },
      [](const Case& c) {
        Instance in(c);
        const std::vector<float> smoothing = give_smoothing(in);
        return check_instance(in);
      },
      total);
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_LT(total.kept, total.visible);
}

// With it a block's codes are a function of its keys: any split of the updates, any beginning, in the caller's memory
// or the library's.
TEST(Smoothing, AnySplitOfUpdatesGivesTheSameCodes) {
  on_random_cases(450'000, 60, regular, [](Instance& in, const std::string& backend) {
    const std::vector<float> smoothing = give_smoothing(in);
    const Estimator estimator = make_estimator(with_backend(in.layer, backend));
    const int64_t keys = in.sequences[0].k_len;
    const auto update = [&](const Index& index, int64_t n) {
      ok(sale_index_update(index.get(), in.keys(0), in.problem.k, n, nullptr, nullptr), "sale_index_update");
    };
    const Index whole = make_index(estimator, keys);
    update(whole, keys);

    const sale_case::Memory memory(sale_index_memory(estimator.get(), keys), 0xcb, 64);
    sale_index_options o{};
    o.struct_size = sizeof o;
    o.capacity = keys;
    o.memory = memory.begin(), o.memory_bytes = memory.size();
    sale_index* raw = nullptr;
    ok(sale_index_create(estimator.get(), &o, &raw), "sale_index_create");
    const Index split(raw);
    expect(sale_index_bytes(raw) == memory.size(), "sale_index_bytes is not sale_index_memory");
    Random random(in.c.seed);
    for (int64_t n = 0; n < keys;) {
      n = std::min(keys, n + random.between(1, 120));
      update(split, n);
      if (!random.one_in(5)) continue;
      n = random.between(0, n);
      ok(sale_index_truncate(split.get(), n), "sale_index_truncate");
    }
    const int64_t code_bytes = keys * row_bytes(in.c), scale_bytes = (keys + 31) / 32 * block_scales(in.c) * 4;
    for (int32_t h = 0; h < in.c.kv_heads; ++h) {
      const int8_t *a, *b;
      const float *sa, *sb, *va, *vb;
      ok(sale_index_codes(whole.get(), h, &a, &sa, &va), "sale_index_codes");
      ok(sale_index_codes(split.get(), h, &b, &sb, &vb), "sale_index_codes");
      expect(std::memcmp(a, b, static_cast<size_t>(code_bytes)) == 0, backend + ": codes differ");
      expect(std::memcmp(sa, sb, static_cast<size_t>(scale_bytes)) == 0, backend + ": scales differ");
      const size_t bytes = static_cast<size_t>(in.c.head_dim) * 4;
      expect(std::memcmp(va, smoothing.data() + h * in.c.head_dim, bytes) == 0 && std::memcmp(vb, va, bytes) == 0,
             backend + ": the smoothing vector is not the layer's");
    }
    expect(memory.untouched_outside({{0, memory.size()}}), backend + ": an index wrote outside the caller's memory");
  });
}

// ---- the caller's threads -------------------------------------------------------------------------------------------

// Does what sale_parallel_for says, on threads of its own, and keeps an eye on what it is asked.
struct Callers {
  explicit Callers(int32_t n) : threads(n) {}
  int32_t threads;
  std::atomic<int64_t> calls{0}, items_done{0};
  std::atomic<bool> good{true};

  static void each(void* context, int64_t items, void (*item)(void*, int64_t, int32_t), void* data) {
    auto& self = *static_cast<Callers*>(context);
    ++self.calls;
    if (items < 0) self.good = false;
    std::atomic<int64_t> next{0};
    const auto work = [&](int32_t thread) {
      for (int64_t i; (i = next++) < items; ++self.items_done) item(data, i, thread);
    };
    std::vector<std::thread> others;
    for (int32_t t = 1; t < self.threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& t : others) t.join();
  }
};

TEST(ParallelFor, GivesTheSameBits) {
  on_random_cases(460'000, 30, unchanged, [](Instance& in, const std::string& backend) {
    const sale_layer kept = in.layer;
    const Result own = run(in, backend);
    for (const int32_t n : {1, 3}) {
      Callers callers(n);
      in.layer = kept;
      in.layer.parallel_for = &Callers::each;
      in.layer.parallel_context = &callers;
      in.layer.threads = n;
      const Result theirs = run(in, backend);
      in.layer = kept;
      expect(theirs == own, backend + ": " + std::to_string(n) + " threads of the caller's give other bits");
      expect(callers.good && callers.calls > 0 && callers.items_done >= in.c.kv_heads,
             backend + ": the caller's threads were not asked");
    }
  });
}

}  // namespace
}  // namespace sale_test
