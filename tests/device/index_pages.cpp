// Codes in pages on a GPU: chunk by chunk the bits of an index that grows, and the same pages whoever wrote them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "case/random.hpp"
#include "device.hpp"

namespace sale_device {
namespace {

using sale_case::Random;

// What a calibration gives a layer: vectors and scales near those of the first sequence's keys.
struct Fixed {
  explicit Fixed(Copy& copy) {
    const Index index = copy.index(0);
    copy.update(index, 0, copy.in.sequences[0].k_len);
    for (int32_t h = 0; h < copy.in.c.kv_heads; ++h) {
      const float *scale, *vector;
      ok(sale_index_codes(index.get(), h, nullptr, &scale, &vector), "sale_index_codes");
      smoothing.insert(smoothing.end(), vector, vector + copy.in.c.head_dim);
      scales.push_back(*scale);
    }
    copy.layer.smoothing = smoothing.data();
    if (copy.in.c.format == SALE_FP8) copy.layer.key_scales = scales.data();
  }
  std::vector<float> smoothing, scales;
};

// Pages of codes for the pages of a copy.
struct Codes {
  Codes(const Copy& copy, int64_t total, int64_t gap)
      : least(static_cast<int64_t>(sale_index_page_bytes(make_estimator(copy.layer).get(), copy.in.c.page_size))),
        memory(static_cast<size_t>((least + gap) * total), 0xab) {
    pages = {sizeof pages, memory.data(), least + gap, total, nullptr, nullptr};
  }
  // From now on pages say themselves what they hold: nothing yet.
  void say() {
    coded = Buffer(static_cast<size_t>(pages.pages) * 4, 0);
    pages.coded = reinterpret_cast<int32_t*>(coded.data());
    made = Buffer(8, 0);
    pages.made = reinterpret_cast<int64_t*>(made.data());
  }
  std::vector<int32_t> said() const {
    std::vector<int32_t> n(static_cast<size_t>(pages.pages));
    coded.get(n.data());
    return n;
  }
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> all(memory.size());
    memory.get(all.data());
    return all;
  }
  int64_t least;
  Buffer memory, coded, made;
  sale_index_pages pages;
};

// An engine says which slots it is about to write: those of keys [from, to) of every sequence.
void forget(const Copy& copy, const std::vector<int32_t>& table, Codes& codes, int64_t from, int64_t to,
            const Stream& stream) {
  const sale_problem& p = copy.problem;
  std::vector<int64_t> slots{-1, codes.pages.pages * p.page_size};  // padding, and nobody's
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t j = from; j < to; ++j)
      slots.push_back(int64_t{table[static_cast<size_t>(b * p.pages + j / p.page_size)]} * p.page_size +
                      j % p.page_size);
  const Buffer there(slots.data(), slots.size() * 8);
  sale_index_slots s{};
  s.struct_size = sizeof s;
  s.coded = codes.pages.coded, s.layers = 1, s.pages = codes.pages.pages, s.page_size = p.page_size;
  s.slots = reinterpret_cast<const int64_t*>(there.data()), s.n_slots = static_cast<int64_t>(slots.size());
  s.stream = stream.get();
  ok(sale_index_forget(make_estimator(copy.layer).get(), &s), "sale_index_forget");
  stream.wait();
}

class IndexPages : public testing::TestWithParam<const char*> {};
const char* const lines[]{
    "qheads=4 kvheads=2 k=700 d=128 densebelow=0 local=32 tau=0.01 estimator=fp8:28 page=32",
    "batch=2 qheads=4 kvheads=1 k=500 d=64 densebelow=0 local=32 tau=0.01 estimator=fp8 type=f16 page=64",
    "batch=2 qheads=2 kvheads=2 k=450 d=128 densebelow=0 local=32 tau=0.01 estimator=int8 page=32",
    "qheads=4 kvheads=2 k=700 d=128 densebelow=0 local=32 tau=0.02 estimator=fp8:60 compensate=1 page=96"};
INSTANTIATE_TEST_SUITE_P(Problems, IndexPages, testing::ValuesIn(lines));

