// What must not depend on how a problem is put: chunks, batches, pages, streams, graphs, repeats, offsets.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "case/random.hpp"
#include "device.hpp"

namespace sale_device {
namespace {

using sale_case::Random;

// Outputs of one run with stats left out: the call that serving makes.
struct Outputs {
  std::vector<std::byte> out, lse;
  bool operator==(const Outputs&) const = default;
};

Outputs run_once(Copy& copy, const Plan& plan, const Buffer& workspace, const std::vector<Index>& indexes,
                 cudaStream_t stream) {
  std::vector<const sale_index*> given;
  for (const Index& i : indexes) given.push_back(i.get());
  copy.clear_outputs();
  ok(sale_run(plan.get(), copy.q(), copy.k(), copy.v(), copy.out(), copy.lse(), given.empty() ? nullptr : given.data(),
              workspace.data(), workspace.size(), nullptr, stream),
     "sale_run");
  copy.fetch();
  return {bytes_of(*copy.in.out.memory), bytes_of(*copy.in.lse)};
}

const char* const lines[]{"qheads=4 kvheads=2 k=1500 d=128 densebelow=0 tau=0.01 estimator=fp8:28",
                          "qheads=4 kvheads=1 k=1111 d=64 densebelow=0 tau=0.01 estimator=fp8 type=f16",
                          "qheads=2 kvheads=2 k=1300 d=128 densebelow=0 tau=0.01 estimator=int8 layout=blhd",
                          "qheads=4 kvheads=2 k=1500 d=128 densebelow=0 tau=0.02 estimator=fp8:28 compensate=1",
                          "qheads=4 kvheads=1 k=1111 d=64 densebelow=0 tau=0.02 estimator=fp8 type=f16 compute=fp8",
                          "qheads=2 kvheads=2 k=1300 d=128 densebelow=0 tau=0.02 estimator=fp8:28 layout=blhd "
                          "compute=fp8 compensate=1"};

class Properties : public testing::TestWithParam<const char*> {
protected:
  Case c = served_line(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Problems, Properties, testing::ValuesIn(lines));

std::vector<float> smoothing_of(const Instance& in, const Index& index) {
  std::vector<float> all;
  for (int32_t h = 0; h < in.c.kv_heads; ++h) {
    const float* smoothing;
    ok(sale_index_codes(index.get(), h, nullptr, nullptr, &smoothing), "sale_index_codes");
    all.insert(all.end(), smoothing, smoothing + in.c.head_dim);
  }
  return all;
}

TEST_P(Properties, SameBitsOverRepeatsAndStreams) {
  Instance in(c);
  Copy copy(in);
  const Plan plan = make_plan(copy.problem, copy.options, false);
  const Buffer workspace(sale_plan_workspace(plan.get()).total);
  const Outputs first = run_once(copy, plan, workspace, {}, nullptr);
  const Stream stream;
  EXPECT_EQ(run_once(copy, plan, workspace, {}, stream.get()), first) << "another stream";
  const Outputs now = first;
  for (int64_t i = 0; i < flags().repeats; ++i) {
    ok(sale_run(plan.get(), copy.q(), copy.k(), copy.v(), copy.out(), copy.lse(), nullptr, workspace.data(),
                workspace.size(), nullptr, stream.get()),
       "sale_run");
    if (i % 50 != 49 && i + 1 != flags().repeats) continue;
    copy.fetch();
    ASSERT_EQ(bytes_of(*in.out.memory), now.out) << "after " << i + 1 << " runs";
    ASSERT_EQ(bytes_of(*in.lse), now.lse) << "after " << i + 1 << " runs";
  }
}

TEST_P(Properties, GraphsReplayTheSame) {
  c.q_len = c.k_len = 900;
  Instance in(c);
  Copy copy(in);
  const Plan plan = make_plan(copy.problem, copy.options, false);
  const Buffer workspace(sale_plan_workspace(plan.get()).total);
  const Stream stream;
  cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  const auto captured = [&](sale_stats* stats) {
    return sale_run(plan.get(), copy.q(), copy.k(), copy.v(), copy.out(), copy.lse(), nullptr, workspace.data(),
                    workspace.size(), stats, stream.get());
  };
  sale_stats stats{};
  EXPECT_EQ(captured(&stats), SALE_INVALID_ARGUMENT) << "statistics cannot be captured";
  EXPECT_NE(std::string(sale_last_error()).find("stats"), std::string::npos) << sale_last_error();
  ok(captured(nullptr), "sale_run under capture");
  cudaGraph_t graph{};
  cuda(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t exec{};
  cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  for (uint64_t seed = 1; seed <= 5; ++seed) {  // new data every time
    Case other = c;
    other.seed = seed;
    const Instance data(other);
    std::memcpy(in.q.memory->begin(), data.q.memory->begin(), in.q.memory->size());
    std::memcpy(in.k.memory->begin(), data.k.memory->begin(), in.k.memory->size());
    std::memcpy(in.v.memory->begin(), data.v.memory->begin(), in.v.memory->size());
    copy.send();
    const Outputs eager = run_once(copy, plan, workspace, {}, nullptr);
    copy.clear_outputs();
    for (int i = 0; i < 20; ++i) cuda(cudaGraphLaunch(exec, stream.get()), "cudaGraphLaunch");
    copy.fetch();
    EXPECT_EQ(bytes_of(*in.out.memory), eager.out);
    EXPECT_EQ(bytes_of(*in.lse), eager.lse);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

// The first update is the whole prompt's first 8192 keys or more, or it fixes scale and smoothing of its own.
TEST_P(Properties, IndexGrowsToTheSameCodes) {
  c.q_len = c.k_len = 9000;
  Instance in(c);
  for (const int32_t page : {0, 16}) {
    Case paged = c;
    paged.page_size = page;
    Instance other(paged);
    Copy copy(other);
    const Index whole = copy.index(0), grown = copy.index(0, c.k_len + 100);
    copy.update(whole, 0, c.k_len);
    check_device_codes(other, 0, 0, whole.get(), c.k_len);
    ok(sale_index_set_smoothing(grown.get(), smoothing_of(in, whole).data()), "sale_index_set_smoothing");
    Random random(c.seed);
    const Stream stream;
    copy.update(grown, 0, 8200, stream.get());
    for (int64_t length = 8200; length < c.k_len;) {
      length = std::min(c.k_len, length + random.between(0, 150));
      copy.update(grown, 0, length, stream.get());
      if (random.one_in(4)) {
        ok(sale_index_truncate(grown.get(), length - std::min<int64_t>(length - 8192, random.between(0, 90))),
           "sale_index_truncate");
        copy.update(grown, 0, length, stream.get());
      }
    }
    for (int32_t h = 0; h < c.kv_heads; ++h) {
      const int8_t *a, *b;
      const float *as, *bs;
      ok(sale_index_codes(whole.get(), h, &a, &as, nullptr), "sale_index_codes");
      ok(sale_index_codes(grown.get(), h, &b, &bs, nullptr), "sale_index_codes");
      const int64_t rank = c.rank == 0 ? c.head_dim : c.rank;
      EXPECT_EQ(std::memcmp(a, b, static_cast<size_t>(c.k_len * rank)), 0) << "page " << page << " head " << h;
      EXPECT_EQ(
          std::memcmp(
              as, bs,
              c.format == SALE_FP8 ? 4 : static_cast<size_t>((c.k_len + 31) / 32 * (c.format == SALE_INT4 ? 16 : 4))),
          0);
    }
  }
}

// The prompt in chunks that are multiples of the tile, with the whole prompt's smoothing: its lists and its bits.
TEST_P(Properties, PrefillInChunks) {
  c.layout = sale_case::Layout::blhd;
  if (c.format == SALE_INT4) c.format = SALE_INT8;  // INT4 smooths queries over the call
  c.q_len = c.k_len = 10'000;
  c.q_heads = c.kv_heads = 1;
  Instance in(c);
  Copy copy(in);
  const Result whole = run(copy);
  const Index index = copy.index(0);
  ok(sale_index_set_smoothing(index.get(), smoothing_of(in, whole.indexes[0]).data()), "sale_index_set_smoothing");
  const sale_index* const indexes[]{index.get()};
  copy.clear_outputs();
  for (int64_t from = 0; from < c.q_len;) {
    const int64_t to = std::min<int64_t>(c.q_len, from == 0 ? 8192 : from + 384);
    copy.update(index, 0, to);
    sale_problem p = copy.problem;
    p.q_len = to - from;
    p.k_len = to;
    const Plan plan = make_plan(p, copy.options, true);
    const Blocks blocks = make_blocks(plan);
    const Buffer workspace(sale_plan_workspace(plan.get()).total);
    const std::byte* q = copy.row(in.q, copy.q(), 0, 0, from);
    ok(sale_select(plan.get(), q, copy.k(), indexes, blocks.get(), workspace.data(), workspace.size(), nullptr,
                   nullptr),
       "sale_select");
    for (int64_t t = 0; t * tested().tile < p.q_len; ++t) {
      int64_t kept, visible;
      ok(sale_blocks_row(blocks.get(), 0, 0, t, nullptr, 0, &kept, &visible), "sale_blocks_row");
      std::vector<int32_t> row(static_cast<size_t>(kept));
      ok(sale_blocks_row(blocks.get(), 0, 0, t, row.data(), kept, &kept, &visible), "sale_blocks_row");
      ASSERT_EQ(row, whole.lists[0][0][static_cast<size_t>(from / tested().tile + t)])
          << "chunk from " << from << " tile " << t;
    }
    ok(sale_run(plan.get(), q, copy.k(), copy.v(), copy.row(in.out, copy.out(), 0, 0, from), nullptr, indexes,
                workspace.data(), workspace.size(), nullptr, nullptr),
       "sale_run");
    from = to;
  }
  copy.fetch();
  if (c.compute != SALE_COMPUTE_EXACT) return;  // its scales and mean key are of a call's keys and values
  EXPECT_TRUE(bytes_of(*in.out.memory) == whole.out) << "a prompt in chunks gives other bits than the whole";
}

TEST_P(Properties, RaggedIsSeparate) {
  Case many = c;
  many.batch = 5;
  many.k_lens = {1500, 1, 700, 129, 1024};
  many.q_lens = {1500, 1, 128, 129, 600};
  many.q_len = many.k_len = 1500;
  many.layout = sale_case::Layout::packed;
  Instance in(many);
  Copy copy(in);
  const Result together = run(copy);
  for (int64_t b = 0; b < many.batch; ++b) {
    const auto s = static_cast<size_t>(b);
    sale_problem p = copy.problem;
    p.batch = 1;
    p.q_len = many.q_lens[s];
    p.k_len = many.k_lens[s];
    p.q_lens = p.k_lens = p.q_offsets = p.q_starts = p.k_starts = nullptr;
    const Plan plan = make_plan(p, copy.options, false);
    const Buffer workspace(sale_plan_workspace(plan.get()).total);
    copy.clear_outputs();
    std::vector<float> lse(static_cast<size_t>(many.q_heads * p.q_len));
    const Buffer lse_there(lse.size() * 4);
    ok(sale_run(plan.get(), copy.row(in.q, copy.q(), b, 0, 0), copy.row(in.k, copy.k(), b, 0, 0),
                copy.row(in.v, copy.v(), b, 0, 0), copy.row(in.out, copy.out(), b, 0, 0),
                reinterpret_cast<float*>(lse_there.data()), nullptr, workspace.data(), workspace.size(), nullptr,
                nullptr),
       "sale_run");
    copy.fetch();
    for (int32_t h = 0; h < many.q_heads; ++h)
      for (int64_t i = 0; i < p.q_len; ++i) {
        const size_t at = in.out.offset(b, h, i);
        ASSERT_EQ(
            std::memcmp(in.out.memory->begin() + at, together.out.data() + at, static_cast<size_t>(many.head_dim) * 2),
            0)
            << "sequence " << b << " head " << h << " row " << i;
      }
  }
}

TEST_P(Properties, PagedIsContiguous) {
  c.batch = 2;
  c.k_lens = {1500, 777};
  c.q_lens = {1500, 333};
  c.q_len = c.k_len = 1500;
  Instance in(c);
  Copy contiguous(in);
  const Result want = run(contiguous);
  for (const int32_t page : {16, 32, 48, 64, 1024}) {
    Case p = c;
    p.page_size = page;
    Instance other(p);
    Copy copy(other);
    const Result got = run(copy);
    EXPECT_TRUE(got.lists == want.lists) << "pages of " << page;
    EXPECT_TRUE(got.out == want.out && got.lse == want.lse) << "pages of " << page;
  }
}

}  // namespace
}  // namespace sale_device
