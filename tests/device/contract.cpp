// Refusals that leave everything as it was, memory, devices and offsets beyond 2^31 elements.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "device.hpp"

namespace sale_device {
namespace {

const char* const good = "batch=2 qheads=4 kvheads=2 q=300 k=500 d=128 densebelow=0 local=32 tau=0.02 estimator=fp8:28";

void refuse_plan(const char* what, sale_status status, const char* named, const std::function<void(Copy&)>& change) {
  Instance in(served_line(good));
  Copy copy(in);
  change(copy);
  sale_estimator* made = nullptr;
  sale_status got = sale_estimator_create(&copy.layer, &made);
  const Estimator layer(made);
  sale_plan* plan = nullptr;
  if (got == SALE_OK) {
    const sale_estimator* const one = layer.get();
    got = sale_plan_create(&copy.problem, &copy.options, &one, 1, &plan);
  }
  EXPECT_EQ(got, status) << what << ": " << sale_last_error();
  EXPECT_NE(std::string(sale_last_error()).find(named), std::string::npos) << what << ": " << sale_last_error();
  EXPECT_EQ(plan, nullptr) << what;
}

TEST(Refusals, OfPlans) {
  std::vector<float> projections(2 * 128 * 32, 0.1f);
  const auto unsupported = SALE_UNSUPPORTED, bad = SALE_INVALID_ARGUMENT;
  refuse_plan("host memory", unsupported, "host memory", [](Copy& c) { c.layer.device = SALE_HOST; });
  refuse_plan("a device that is not there", bad, "device", [](Copy& c) { c.layer.device = 1000; });
  refuse_plan("f32", unsupported, "dtype", [](Copy& c) { c.layer.dtype = SALE_F32; });
  const auto without_rank = [&](Copy& c, sale_format format) {
    c.layer.format = format;
    c.layer.rank = 0;
    c.layer.q_projection = c.layer.k_projection = nullptr;
  };
  if (tested().int4()) {
    refuse_plan("FP8", unsupported, "SALE_FP8", [&](Copy& c) { without_rank(c, SALE_FP8); });
  } else {
    refuse_plan("INT4", unsupported, "SALE_INT4", [&](Copy& c) { without_rank(c, SALE_INT4); });
    refuse_plan("INT8 with a projection", unsupported, "rank", [&](Copy& c) {
      c.layer.format = SALE_INT8;
      c.layer.rank = 32;
      c.layer.q_projection = c.layer.k_projection = projections.data();
    });
    refuse_plan("INT8 products", unsupported, "compute", [](Copy& c) { c.options.compute = SALE_COMPUTE_INT8; });
    refuse_plan("F16 products", unsupported, "compute", [](Copy& c) { c.options.compute = SALE_COMPUTE_F16; });
    refuse_plan("a stride for the copy engine", unsupported, "v strides",
                [](Copy& c) { c.problem.v.batch = int64_t{1} << 39; });
  }
  // Until these tests have passed with windows on a card.
  refuse_plan("a window for a backend that nobody named", unsupported, "window: ", [&](Copy& c) {
    without_rank(c, SALE_INT8);
    c.layer.backend = nullptr;
    c.problem.window = 100;
  });
  refuse_plan("compensate 2", bad, "compensate", [](Copy& c) { c.options.compensate = 2; });
  refuse_plan("a token stride", unsupported, "k strides", [](Copy& c) { c.problem.k.token += 4; });
  refuse_plan("a head stride", unsupported, "q strides", [](Copy& c) { c.problem.q.head += 1; });
  refuse_plan("a batch stride", unsupported, "out strides", [](Copy& c) { c.problem.out.batch += 2; });
  refuse_plan("too many keys", unsupported, "k_len", [](Copy& c) { c.problem.k_len = (int64_t{1} << 21) + 1; });
  Instance in(served_line(good));
  Copy copy(in);
  const Estimator layer = make_estimator(copy.layer);
  EXPECT_EQ(sale_index_memory(layer.get(), 0), 0u);
  sale_index_options o{};
  o.struct_size = sizeof o;
  o.capacity = (int64_t{1} << 21) + 1;
  sale_index* index = nullptr;
  EXPECT_EQ(sale_index_create(layer.get(), &o, &index), unsupported);
  o.capacity = 500;
  o.memory_bytes = sale_index_memory(layer.get(), 500);
  const Buffer memory(o.memory_bytes);
  alignas(64) static char host[64];
  const auto refused = [&](const char* named) {
    EXPECT_EQ(sale_index_create(layer.get(), &o, &index), bad) << named;
    EXPECT_NE(std::string(sale_last_error()).find(named), std::string::npos) << sale_last_error();
    EXPECT_EQ(index, nullptr);
  };
  o.memory = host;
  refused("memory: in host memory");
  o.memory = memory.data() + 8;
  refused("memory: not aligned to 64");
  o.memory = memory.data();
  --o.memory_bytes;
  refused("memory_bytes");
}

void refuse_call(const char* what, sale_status status, const char* named,
                 const std::function<void(sale_call&, Copy&)>& change, const char* line = good) {
  Instance in(served_line(line));
  Copy copy(in);
  const Work work(copy);
  const Buffer workspace(work.workspace.size() + 4096, 0xcb);
  sale_call c = copy.call();
  c.workspace = workspace.data(), c.workspace_bytes = workspace.size();
  change(c, copy);
  EXPECT_EQ(sale_run(work.plan.get(), work.layer.get(), &c), status) << what << ": " << sale_last_error();
  EXPECT_NE(std::string(sale_last_error()).find(named), std::string::npos) << what << ": " << sale_last_error();
  copy.fetch();
  EXPECT_TRUE(in.out.memory->untouched_outside({}) && in.lse->untouched_outside({})) << what << ": outputs touched";
  std::vector<unsigned char> bytes(workspace.size());
  workspace.get(bytes.data());
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](unsigned char b) { return b == 0xcb; }))
      << what << ": workspace touched";
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << what << ": left an error behind";
}