TEST_P(IndexPages, ChunksGiveTheBitsOfAnIndex) {
  const Case c = served_line(GetParam());
  Instance in(c);
  Copy copy(in);
  const Fixed fixed(copy);
  const int64_t total = c.batch * copy.problem.pages + 3;
  const Codes grown(copy, total, 64), whole(copy, total, 64);
  Codes saying(copy, total, 64);
  saying.say();
  const std::vector<int32_t> table = copy.table();
  std::vector<Index> indexes;
  std::vector<const sale_index*> handles;
  for (int64_t b = 0; b < c.batch; ++b) {
    indexes.push_back(copy.index(b));
    handles.push_back(indexes.back().get());
  }
  Random random(c.seed);
  const Stream stream;
  for (int64_t from = 0, to; from < c.k_len; from = to) {
    to = std::min(c.k_len, from + random.between(1, 400));
    sale_problem p = copy.problem;
    const std::vector<int64_t> starts(static_cast<size_t>(c.batch), from);
    p.q_starts = starts.data();
    p.q_len = to - from, p.k_len = to;
    sale_options o = copy.options;
    // Too short to be scanned, now and then: the codes are for those who come later.
    o.dense_below = random.one_in(3) ? int64_t{1} << 30 : 0;
    std::vector<std::byte> expected;
    forget(copy, table, saying, from, to, stream);
    const Codes* const kinds[3]{nullptr, &grown, &saying};
    for (const int kind : {0, 1, 2}) {
      const bool paged = kind != 0;
      const Work work(p, copy.layer, o, paged ? SALE_INDEX_PAGES : SALE_INDEX_GIVEN);
      sale_call call = copy.call();
      call.stream = stream.get();
      call.indexes = paged ? nullptr : handles.data();
      call.index_pages = paged ? &kinds[kind]->pages : nullptr;
      for (int64_t b = 0; !paged && b < c.batch; ++b) copy.update(indexes[static_cast<size_t>(b)], b, to, stream.get());
      copy.clear_outputs();
      work.run(call);
      copy.fetch();
      EXPECT_TRUE(work.workspace.margin_intact());
      if (!paged) expected = bytes_of(*in.out.memory);
      EXPECT_TRUE(bytes_of(*in.out.memory) == expected) << "the chunk from " << from << " gives other bits";
    }
  }
  // All at once, and once more over what is there.
  const std::vector<int64_t> none(static_cast<size_t>(c.batch), 0);
  sale_problem p = copy.problem;
  p.k_coded = none.data();
  const Work work(p, copy.layer, copy.options, SALE_INDEX_PAGES);
  sale_call call = copy.call();
  call.index_pages = &whole.pages;
  for (int i = 0; i < 2; ++i) {
    copy.clear_outputs();
    work.run(call);
    copy.fetch();
    EXPECT_TRUE(whole.bytes() == grown.bytes()) << "pages of codes differ";
  }
  EXPECT_TRUE(whole.bytes() == saying.bytes()) << "pages that say what they hold have other codes";
  std::vector<int32_t> holds(static_cast<size_t>(total), 0);
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t j = 0; j < c.k_len; ++j)
      ++holds[static_cast<size_t>(table[static_cast<size_t>(b * p.pages + j / p.page_size)])];
  EXPECT_EQ(saying.said(), holds);
  int64_t made = 0;
  saying.made.get(&made);
  EXPECT_GE(made, c.batch * c.k_len);
  // Codes that are there are read, and no page is written.
  const std::vector<int64_t> all(static_cast<size_t>(c.batch), c.k_len);
  p.k_coded = all.data();
  const auto expected = bytes_of(*in.out.memory);
  const Work reading(p, copy.layer, copy.options, SALE_INDEX_PAGES);
  copy.clear_outputs();
  reading.run(call);
  copy.fetch();
  EXPECT_TRUE(bytes_of(*in.out.memory) == expected) << "codes that were there give other bits";
  EXPECT_TRUE(whole.bytes() == grown.bytes()) << "pages that were to be read were written";
  // So are those that pages say they hold: other codes there stay, and are scanned.
  const Codes blank(copy, total, 64);
  call.index_pages = &saying.pages;
  saying.pages.memory = blank.memory.data();
  reading.run(call);
  EXPECT_TRUE(blank.bytes() == std::vector<std::byte>(blank.memory.size(), std::byte{0xab}));
  int64_t now = 0;
  saying.made.get(&now);
  EXPECT_EQ(now, made);
  EXPECT_TRUE(whole.memory.margin_intact() && grown.memory.margin_intact());
}

TEST(IndexPagesRefusals, HostMemory) {
  const Case c = served_line(lines[0]);
  Instance in(c);
  Copy copy(in);
  const Fixed fixed(copy);
  const sale_case::Memory host(1 << 20, 0xab, 64);
  const Work work(copy, SALE_INDEX_PAGES);
  sale_index_pages pages{sizeof pages, host.begin(), 1 << 14, 8, nullptr, nullptr};
  sale_call call = copy.call();
  call.index_pages = &pages;
  EXPECT_EQ(work.try_run(call), SALE_INVALID_ARGUMENT);
  EXPECT_NE(std::string(sale_last_error()).find("index_pages.memory: in host memory"), std::string::npos)
      << sale_last_error();
}

}  // namespace
}  // namespace sale_device
