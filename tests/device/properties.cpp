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

Outputs run_once(Copy& copy, const Work& work, cudaStream_t stream) {
  sale_call call = copy.call();
  call.stream = stream;
  copy.clear_outputs();
  work.run(call);
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

std::vector<float> vectors_of(const Instance& in, const Index& index) {
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
  const Work work(copy);
  const Outputs first = run_once(copy, work, nullptr);
  const Stream stream;
  EXPECT_EQ(run_once(copy, work, stream.get()), first) << "another stream";
  const Outputs now = first;
  sale_call call = copy.call();
  call.stream = stream.get();
  for (int64_t i = 0; i < flags().repeats; ++i) {
    work.run(call);
    call.prepared = 1;
    if (i % 50 != 49 && i + 1 != flags().repeats) continue;
    copy.fetch();
    ASSERT_EQ(bytes_of(*in.out.memory), now.out) << "after " << i + 1 << " runs";
    ASSERT_EQ(bytes_of(*in.lse), now.lse) << "after " << i + 1 << " runs";
  }
}

// Everything of a step: its plan is made, and its workspace prepared, under capture too.
TEST_P(Properties, GraphsReplayTheSame) {
  c.q_len = c.k_len = 900;
  Instance in(c);
  Copy copy(in);
  const Work work(copy);
  const Stream stream;
  cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  const Plan plan = make_plan(copy.problem, copy.options, work.layer, false);
  sale_call call = work.in(copy.call());
  call.stream = stream.get();
  sale_stats stats{};
  stats.struct_size = sizeof stats;
  call.stats = &stats;
  EXPECT_EQ(sale_run(plan.get(), work.layer.get(), &call), SALE_INVALID_ARGUMENT) << "statistics cannot be captured";
  EXPECT_NE(std::string(sale_last_error()).find("stats"), std::string::npos) << sale_last_error();
  call.stats = nullptr;
  ok(sale_plan_prepare(plan.get(), work.workspace.data(), work.workspace.size(), stream.get()), "sale_plan_prepare");
  call.prepared = 1;
  ok(sale_run(plan.get(), work.layer.get(), &call), "sale_run under capture");
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
    const Outputs eager = run_once(copy, work, nullptr);
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
    const Index whole = copy.index(0);
    copy.update(whole, 0, c.k_len);
    check_device_codes(other, 0, 0, whole.get(), c.k_len);
    const std::vector<float> smoothing = vectors_of(in, whole);
    copy.layer.smoothing = smoothing.data();
    const Index grown = copy.index(0, c.k_len + 100);
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

// With vectors and scales of the layer, codes are those of the keys alone: however they were split, from the first on.
TEST_P(Properties, CodesAreOfTheKeysAlone) {
  c.q_len = c.k_len = 700;
  Instance in(c);
  Copy copy(in);
  const Index whole = copy.index(0);
  copy.update(whole, 0, c.k_len);
  const std::vector<float> smoothing = vectors_of(in, whole);
  std::vector<float> scales;
  for (int32_t h = 0; h < c.kv_heads; ++h) {
    const float* scale;
    ok(sale_index_codes(whole.get(), h, nullptr, &scale, nullptr), "sale_index_codes");
    scales.push_back(*scale);
  }
  copy.layer.smoothing = smoothing.data();
  if (c.format == SALE_FP8) copy.layer.key_scales = scales.data();
  const Estimator layer = make_estimator(copy.layer);
  const Buffer memory(sale_index_memory(layer.get(), 800));
  sale_index_options o{};
  o.struct_size = sizeof o;
  o.capacity = 800, o.memory = memory.data(), o.memory_bytes = memory.size();
  sale_index* raw = nullptr;
  ok(sale_index_create(layer.get(), &o, &raw), "sale_index_create");
  const Index grown(raw);
  EXPECT_EQ(sale_index_bytes(grown.get()), memory.size());
  Random random(c.seed);
  for (int64_t length = 0; length < c.k_len;) {
    length = std::min(c.k_len, length + random.between(1, 90));
    copy.update(grown, 0, length);
  }
  const int64_t rank = c.rank == 0 ? c.head_dim : c.rank;
  for (int32_t h = 0; h < c.kv_heads; ++h) {
    const int8_t *a, *b;
    ok(sale_index_codes(whole.get(), h, &a, nullptr, nullptr), "sale_index_codes");
    ok(sale_index_codes(grown.get(), h, &b, nullptr, nullptr), "sale_index_codes");
    EXPECT_EQ(std::memcmp(a, b, static_cast<size_t>(c.k_len * rank)), 0) << "head " << h;
  }
  // A call that makes its own index finds the same blocks.
  const Work own(copy), with(copy, true);
  const Blocks first = make_blocks(own.plan), second = make_blocks(with.plan);
  own.select(copy.call(), first);
  sale_call call = copy.call();
  const sale_index* const indexes[]{grown.get()};
  call.indexes = indexes;
  with.select(call, second);
  EXPECT_TRUE(read_wide_lists(in, first) == read_wide_lists(in, second));
  EXPECT_TRUE(memory.margin_intact());
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
  const std::vector<float> smoothing = vectors_of(in, whole.indexes[0]);
  copy.layer.smoothing = smoothing.data();
  const Index index = copy.index(0);
  const sale_index* const indexes[]{index.get()};
  copy.clear_outputs();
  for (int64_t from = 0; from < c.q_len;) {
    const int64_t to = std::min<int64_t>(c.q_len, from == 0 ? 8192 : from + 384);
    copy.update(index, 0, to);
    sale_problem p = copy.problem;
    p.q_len = to - from;
    p.k_len = to;
    const Work work(p, copy.layer, copy.options, true);
    const Blocks blocks = make_blocks(work.plan);
    sale_call call = copy.call();
    call.q = copy.row(in.q, copy.q(), 0, 0, from), call.out = copy.row(in.out, copy.out(), 0, 0, from);
    call.lse = nullptr;
    call.indexes = indexes;
    work.select(call, blocks);
    for (int64_t t = 0; t * tested().tile < p.q_len; ++t)
      ASSERT_EQ(read_row(blocks.get(), {0, 0, t}), whole.lists[0][0][static_cast<size_t>(from / tested().tile + t)])
          << "chunk from " << from << " tile " << t;
    work.run(call);
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
    const Work work(p, copy.layer, copy.options);
    copy.clear_outputs();
    const Buffer lse(static_cast<size_t>(many.q_heads * p.q_len) * 4);
    sale_call call = copy.call();
    call.q = copy.row(in.q, copy.q(), b, 0, 0), call.k = copy.row(in.k, copy.k(), b, 0, 0);
    call.v = copy.row(in.v, copy.v(), b, 0, 0), call.out = copy.row(in.out, copy.out(), b, 0, 0);
    call.lse = reinterpret_cast<float*>(lse.data());
    work.run(call);
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