template <class T>
T* shifted(T* p, std::ptrdiff_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
}

TEST(Refusals, OfCalls) {
  const auto bad = SALE_INVALID_ARGUMENT;
  refuse_call("q on the host", bad, "q: in host memory", [](sale_call& c, Copy& d) { c.q = d.in.q.data(); });
  refuse_call("k on the host", bad, "k: in host memory", [](sale_call& c, Copy& d) { c.k = d.in.k.data(); });
  refuse_call("v on the host", bad, "v: in host memory", [](sale_call& c, Copy& d) { c.v = d.in.v.data(); });
  refuse_call("out on the host", bad, "out: in host memory", [](sale_call& c, Copy& d) { c.out = d.in.out.data(); });
  refuse_call("lse on the host", bad, "lse: in host memory",
              [](sale_call& c, Copy& d) { c.lse = reinterpret_cast<float*>(d.in.lse->begin()); });
  alignas(64) static char host[64];
  refuse_call("workspace on the host", bad, "workspace: in host memory",
              [](sale_call& c, Copy&) { c.workspace = host; });
  refuse_call("workspace too small", bad, "workspace_bytes", [](sale_call& c, Copy&) { c.workspace_bytes -= 4097; });
  refuse_call("q off by 8 bytes", SALE_UNSUPPORTED, "q:", [](sale_call& c, Copy&) { c.q = shifted(c.q, 8); });
  refuse_call("k off by 2 bytes", SALE_UNSUPPORTED, "k:", [](sale_call& c, Copy&) { c.k = shifted(c.k, 2); });
  refuse_call("v off by 8 bytes", SALE_UNSUPPORTED, "v:", [](sale_call& c, Copy&) { c.v = shifted(c.v, 8); });
  refuse_call("out overlapping q", bad, "out: overlaps q", [](sale_call& c, Copy&) { c.out = const_cast<void*>(c.q); });
  const sale_strides odd{0, 4, 128};
  refuse_call("strides of its own", SALE_UNSUPPORTED, "is not a multiple of 8", [&](sale_call& c, Copy& d) {
    static sale_strides s;
    s = d.problem.q;
    s.head += odd.head;
    c.q_strides = &s;
  });
  const std::string paged = std::string(good) + " page=16";
  refuse_call(
      "a page table on the host", bad, "page_table: in host memory",
      [](sale_call& c, Copy&) { c.page_table = reinterpret_cast<const int32_t*>(host); }, paged.c_str());
  refuse_call(
      "no page table", bad, "page_table: null", [](sale_call& c, Copy&) { c.page_table = nullptr; }, paged.c_str());
  refuse_call("indexes nobody asked for", bad, "indexes", [](sale_call& c, Copy&) {
    static const sale_index* const none[]{nullptr, nullptr};
    c.indexes = none;
  });
}

