// Sliding windows on CPU backends: against the oracle, and what must not depend on the keys they left behind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "harness.hpp"

namespace sale_test {
namespace {

// Windows of a key, smaller than a block, around blocks, tiles and the local region, nearly and more than all keys;
// rows that stand beyond the keys and see few of them or none.
TEST(Windows, AgreeWithTheOracle) {
  constexpr int64_t windows[]{1,   2,   31,  32,  33,  63,  64,  65,  127, 128, 129,
                              160, 190, 191, 222, 223, 224, 300, 400, 499, 500, 700};
  constexpr sale_format formats[]{SALE_INT8, SALE_INT4, SALE_FP4};
  const auto make = [&](int64_t i) {
    Case c;
    c.k_len = 500;
    c.q_len = i % 3 == 0 ? 500 : 200;
    c.q_offset = i % 5 == 4 ? 400 : SALE_AUTO;
    c.window = windows[i % static_cast<int64_t>(std::size(windows))];
    c.window_sink = i % 2 == 1;
    c.sink = i % 7 == 0 ? 96 : 32;
    c.local = i % 4 == 0 ? 32 : 128;
    c.q_heads = static_cast<int32_t>(1 + i % 3);
    c.head_dim = i % 2 == 0 ? 64 : 128;
    c.dense_below = 0;
    c.taus = {i % 11 == 0 ? 0.0f : i % 13 == 0 ? SALE_TAU_LOCAL : 0.05f};
    c.format = formats[i / 2 % 3];
    c.compute = i % 6 == 5 ? SALE_COMPUTE_INT8 : SALE_COMPUTE_EXACT;
    c.compensate = c.compute == SALE_COMPUTE_EXACT && i % 4 == 2;
    c.dtype = static_cast<sale_dtype>(i % 3);
    c.seed = static_cast<uint64_t>(i) + 700;
    return c;
  };
  Tally total;
  const std::string failures = in_parallel(6 * static_cast<int64_t>(std::size(windows)), make, check_case, total);
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_LT(total.kept, total.visible);
}

TEST(Windows, OfManyKeys) {
  for (const char* line :
       {"qheads=2 kvheads=1 q=130 k=9000 d=64 window=4096 tau=0.02",
        "qheads=2 kvheads=1 q=130 k=9000 d=64 window=3000 windowsink=1 tau=50 compensate=1",
        "batch=3 qheads=2 kvheads=1 qlens=900,64,300 klens=900,2000,1500 d=64 window=400 layout=packed"}) {
    const Tally tally = check_case(sale_case::parse(std::string(line) + " densebelow=0"));
    EXPECT_LT(tally.kept, tally.visible) << line;
  }
}

// A window that leaves nothing out is none, to the bit.
TEST(Windows, OfAllKeysAreNone) {
  on_random_cases(
      61'000, 20, [](Case& c) { c.window = 0, c.window_sink = false; },
      [](Instance& in, const std::string& backend) {
        const Result without = run(in, backend);
        int64_t reach = 0;
        for (const sale_case::Sequence& s : in.sequences) reach = std::max(reach, s.q_offset + s.q_len);
        for (const int32_t sink : {0, 1}) {
          in.problem.window = reach, in.problem.window_sink = sink;
          const Result with = run(in, backend);
          expect(with == without, "a window of all keys is not the same as none");
          expect(with.visible == without.visible, "a window of all keys hides blocks");
        }
      });
}

// How many blocks tiles see, and that what a window of the local region or little more holds is kept without a look at
// its codes: they say that every block could be dropped.
TEST(Windows, NearTheLocalRegionAreNotScanned) {
  for (const char* more : {"window=100", "window=128", "window=128 windowsink=1", "window=190"}) {
    Instance in(
        sale_case::parse(std::string("qheads=2 kvheads=1 k=2048 d=64 densebelow=0 tau=1000000 local=128 ") + more));
    const int64_t sink = in.c.window_sink ? 1 : 0;
    int64_t visible = 0;
    for (int64_t tile = 0; tile < 32; ++tile) {
      const int64_t first = std::max<int64_t>(0, tile * 64 + 1 - in.c.window) / 32;
      const int64_t end = (tile + 1) * 2;
      visible += end - first + std::min(sink, first);
    }
    for (const std::string& backend : backends_for(in)) {
      const Result r = run(in, backend);
      EXPECT_EQ(r.visible, 2 * visible) << backend << ": " << more;
      EXPECT_EQ(r.kept, r.visible) << backend << ": " << more;
    }
  }
}

// Keys and values that all rows have left behind are not read by what attends, audits or selects: NaN there changes no
// bit. (Codes of the layer's own smoothing: those of a block depend on its keys alone.)
TEST(Windows, WhatIsLeftBehindDoesNotCount) {
  on_random_cases(
      62'000, 24,
      [](Case& c) {
        regular(c);
        c.batch = 1;
        c.q_lens.clear(), c.k_lens.clear(), c.q_offsets.clear();
        c.k_len = 600 + static_cast<int64_t>(c.seed % 90);
        c.q_len = 40 + static_cast<int64_t>(c.seed % 150);
        c.q_offset = SALE_AUTO;
        c.q_heads = 2, c.kv_heads = 1;
        c.taus.assign(1, 0.05f);
        c.window = 1 + static_cast<int64_t>(c.seed * 37 % 400);
        c.window_sink = c.seed % 2 == 1;
        c.compute = SALE_COMPUTE_EXACT;  // others smooth by the mean of all keys
        c.layout = sale_case::Layout::bhld;
        c.with_index = false;
      },
      [](Instance& in, const std::string& backend) {
        const std::vector<float> smoothing = give_smoothing(in);
        in.options.compensate = in.c.seed % 3 == 0;
        const Result before = run(in, backend);
        const int64_t first = std::max<int64_t>(0, in.sequences[0].q_offset + 1 - in.c.window) / 32 * 32;
        const int64_t sink = in.c.window_sink ? in.c.sink : 0;
        auto k = in.k.head(0, 0), v = in.v.head(0, 0);
        for (int64_t j = sink; j < first; ++j)
          for (int64_t e = j * in.c.head_dim; e < (j + 1) * in.c.head_dim; ++e)
            k[static_cast<size_t>(e)] = v[static_cast<size_t>(e)] = std::numeric_limits<float>::quiet_NaN();
        const auto old_k = in.k.head(0, 0), old_v = in.v.head(0, 0);
        in.k.set_head(0, 0, k), in.v.set_head(0, 0, v);
        const Result after = run(in, backend);
        expect(after == before, "keys that all rows have left behind change the result");
        in.k.set_head(0, 0, old_k), in.v.set_head(0, 0, old_v);
      });
}

// Block lists of a windowed plan begin with what is visible, and take nothing else.
TEST(Windows, ListsHoldWhatIsVisible) {
  Instance in(sale_case::parse("k=1000 d=64 densebelow=0 window=200"));
  for (const std::string& backend : backends_for(in)) {
    const Step step(in.problem, with_backend(in.layer, backend), in.options);
    const Blocks blocks = make_blocks(step.plan);
    const Lists lists = read_lists(in, blocks.get());
    EXPECT_EQ(lists[0][0], sale_oracle::all_blocks(head_of(in, 0, 0))) << backend;
    const sale_tile last{0, 0, 15};  // rows 960 .. 999 see keys 761 .. 999
    const int32_t behind = 22, one = 23;
    EXPECT_EQ(sale_blocks_set_row(blocks.get(), last, &behind, 1), SALE_INVALID_ARGUMENT);
    EXPECT_STREQ(sale_last_error(), "kept: element 0 is 22, which the tile's windows have left behind");
    EXPECT_EQ(sale_blocks_set_row(blocks.get(), last, &one, 1), SALE_OK);
    EXPECT_EQ(read_row(blocks.get(), last), std::vector<int32_t>{23});
  }
}

// A prompt in chunks, each over all keys so far, gives the bits of the whole where tiles begin alike.
TEST(Windows, InChunks) {
  Instance whole(
      sale_case::parse("qheads=2 kvheads=1 k=1024 d=64 type=f32 densebelow=0 window=333 windowsink=1 tau=0.02"));
  const std::vector<float> smoothing = give_smoothing(whole);
  for (const std::string& backend : backends_for(whole)) {
    run(whole, backend);
    const auto all = whole.out.head(0, 1);
    Instance part(sale_case::parse(
        "qheads=2 kvheads=1 q=256 k=1024 offset=512 d=64 type=f32 densebelow=0 window=333 windowsink=1 tau=0.02"));
    part.layer.smoothing = smoothing.data();
    for (int64_t h = 0; h < 2; ++h) {
      const auto q = whole.q.head(0, h);
      part.q.set_head(0, h, {q.begin() + 512 * 64, q.begin() + 768 * 64});
    }
    part.k.set_head(0, 0, whole.k.head(0, 0)), part.v.set_head(0, 0, whole.v.head(0, 0));
    run(part, backend);
    const auto some = part.out.head(0, 1);
    EXPECT_EQ(std::memcmp(some.data(), all.data() + 512 * 64, some.size() * 4), 0) << backend;
  }
}

}  // namespace
}  // namespace sale_test
