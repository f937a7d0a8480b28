// Keys, values and codes in pages: the bits of the same ones in order, whoever shares a page.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "case/random.hpp"
#include "harness.hpp"

namespace sale_test {
namespace {

using sale_case::Memory;
using sale_case::Random;

// One sequence after the other has its own memory, and calls may have other strides.
void separate(Case& c) {
  if (c.layout == sale_case::Layout::packed || c.layout == sale_case::Layout::fused) c.layout = sale_case::Layout::bhld;
}
void regular_and_separate(Case& c) {
  separate(c);
  regular(c);
}

// Keys and values of an Instance in shuffled pages [keys, kv_heads, head_dim], all else 0xff. The first `shared` pages
// of every sequence are the first one's.
struct Cache {
  Cache(const Instance& in, int32_t page_size, int64_t shared = 0)
      : size(page_size), row(in.c.head_dim * sale_case::bytes_of(in.c.dtype)), page(size * in.c.kv_heads * row) {
    for (const auto& s : in.sequences) each = std::max(each, (s.k_len + size - 1) / size);
    total = in.c.batch * each;
    table.resize(static_cast<size_t>(total));
    std::iota(table.begin(), table.end(), 0);
    Random random(in.c.seed);
    for (size_t i = table.size(); i > 1; --i)
      std::swap(table[i - 1], table[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    for (int32_t b = 1; b < in.c.batch; ++b) std::copy_n(table.begin(), shared, table.begin() + b * each);
    k = std::make_unique<Memory>(static_cast<size_t>(total * page), 0xff, 64);
    v = std::make_unique<Memory>(k->size(), 0xff, 64);
    strides = {size * in.c.kv_heads * in.c.head_dim, int64_t{in.c.head_dim}, int64_t{in.c.kv_heads} * in.c.head_dim};
    for (int64_t b = 0; b < in.c.batch; ++b)
      for (int64_t h = 0; h < in.c.kv_heads; ++h)
        for (int64_t j = 0; j < in.sequences[static_cast<size_t>(b)].k_len; ++j) {
          const int64_t at =
              table[static_cast<size_t>(b * each + j / size)] * page + j % size * in.c.kv_heads * row + h * row;
          std::memcpy(k->begin() + at, in.k.row(b, h, j), static_cast<size_t>(row));
          std::memcpy(v->begin() + at, in.v.row(b, h, j), static_cast<size_t>(row));
        }
  }
  sale_problem problem(const Instance& in) const {
    sale_problem p = in.problem;
    p.page_size = size, p.pages = each;
    p.k = p.v = strides;
    return p;
  }
  sale_call call(const Instance& in) const {
    sale_call c = in.call();
    c.k = k->begin(), c.v = v->begin();
    c.page_table = table.data();
    return c;
  }
  int32_t size;
  int64_t row, page, each = 1, total = 0;  // bytes of a row and of a page; pages of a sequence, and in all
  std::vector<int32_t> table;
  std::unique_ptr<Memory> k, v;
  sale_strides strides;
};

// Pages of codes for a cache, `gap` bytes between them.
struct Codes {
  Codes(const Estimator& layer, const Cache& cache, int64_t gap = 0)
      : least(static_cast<int64_t>(sale_index_page_bytes(layer.get(), cache.size))),
        memory(static_cast<size_t>((least + gap) * cache.total), 0xab, 64) {
    pages.struct_size = sizeof pages;
    pages.memory = memory.begin();
    pages.page_bytes = least + gap;
    pages.pages = cache.total;
  }
  // From now on pages say themselves what they hold: nothing yet.
  void say() {
    coded.assign(static_cast<size_t>(pages.pages), 0);
    pages.coded = coded.data();
    made = 0;
    pages.made = &made;
  }
  std::vector<std::byte> page(int32_t i) const {
    const std::byte* at = memory.begin() + i * pages.page_bytes;
    return {at, at + least};
  }
  int64_t least;
  Memory memory;
  sale_index_pages pages{};
  std::vector<int32_t> coded;
  int64_t made = 0;
};

// The slots of the keys that a chunk brings are written: an engine says so before.
void forget(const Estimator& layer, const Cache& cache, Codes& codes, const std::vector<int64_t>& from,
            const std::vector<int64_t>& to) {
  std::vector<int64_t> slots{-1, cache.total * cache.size};  // padding, and nobody's
  for (size_t b = 0; b < from.size(); ++b)
    for (int64_t j = from[b]; j < to[b]; ++j)
      slots.push_back(cache.table[b * static_cast<size_t>(cache.each) + static_cast<size_t>(j / cache.size)] *
                          cache.size +
                      j % cache.size);
  sale_index_slots s{};
  s.struct_size = sizeof s;
  s.coded = codes.coded.data(), s.layers = 1, s.pages = cache.total, s.page_size = cache.size;
  s.slots = slots.data(), s.n_slots = static_cast<int64_t>(slots.size());
  ok(sale_index_forget(layer.get(), &s), "sale_index_forget");
}

// With the call's own index and with given ones.
TEST(Pages, AreTheKeysInOrder) {
  on_random_cases(430'000, 60, separate, [](Instance& in, const std::string& backend) {
    const Result whole = run(in, backend);
    Random random(in.c.seed);
    const Cache cache(in, static_cast<int32_t>(16 * random.between(1, 5)));
    for (const int32_t source : {SALE_INDEX_OF_CALL, SALE_INDEX_GIVEN}) {
      const Step step(cache.problem(in), with_backend(in.layer, backend), in.options, source);
      std::vector<Index> indexes;
      std::vector<const sale_index*> handles;
      for (int64_t b = 0; source == SALE_INDEX_GIVEN && b < in.c.batch; ++b) {
        const int64_t keys = in.sequences[static_cast<size_t>(b)].k_len;
        indexes.push_back(make_index(step.layer, keys, cache.size));
        handles.push_back(indexes.back().get());
        ok(sale_index_update(indexes.back().get(), cache.k->begin(), cache.strides, keys,
                             cache.table.data() + b * cache.each, nullptr),
           "sale_index_update");
      }
      sale_call call = cache.call(in);
      call.indexes = source == SALE_INDEX_GIVEN ? handles.data() : nullptr;
      in.clear_outputs();
      step.run(call);
      expect(in.outputs_intact(), "a paged run wrote outside out's or lse's rows");
      expect(std::memcmp(in.out.memory->begin(), whole.out.data(), whole.out.size()) == 0 &&
                 std::memcmp(in.lse->begin(), whole.lse.data(), whole.lse.size()) == 0,
             backend + ": paged, index source " + std::to_string(source) + ", gives other bits");
    }
  });
}

// Every sequence's next rows, a random number of them, as a ragged batch.
struct Chunks {
  explicit Chunks(const Instance& in) : done(static_cast<size_t>(in.c.batch)), now(done.size()), next(done.size()) {}
  bool step(const Instance& in, Random& random) {
    done = next;
    bool any = false;
    for (size_t b = 0; b < done.size(); ++b) {
      const int64_t left = in.sequences[b].k_len - done[b];
      any |= left > 0;
      // One that is through does its last row again.
      if (left == 0) --done[b];
      now[b] = left == 0 ? 1 : random.between(1, left);
      next[b] = done[b] + now[b];
    }
    return any;
  }
  void put(sale_problem& p) const {
    p.q_lens = now.data(), p.q_starts = p.q_offsets = done.data(), p.k_lens = next.data();
  }
  std::vector<int64_t> done, now, next;
};

// A prompt in chunks, its codes in pages that grow with it, beside indexes that do; and in pages that say themselves
// what they hold, of which some forget it. Whether a chunk is scanned or too short for it, its codes are there for the
// next one.
TEST(IndexPages, ChunksGiveTheBitsOfAnIndex) {
  const auto adjust = [](Case& c) {
    regular_and_separate(c);
    c.q_offset = SALE_AUTO, c.q_lens = c.k_lens, c.q_offsets.clear(), c.q_len = c.k_len;
  };
  int64_t kept = 0, visible = 0;
  on_random_cases(470'000, 60, adjust, [&](Instance& in, const std::string& backend) {
    const std::vector<float> smoothing = give_smoothing(in);
    Random random(in.c.seed + 1);
    const Cache cache(in, static_cast<int32_t>(32 * random.between(1, 4)));
    const Estimator layer = make_estimator(with_backend(in.layer, backend));
    const bool dense = std::count(in.c.taus.begin(), in.c.taus.end(), 0.0f) == std::ssize(in.c.taus);
    const Codes grown(layer, cache, 64 * random.between(0, 2)), whole(layer, cache);
    Codes saying(layer, cache);
    saying.say();
    std::vector<Index> indexes;
    std::vector<const sale_index*> handles;
    for (const auto& s : in.sequences) {
      indexes.push_back(make_index(layer, s.k_len, cache.size));
      handles.push_back(indexes.back().get());
    }
    for (Chunks chunks(in); chunks.step(in, random);) {
      sale_problem p = cache.problem(in);
      chunks.put(p);
      sale_options o = in.options;
      o.dense_below = random.one_in(3) ? int64_t{1} << 30 : 0;
      for (size_t b = 0; b < indexes.size(); ++b)
        ok(sale_index_update(indexes[b].get(), cache.k->begin(), cache.strides, chunks.next[b],
                             cache.table.data() + static_cast<int64_t>(b) * cache.each, nullptr),
           "sale_index_update");
      for (int32_t& n : saying.coded)
        if (random.one_in(6)) n = static_cast<int32_t>(random.between(0, n));
      forget(layer, cache, saying, chunks.done, chunks.next);
      std::vector<std::byte> expected;
      sale_stats stats[3]{};
      const Codes* const kinds[3]{nullptr, &grown, &saying};
      for (size_t kind = 0; kind < 3; ++kind) {
        const Step step(p, with_backend(in.layer, backend), o, kind == 0 ? SALE_INDEX_GIVEN : SALE_INDEX_PAGES);
        sale_call call = cache.call(in);
        call.indexes = kind == 0 ? handles.data() : nullptr;
        call.index_pages = kind == 0 ? nullptr : &kinds[kind]->pages;
        stats[kind].struct_size = sizeof(sale_stats);
        call.stats = &stats[kind];
        in.clear_outputs();
        step.run(call);
        if (kind == 0) expected = outputs(in);
        expect(outputs(in) == expected, backend + ": a chunk with index pages gives other bits");
        expect(stats[0].kept_blocks == stats[kind].kept_blocks,
               backend + ": a chunk with index pages keeps other blocks");
      }
      for (size_t b = 0; b < chunks.next.size(); ++b)
        for (int64_t at = 0; at * cache.size < chunks.next[b]; ++at) {
          const int32_t page = cache.table[b * static_cast<size_t>(cache.each) + static_cast<size_t>(at)];
          expect(saying.coded[static_cast<size_t>(page)] ==
                     (dense ? 0 : std::min<int64_t>(cache.size, chunks.next[b] - at * cache.size)),
                 backend + ": page " + std::to_string(page) + " says it holds " +
                     std::to_string(saying.coded[static_cast<size_t>(page)]));
        }
      kept += stats[1].kept_blocks, visible += stats[1].visible_blocks;
    }
    // All at once, and once more over what a preempted request left behind: the same pages.
    const std::vector<int64_t> none(static_cast<size_t>(in.c.batch), 0);
    sale_problem p = cache.problem(in);
    p.k_coded = none.data();
    const Step step(p, with_backend(in.layer, backend), in.options, SALE_INDEX_PAGES);
    for (int i = 0; i < 2; ++i) {
      sale_call call = cache.call(in);
      call.index_pages = &whole.pages;
      step.run(call);
      for (int64_t b = 0; b < in.c.batch; ++b)
        for (int64_t at = 0; at * cache.size < in.sequences[static_cast<size_t>(b)].k_len; ++at) {
          const int32_t page = cache.table[static_cast<size_t>(b * cache.each + at)];
          for (const Codes* codes : {&grown, static_cast<const Codes*>(&saying)})
            expect(whole.page(page) == codes->page(page),
                   backend + ": page " + std::to_string(page) + " of codes differs");
        }
    }
  });
  EXPECT_LT(kept, visible);
}

// Sequences that begin alike share pages: what the first has coded the others find, and do not code again.
TEST(IndexPages, OfACommonPrefixAreShared) {
  const auto adjust = [](Case& c) {
    regular_and_separate(c);
    c.batch = 2, c.q_offset = SALE_AUTO, c.q_lens.clear(), c.k_lens.clear(), c.q_offsets.clear();
    c.k_len = std::max<int64_t>(c.k_len, 300);
    c.q_len = c.k_len;
    c.dense_below = 0;
    if (std::count(c.taus.begin(), c.taus.end(), 0.0f) != 0) c.taus = {0.01f};
  };
  on_random_cases(480'000, 40, adjust, [](Instance& in, const std::string& backend) {
    Random random(in.c.seed + 2);
    const int32_t size = static_cast<int32_t>(32 * random.between(1, 3));
    const int64_t shared = random.between(1, in.c.k_len / size), prefix = shared * size;
    for (int64_t h = 0; h < in.c.kv_heads; ++h)
      for (int64_t j = 0; j < prefix; ++j)
        for (const sale_case::Tensor* t : {&in.k, &in.v})
          std::memcpy(t->row(1, h, j), t->row(0, h, j),
                      static_cast<size_t>(in.c.head_dim * sale_case::bytes_of(in.c.dtype)));
    const std::vector<float> smoothing = give_smoothing(in);
    const sale_layer layer = with_backend(in.layer, backend);
    const Step own(in.problem, layer, in.options);
    in.clear_outputs();
    own.run(in.call());
    const auto expected = outputs(in);

    const Cache cache(in, size, shared);
    Codes codes(own.layer, cache);
    sale_problem p = cache.problem(in);
    const std::vector<int64_t> coded{0, prefix};
    p.k_coded = coded.data();
    const Step first(p, layer, in.options, SALE_INDEX_PAGES);
    sale_call call = cache.call(in);
    call.index_pages = &codes.pages;
    // The first sequence's pages are written by a call of its own.
    sale_problem alone = p;
    alone.batch = 1;
    const Step before(alone, layer, in.options, SALE_INDEX_PAGES);
    before.run(call);
    in.clear_outputs();
    first.run(call);
    expect(outputs(in) == expected, backend + ": sequences that share pages of codes give other bits");
    // Codes that are there are taken as they are.
    const std::vector<int64_t> all{in.c.k_len, in.c.k_len};
    p.k_coded = all.data();
    const Step again(p, layer, in.options, SALE_INDEX_PAGES);
    const auto kept = std::vector<std::byte>(codes.memory.begin(), codes.memory.begin() + codes.memory.size());
    in.clear_outputs();
    again.run(call);
    expect(outputs(in) == expected, backend + ": codes that were there give other bits");
    codes.memory.refill();
    again.run(call);
    expect(std::all_of(codes.memory.begin(), codes.memory.begin() + codes.memory.size(),
                       [](std::byte x) { return x == std::byte{0xab}; }),
           backend + ": codes that were there were made again");
    first.run(call);
    for (int64_t at = shared; at * size < in.c.k_len; ++at) {
      const int32_t page = cache.table[static_cast<size_t>(cache.each + at)];
      const auto now = codes.page(page);
      expect(std::equal(now.begin(), now.end(), kept.begin() + page * codes.pages.page_bytes),
             backend + ": codes from k_coded on were not made");
    }
    // Pages that say themselves what they hold: both sequences at once find nothing, then everything.
    codes.memory.refill();
    codes.say();
    in.clear_outputs();
    again.run(call);
    expect(outputs(in) == expected, backend + ": pages shared within a call give other bits");
    expect(std::equal(kept.begin(), kept.end(), codes.memory.begin()), backend + ": pages of codes differ");
    expect(codes.made == 2 * in.c.k_len - prefix, backend + ": " + std::to_string(codes.made) + " keys were coded");
    codes.memory.refill();
    again.run(call);
    expect(std::all_of(codes.memory.begin(), codes.memory.begin() + codes.memory.size(),
                       [](std::byte x) { return x == std::byte{0xab}; }),
           backend + ": codes that pages say they hold were made again");
    expect(codes.made == 2 * in.c.k_len - prefix, backend + ": codes that pages say they hold were counted again");
  });
}

}  // namespace
}  // namespace sale_test