// Nobody names a backend: a device gets the one made for it, or a reason that names it.
TEST(Choice, IsMadeForTheDevice) {
  int major = 0;
  cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
  const char* const first_choice = major >= 10 ? "sm100" : major == 9 ? "sm90" : "sm80";
  for (const sale_format format : {SALE_INT8, SALE_INT4}) {
    sale_layer l = sale_layer_init(2, 1, 128, SALE_BF16);
    l.device = 0;
    l.format = format;
    sale_estimator* made = nullptr;
    const sale_status status = sale_estimator_create(&l, &made);
    const Estimator layer(made);
    if (format == SALE_INT8 || major == 8) {
      ASSERT_EQ(status, SALE_OK) << sale_last_error();
      EXPECT_EQ(std::string(sale_estimator_backend(layer.get())), first_choice);
      EXPECT_EQ(std::string(sale_backend_name(sale_backend_for(0))), first_choice);
    } else {
      EXPECT_EQ(status, SALE_UNSUPPORTED);
      EXPECT_NE(std::string(sale_last_error()).find("this is made for 8.x"), std::string::npos) << sale_last_error();
    }
  }
}

TEST(Refusals, IndexesOfOthers) {
  Instance in(served_line(good));
  Copy copy(in);
  const Work work(copy, true);
  sale_layer full = copy.layer, smoothed = copy.layer;
  full.rank = 0;
  full.q_projection = full.k_projection = nullptr;
  const std::vector<float> vectors(2 * 128, 0.5f);
  smoothed.smoothing = vectors.data();
  const Index a = copy.index(0), b = copy.index(1), other = make_index(make_estimator(full), 500),
              smooth = make_index(make_estimator(smoothed), 500);
  const auto run_with = [&](const Index& x, const Index& y) {
    const sale_index* const list[]{x.get(), y.get()};
    sale_call call = copy.call();
    call.lse = nullptr;
    call.indexes = list;
    return work.try_run(call);
  };
  EXPECT_EQ(run_with(a, b), SALE_INVALID_ARGUMENT) << "indexes without keys";
  copy.update(a, 0, 500);
  copy.update(b, 1, 500);
  copy.update(other, 1, 500);
  copy.update(smooth, 1, 500);
  EXPECT_EQ(run_with(a, other), SALE_INVALID_ARGUMENT) << "another estimator";
  EXPECT_EQ(run_with(a, smooth), SALE_INVALID_ARGUMENT) << "other smoothing vectors";
  EXPECT_EQ(run_with(a, b), SALE_OK) << sale_last_error();
  EXPECT_EQ(sale_index_update(a.get(), in.keys(0), copy.problem.k, 500, nullptr, nullptr), SALE_INVALID_ARGUMENT)
      << "keys in host memory";
  EXPECT_EQ(sale_index_update(a.get(), copy.row(in.k, copy.k(), 0, 0, 0) + 2, copy.problem.k, 500, nullptr, nullptr),
            SALE_INVALID_ARGUMENT)
      << "keys off by an element";
  cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

// Calls allocate nothing; plans no device memory.
TEST(Memory, RunsAllocateNothing) {
  Instance in(served_line(std::string(good) + " compute=fp8 compensate=1"));
  Copy copy(in);
  const Work work(copy);
  const sale_call call = copy.call();
  const auto run_some = [&] {
    for (int i = 0; i < 20; ++i) work.run(call);
    cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  };
  run_some();
  size_t before = 0, after = 0, total = 0;
  cuda(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
  const int64_t had = allocations();
  run_some();
  EXPECT_EQ(allocations(), had) << "host memory was allocated";
  std::vector<Plan> plans;
  for (int i = 0; i < 50; ++i) plans.push_back(make_plan(copy.problem, copy.options, work.layer, i % 2 != 0));
  cuda(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
  EXPECT_EQ(before, after) << "device memory was allocated";
}

// Many layers of several forms, one plan: the bits that a plan of its own gives each.
TEST(Layers, ShareAPlan) {
  Instance in(served_line(good));
  Copy copy(in);
  std::vector<float> tau(4, 0.02f), zero(4, 0.0f), mixed{0.0f, 0.1f, 0.5f, 0.0f};
  std::vector<sale_layer> layers(5, copy.layer);
  layers[1].rank = 0, layers[1].q_projection = layers[1].k_projection = nullptr;
  layers[2].thresholds = zero.data(), layers[2].n_thresholds = 4;
  layers[3].thresholds = mixed.data(), layers[3].n_thresholds = 4;
  layers[4].sink = 64, layers[4].local = 64, layers[4].thresholds = tau.data();
  std::vector<Estimator> made;
  std::vector<const sale_estimator*> all;
  for (const sale_layer& l : layers) all.push_back(made.emplace_back(make_estimator(l)).get());
  sale_plan* raw = nullptr;
  ok(sale_plan_create(&copy.problem, &copy.options, all.data(), static_cast<int64_t>(all.size()), &raw),
     "sale_plan_create");
  const Plan shared(raw);
  const Buffer workspace(workspace_of(shared).total);
  ok(sale_plan_prepare(shared.get(), workspace.data(), workspace.size(), nullptr), "sale_plan_prepare");
  for (size_t i = 0; i < layers.size(); ++i) {
    const Work own(copy.problem, layers[i], copy.options);
    copy.clear_outputs();
    own.run(copy.call());
    copy.fetch();
    const auto out = bytes_of(*in.out.memory), lse = bytes_of(*in.lse);
    sale_call call = copy.call();
    call.workspace = workspace.data(), call.workspace_bytes = workspace.size(), call.prepared = 1;
    copy.clear_outputs();
    ok(sale_run(shared.get(), all[i], &call), "sale_run");
    copy.fetch();
    EXPECT_TRUE(out == bytes_of(*in.out.memory) && lse == bytes_of(*in.lse)) << "layer " << i;
  }
  EXPECT_TRUE(workspace.margin_intact());
}

TEST(Devices, EveryOneOfTheProcess) {
  int count = 0;
  cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (count < 2) GTEST_SKIP() << "one device here";
  sale_problem p = sale_problem_init(2, 1, 128, SALE_BF16, 500, 500);
  sale_layer l = sale_layer_init(2, 1, 128, SALE_BF16);
  p.device = l.device = 1;
  l.backend = tested().name;
  cuda(cudaSetDevice(1), "cudaSetDevice");
  const size_t bytes = 2 * 500 * 128 * 2;
  const Buffer q(bytes, 0x3c), k(bytes, 0x3c), v(bytes, 0x3c), out(bytes);
  cuda(cudaSetDevice(0), "cudaSetDevice");
  const Estimator layer = make_estimator(l);
  const Plan plan = make_plan(p, sale_options_init(), layer, false);
  cuda(cudaSetDevice(1), "cudaSetDevice");
  const Buffer workspace(workspace_of(plan).total);
  cuda(cudaSetDevice(0), "cudaSetDevice");
  sale_call call = sale_call_init();
  call.q = q.data(), call.k = k.data(), call.v = v.data(), call.out = out.data();
  call.workspace = workspace.data(), call.workspace_bytes = workspace.size();
  ok(sale_run(plan.get(), layer.get(), &call), "sale_run");
  int current = -1;
  cuda(cudaGetDevice(&current), "cudaGetDevice");
  EXPECT_EQ(current, 0) << "the current device was changed";
  cuda(cudaSetDevice(1), "cudaSetDevice");
  std::vector<unsigned char> got(bytes);
  out.get(got.data());
  EXPECT_TRUE(std::all_of(got.begin(), got.end(), [](unsigned char b) { return b == 0x3c; }))
      << "the mean of equal values is not that value";
  cuda(cudaSetDevice(0), "cudaSetDevice");
}

// Views whose last element stands beyond 2^31 or 2^32 elements: the bits of the same problem close together.
TEST(Offsets, BeyondWhatFitsIn32Bits) {
  const struct {
    const char* line;
    sale_strides strides;
  } views[]{
      {"qheads=2 kvheads=2 k=700 d=128 densebelow=0 local=32 estimator=fp8:28", {0, (int64_t{1} << 31) + 64, 128}},
      {"batch=2 qheads=1 kvheads=1 k=700 d=128 densebelow=0 local=32 estimator=int8",
       {(int64_t{1} << 32) + 128, 0, 128}},
      {"qheads=1 kvheads=1 k=300 d=64 densebelow=0 local=32 estimator=fp8",
       {0, 0, (int64_t{1} << 32) / 299 / 8 * 8 + 8}},
      {"qheads=2 kvheads=2 k=700 d=128 densebelow=0 local=32 tau=0.1 estimator=fp8:28 compute=fp8 compensate=1",
       {0, (int64_t{1} << 31) + 64, 128}},
  };
  for (const auto& view : views) {
    Case c = served_line(view.line);
    Instance in(c);
    Copy copy(in);
    const Result want = run(copy);
    const sale_strides& s = view.strides;
    const int64_t span = (c.batch - 1) * s.batch + (c.q_heads - 1) * s.head + (c.q_len - 1) * s.token + c.head_dim;
    size_t free = 0, total = 0;
    cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    if (free < static_cast<size_t>(span) * 2 * 4 + (size_t{1} << 30)) GTEST_SKIP() << "too little device memory";
    const size_t row = static_cast<size_t>(c.head_dim) * 2;
    const auto each_head = [&](Buffer& far, const void* near, const sale_case::Tensor& t, bool fill) {
      for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t h = 0; h < c.q_heads; ++h) {
          std::byte* there = far.data() + (b * s.batch + h * s.head) * 2;
          std::byte* here = copy.row(t, near, b, h, 0);
          const size_t stride = static_cast<size_t>(s.token) * 2, close = static_cast<size_t>(t.strides.token) * 2;
          const size_t rows = static_cast<size_t>(c.q_len);
          cuda(fill ? cudaMemcpy2D(there, stride, here, close, row, rows, cudaMemcpyDeviceToDevice)
                    : cudaMemcpy2D(here, close, there, stride, row, rows, cudaMemcpyDeviceToDevice),
               "cudaMemcpy2D");
        }
    };
    const size_t bytes = static_cast<size_t>(span) * 2;
    Buffer q(bytes, 0xff), k(bytes, 0xff), v(bytes, 0xff), out(bytes);
    each_head(q, copy.q(), in.q, true);
    each_head(k, copy.k(), in.k, true);
    each_head(v, copy.v(), in.v, true);
    sale_problem p = copy.problem;
    // An axis of one element has a stride of no meaning; it must still be one the copy engine takes.
    p.q = p.k = p.v = p.out = s;
    const Work work(p, copy.layer, copy.options);
    copy.clear_outputs();
    sale_call call = copy.call();
    call.q = q.data(), call.k = k.data(), call.v = v.data(), call.out = out.data();
    work.run(call);
    cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    each_head(out, copy.out(), in.out, false);
    copy.fetch();
    EXPECT_TRUE(bytes_of(*in.out.memory) == want.out && bytes_of(*in.lse) == want.lse) << view.line;
    EXPECT_TRUE(in.outputs_intact()) << view.line;
  }
}

}  // namespace
}  // namespace sale_device
