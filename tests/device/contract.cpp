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
  sale_plan* plan = nullptr;
  EXPECT_EQ(sale_plan_create(&copy.problem, &copy.options, 0, &plan), status) << what << ": " << sale_last_error();
  EXPECT_NE(std::string(sale_last_error()).find(named), std::string::npos) << what << ": " << sale_last_error();
  EXPECT_EQ(plan, nullptr) << what;
}

TEST(Refusals, OfPlans) {
  std::vector<float> projections(2 * 128 * 32, 0.1f);
  const auto unsupported = SALE_UNSUPPORTED, bad = SALE_INVALID_ARGUMENT;
  refuse_plan("host memory", unsupported, "host memory", [](Copy& c) { c.problem.device = SALE_HOST; });
  refuse_plan("a device that is not there", bad, "device", [](Copy& c) { c.problem.device = 1000; });
  refuse_plan("f32", unsupported, "dtype", [](Copy& c) { c.problem.dtype = SALE_F32; });
  const auto without_rank = [&](Copy& c, sale_format format) {
    c.options.format = format;
    c.options.rank = 0;
    c.options.q_projection = c.options.k_projection = nullptr;
  };
  if (tested().int4()) {
    refuse_plan("FP8", unsupported, "SALE_FP8", [&](Copy& c) { without_rank(c, SALE_FP8); });
  } else {
    refuse_plan("INT4", unsupported, "SALE_INT4", [&](Copy& c) { without_rank(c, SALE_INT4); });
    refuse_plan("INT8 with a projection", unsupported, "rank", [&](Copy& c) {
      c.options.format = SALE_INT8;
      c.options.rank = 32;
      c.options.q_projection = c.options.k_projection = projections.data();
    });
    refuse_plan("INT8 products", unsupported, "compute", [](Copy& c) { c.options.compute = SALE_COMPUTE_INT8; });
    refuse_plan("F16 products", unsupported, "compute", [](Copy& c) { c.options.compute = SALE_COMPUTE_F16; });
    refuse_plan("a stride for the copy engine", unsupported, "v strides",
                [](Copy& c) { c.problem.v.batch = int64_t{1} << 39; });
  }
  refuse_plan("compensate 2", bad, "compensate", [](Copy& c) { c.options.compensate = 2; });
  refuse_plan("a token stride", unsupported, "k strides", [](Copy& c) { c.problem.k.token += 4; });
  refuse_plan("a head stride", unsupported, "q strides", [](Copy& c) { c.problem.q.head += 1; });
  refuse_plan("a batch stride", unsupported, "out strides", [](Copy& c) { c.problem.out.batch += 2; });
  refuse_plan("too many keys", unsupported, "k_len", [](Copy& c) { c.problem.k_len = (int64_t{1} << 21) + 1; });
  refuse_plan("a page table on the host", bad, "page_table", [&](Copy& c) {
    c.problem.page_size = 16;
    c.problem.pages = 100;
    c.problem.page_table = reinterpret_cast<const int32_t*>(projections.data());
  });
  Instance in(served_line(good));
  Copy copy(in);
  sale_index* index = nullptr;
  EXPECT_EQ(sale_index_create(&copy.problem, &copy.options, (int64_t{1} << 21) + 1, &index), unsupported);
  EXPECT_EQ(index, nullptr);
}

struct Call {
  const void *q, *k, *v;
  void* out;
  float* lse;
  void* workspace;
  size_t bytes;
  const sale_index* const* indexes = nullptr;
};

