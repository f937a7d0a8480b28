// The key index grown in chunks, and prompts run in chunks: the same as all at once.
#include <gtest/gtest.h>

#include <cstring>

#include "case/random.hpp"
#include "harness.hpp"

namespace sale_test {
namespace {

using sale_case::Random;

struct Codes {
  std::vector<int8_t> codes;
  std::vector<float> scales, smoothing;
  bool operator==(const Codes&) const = default;
};

Codes read(const Instance& in, const Index& index, int32_t head, int64_t keys) {
  const int8_t* codes;
  const float *scales, *smoothing;
  ok(sale_index_codes(index.get(), head, &codes, &scales, &smoothing), "sale_index_codes");
  return {{codes, codes + keys * row_bytes(in.c)},
          {scales, scales + (keys + 31) / 32 * block_scales(in.c)},
          {smoothing, smoothing + in.c.head_dim}};
}

void expect_same(const Instance& in, const Index& a, const Index& b, const std::string& what) {
  expect(sale_index_length(a.get()) == sale_index_length(b.get()), what + ": lengths differ");
  for (int32_t h = 0; h < in.c.kv_heads; ++h) {
    const int64_t keys = sale_index_length(a.get());
    expect(read(in, a, h, keys) == read(in, b, h, keys), what + ": codes of kv head " + std::to_string(h) + " differ");
  }
}

void update(const Instance& in, const Index& index, int64_t keys) {
  ok(sale_index_update(index.get(), in.keys(0), in.problem.k, keys, nullptr, nullptr), "sale_index_update");
}

std::vector<float> smoothing_in(const Instance& in, const Index& index) {
  std::vector<float> all;
  for (int32_t h = 0; h < in.c.kv_heads; ++h) {
    const Codes c = read(in, index, h, 0);
    all.insert(all.end(), c.smoothing.begin(), c.smoothing.end());
  }
  return all;
}

Case one_sequence(uint64_t seed) {
  Case c = sale_case::random_case(seed, {1200, 16'000'000});
  c.batch = 1;
  c.q_lens.clear();
  c.k_lens.clear();
  c.q_offsets.clear();
  c.q_offset = SALE_AUTO;
  c.q_len = c.k_len;
  c.dense_below = 0;
  if (c.data > sale_case::Data::huge) c.data = sale_case::Data::real_like;
  return c;
}

void on_sequences(uint64_t first, int64_t n, const std::function<void(Case&)>& adjust,
                  const std::function<void(Instance&, const std::string&)>& check) {
  Tally ignored;
  const std::string failures = in_parallel(
      n,
      [&](int64_t i) {
        Case c = one_sequence(first + static_cast<uint64_t>(i));
        adjust(c);
        return c;
      },
      [&](const Case& c) {
        Instance in(c);
        for (const std::string& backend : backends_for(in)) check(in, backend);
        return Tally{};
      },
      ignored);
  EXPECT_TRUE(failures.empty()) << failures;
}

TEST(Chunked, IndexGrowsToTheSameCodes) {
  on_sequences(
      200'000, 100, [](Case&) {},
      [](Instance& in, const std::string& backend) {
        sale_layer layer = with_backend(in.layer, backend);
        const Index whole = make_index(make_estimator(layer), in.c.k_len);
        update(in, whole, in.c.k_len);
        const std::vector<float> smoothing = smoothing_in(in, whole);
        layer.smoothing = smoothing.data();
        const Index grown = make_index(make_estimator(layer), in.c.k_len + 100);
        Random random(in.c.seed);
        for (int64_t length = 0; length < in.c.k_len;) {
          length = std::min(in.c.k_len, length + random.between(1, 150));
          update(in, grown, length);
          if (random.one_in(4)) {  // nothing new is fine too
            update(in, grown, length);
          }
        }
        expect_same(in, whole, grown, backend + ": index grown in chunks");
      });
}

// Keys behind the present length are not read again, but for the last block's.
TEST(Chunked, RollbackAndRegrowth) {
  on_sequences(
      210'000, 60, [](Case&) {},
      [](Instance& in, const std::string& backend) {
        const Estimator estimator = make_estimator(with_backend(in.layer, backend));
        const Index whole = make_index(estimator, in.c.k_len), cut = make_index(estimator, in.c.k_len);
        update(in, whole, in.c.k_len);
        update(in, cut, in.c.k_len);
        Random random(in.c.seed + 1);
        for (int i = 0; i < 5; ++i) {
          const int64_t to = random.between(0, sale_index_length(cut.get()));
          ok(sale_index_truncate(cut.get(), to), "sale_index_truncate");
          expect(sale_index_length(cut.get()) == to, "sale_index_truncate: length");
          if (random.one_in(2)) update(in, cut, random.between(std::max<int64_t>(to, 1), in.c.k_len));
        }
        if (sale_index_length(cut.get()) < in.c.k_len) update(in, cut, in.c.k_len);
        expect_same(in, whole, cut, backend + ": index cut and grown again");
      });
}

// A prompt in chunks that are multiples of the tile keeps the blocks, and (exact products) the bits, of the whole.
TEST(Chunked, PrefillInChunks) {
  const auto int8 = [](Case& c) {
    c.format = SALE_INT8;  // INT4 smooths queries over the call
    c.compute = SALE_COMPUTE_EXACT;
    c.layout = sale_case::Layout::blhd;
  };
  on_sequences(220'000, 60, int8, [](Instance& in, const std::string& backend) {
    const Result whole = run(in, backend);
    sale_layer layer = with_backend(in.layer, backend);
    const std::vector<float> smoothing = smoothing_in(in, whole.indexes[0]);
    layer.smoothing = smoothing.data();
    const Index index = make_index(make_estimator(layer), in.c.k_len);
    Random random(in.c.seed);
    in.clear_outputs();
    for (int64_t from = 0; from < in.c.q_len;) {
      const int64_t to = std::min(in.c.q_len, from + 64 * random.between(1, 4));
      update(in, index, to);
      sale_problem p = in.problem;
      p.q_len = to - from;
      p.k_len = to;
      p.q_offset = SALE_AUTO;
      p.q_starts = p.k_starts = nullptr;
      const Step step(p, layer, in.options, true);
      const Blocks blocks = make_blocks(step.plan);
      const sale_index* const indexes[]{index.get()};
      sale_call call = in.call();
      call.q = in.q.row(0, 0, from);
      call.out = in.out.row(0, 0, from);
      call.lse = nullptr;
      call.indexes = indexes;
      step.select(call, blocks);
      step.run(call);
      for (int32_t h = 0; h < in.c.q_heads; ++h)
        for (int64_t t = 0; t * 64 < p.q_len; ++t)
          expect(read_row(blocks.get(), {0, h, t}) ==
                     whole.lists[0][static_cast<size_t>(h)][static_cast<size_t>(from / 64 + t)],
                 backend + ": the chunk from " + std::to_string(from) + " keeps other blocks than the whole prompt");
      from = to;
    }
    const std::vector<std::byte> out(in.out.memory->begin(), in.out.memory->begin() + in.out.memory->size());
    expect(out == whole.out, backend + ": a prompt in chunks gives other bits than the whole");
  });
}

// The workspace's own index and one made beforehand are the same (run() compares them for every generated problem);
// here the index is longer lived: one index, many plans.
TEST(Chunked, OneIndexServesManyPlans) {
  on_sequences(
      230'000, 20, [](Case& c) { c.q_len = std::max<int64_t>(1, c.k_len / 3); },
      [](Instance& in, const std::string& backend) {
        const sale_layer layer = with_backend(in.layer, backend);
        const Index index = make_index(make_estimator(layer), in.c.k_len);
        update(in, index, in.c.k_len);
        const sale_index* const indexes[]{index.get()};
        const Result expected = run(in, backend);
        for (int i = 0; i < 5; ++i) {
          const Step step(in.problem, layer, in.options, true);
          in.clear_outputs();
          sale_call call = in.call();
          call.lse = nullptr;
          call.indexes = indexes;
          step.run(call);
          expect(std::memcmp(in.out.memory->begin(), expected.out.data(), expected.out.size()) == 0,
                 backend + ": bits differ");
        }
      });
}

}  // namespace
}  // namespace sale_test