void refuse_call(const char* what, sale_status status, const char* named,
                 const std::function<void(Call&, Copy&)>& change) {
  Instance in(served_line(good));
  Copy copy(in);
  const Plan plan = make_plan(copy.problem, copy.options, false);
  const Buffer workspace(sale_plan_workspace(plan.get()).total + 4096, 0xcb);
  Call c{copy.q(), copy.k(), copy.v(), copy.out(), copy.lse(), workspace.data(), workspace.size()};
  change(c, copy);
  EXPECT_EQ(sale_run(plan.get(), c.q, c.k, c.v, c.out, c.lse, c.indexes, c.workspace, c.bytes, nullptr, nullptr),
            status)
      << what << ": " << sale_last_error();
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
  refuse_call("q on the host", bad, "q: in host memory", [](Call& c, Copy& d) { c.q = d.in.q.data(); });
  refuse_call("k on the host", bad, "k: in host memory", [](Call& c, Copy& d) { c.k = d.in.k.data(); });
  refuse_call("v on the host", bad, "v: in host memory", [](Call& c, Copy& d) { c.v = d.in.v.data(); });
  refuse_call("out on the host", bad, "out: in host memory", [](Call& c, Copy& d) { c.out = d.in.out.data(); });
  refuse_call("lse on the host", bad, "lse: in host memory",
              [](Call& c, Copy& d) { c.lse = reinterpret_cast<float*>(d.in.lse->begin()); });
  alignas(64) static char host[64];
  refuse_call("workspace on the host", bad, "workspace: in host memory", [](Call& c, Copy&) { c.workspace = host; });
  refuse_call("workspace too small", bad, "workspace_bytes", [](Call& c, Copy&) { c.bytes -= 4097; });
  refuse_call("q off by 8 bytes", SALE_UNSUPPORTED, "q:", [](Call& c, Copy&) { c.q = shifted(c.q, 8); });
  refuse_call("k off by 2 bytes", SALE_UNSUPPORTED, "k:", [](Call& c, Copy&) { c.k = shifted(c.k, 2); });
  refuse_call("v off by 8 bytes", SALE_UNSUPPORTED, "v:", [](Call& c, Copy&) { c.v = shifted(c.v, 8); });
  refuse_call("out overlapping q", bad, "out: overlaps q", [](Call& c, Copy&) { c.out = const_cast<void*>(c.q); });
  refuse_call("indexes nobody asked for", bad, "indexes", [](Call& c, Copy&) {
    static const sale_index* const none[]{nullptr, nullptr};
    c.indexes = none;
  });
}

// Nobody names a backend: a device gets the one made for it, or a reason that names it.
TEST(Choice, IsMadeForTheDevice) {
  int major = 0;
  cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
  const char* const first_choice = major == 9 ? "sm90" : major == 8 ? "sm80" : nullptr;
  for (const sale_format format : {SALE_INT8, SALE_INT4}) {
    sale_problem p = sale_problem_init(1, 2, 1, 500, 500, 128, SALE_BF16);
    p.device = 0;
    sale_options o = sale_options_init();
    o.format = format;
    sale_plan* made = nullptr;
    const sale_status status = sale_plan_create(&p, &o, 0, &made);
    const Plan plan(made);
    if (first_choice != nullptr && (format == SALE_INT8 || major == 8)) {
      ASSERT_EQ(status, SALE_OK) << sale_last_error();
      EXPECT_EQ(std::string(sale_plan_backend(plan.get())), first_choice);
    } else {
      EXPECT_EQ(status, SALE_UNSUPPORTED);
      EXPECT_NE(std::string(sale_last_error()).find("this is made for 8.x"), std::string::npos) << sale_last_error();
    }
  }
}

TEST(Refusals, IndexesOfOthers) {
  Instance in(served_line(good));
  Copy copy(in);
  const Plan plan = make_plan(copy.problem, copy.options, true);
  const Buffer workspace(sale_plan_workspace(plan.get()).total);
  sale_options full = copy.options;
  full.rank = 0;
  full.q_projection = full.k_projection = nullptr;
  const Index a = copy.index(0), b = copy.index(1), other = make_index(copy.problem, full, 500);
  const auto run_with = [&](const Index& x, const Index& y) {
    const sale_index* const list[]{x.get(), y.get()};
    return sale_run(plan.get(), copy.q(), copy.k(), copy.v(), copy.out(), nullptr, list, workspace.data(),
                    workspace.size(), nullptr, nullptr);
  };
  EXPECT_EQ(run_with(a, b), SALE_INVALID_ARGUMENT) << "indexes without keys";
  copy.update(a, 0, 500);
  copy.update(b, 1, 500);
  copy.update(other, 1, 500);
  EXPECT_EQ(run_with(a, other), SALE_INVALID_ARGUMENT) << "another estimator";
  EXPECT_EQ(run_with(a, b), SALE_OK) << sale_last_error();
  EXPECT_EQ(sale_index_update(a.get(), in.keys(0), copy.problem.k, 500, nullptr, nullptr), SALE_INVALID_ARGUMENT)
      << "keys in host memory";
  EXPECT_EQ(sale_index_update(a.get(), copy.row(in.k, copy.k(), 0, 0, 0) + 2, copy.problem.k, 500, nullptr, nullptr),
            SALE_INVALID_ARGUMENT)
      << "keys off by an element";
  cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

TEST(Memory, RunsAllocateNothing) {
  Instance in(served_line(std::string(good) + " compute=fp8 compensate=1"));
  Copy copy(in);
  const Plan plan = make_plan(copy.problem, copy.options, false);
  const Buffer workspace(sale_plan_workspace(plan.get()).total);
  const auto run_some = [&] {
    for (int i = 0; i < 20; ++i)
      ok(sale_run(plan.get(), copy.q(), copy.k(), copy.v(), copy.out(), copy.lse(), nullptr, workspace.data(),
                  workspace.size(), nullptr, nullptr),
         "sale_run");
    cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  };
  run_some();
  size_t before = 0, after = 0, total = 0;
  cuda(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
  const int64_t had = allocations();
  run_some();
  EXPECT_EQ(allocations(), had) << "host memory was allocated";
  cuda(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
  EXPECT_EQ(before, after) << "device memory was allocated";
}

TEST(Devices, EveryOneOfTheProcess) {
  int count = 0;
  cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (count < 2) GTEST_SKIP() << "one device here";
  const sale_problem p = [&] {
    sale_problem x = sale_problem_init(1, 2, 1, 500, 500, 128, SALE_BF16);
    x.device = 1;
    return x;
  }();
  cuda(cudaSetDevice(1), "cudaSetDevice");
  const size_t bytes = 2 * 500 * 128 * 2;
  const Buffer q(bytes, 0x3c), k(bytes, 0x3c), v(bytes, 0x3c), out(bytes);
  cuda(cudaSetDevice(0), "cudaSetDevice");
  sale_options o = sale_options_init();
  o.backend = tested().name;
  const Plan plan = make_plan(p, o, false);
  cuda(cudaSetDevice(1), "cudaSetDevice");
  const Buffer workspace(sale_plan_workspace(plan.get()).total);
  cuda(cudaSetDevice(0), "cudaSetDevice");
  ok(sale_run(plan.get(), q.data(), k.data(), v.data(), out.data(), nullptr, nullptr, workspace.data(),
              workspace.size(), nullptr, nullptr),
     "sale_run");
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
    const Plan plan = make_plan(p, copy.options, false);
    const Buffer workspace(sale_plan_workspace(plan.get()).total);
    copy.clear_outputs();
    ok(sale_run(plan.get(), q.data(), k.data(), v.data(), out.data(), copy.lse(), nullptr, workspace.data(),
                workspace.size(), nullptr, nullptr),
       "sale_run");
    cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    each_head(out, copy.out(), in.out, false);
    copy.fetch();
    EXPECT_TRUE(bytes_of(*in.out.memory) == want.out && bytes_of(*in.lse) == want.lse) << view.line;
    EXPECT_TRUE(in.outputs_intact()) << view.line;
  }
}

}  // namespace
}  // namespace sale_device
