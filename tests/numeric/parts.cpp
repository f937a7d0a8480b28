// Keys in two parts with the whole's reference given: each part's lists are the definition's, and merged by lse the
// parts are attention over both.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "case/random.hpp"
#include "harness.hpp"

namespace sale_test {
namespace {

using sale_case::Random;
using sale_oracle::BlockLists;

Case in_two(uint64_t seed) {
  Case c = sale_case::random_case(seed, {1500, 16'000'000});
  c.batch = 1;
  c.q_lens.clear();
  c.k_lens.clear();
  c.q_offsets.clear();
  c.q_offset = SALE_AUTO;
  c.k_len = std::max<int64_t>(c.k_len, 320);
  c.q_len = c.k_len;
  c.dense_below = 0;
  c.dtype = SALE_F32;
  c.compute = SALE_COMPUTE_EXACT;
  c.layout = sale_case::Layout::bhld;
  if (c.data >= sale_case::Data::huge) c.data = sale_case::Data::real_like;
  return c;
}

// A part: keys [begin, end) for rows from `row` on.
struct Part {
  int64_t begin, end, row;
};

sale_oracle::Head head_of_part(const Instance& in, int64_t h, const Part& part, const float* reference) {
  sale_oracle::Head head = head_of(in, 0, h);
  const auto cut = [&](sale_oracle::Floats& x, int64_t from, int64_t to) {
    x = {x.begin() + from * head.d, x.begin() + to * head.d};
  };
  cut(head.q, part.row, head.q_len);
  cut(head.k, part.begin, part.end);
  cut(head.v, part.begin, part.end);
  head.q_len -= part.row;
  head.k_len = part.end - part.begin;
  head.q_offset = part.row - part.begin;
  if (part.begin > 0) head.kept_sink = 0;
  if (reference != nullptr) head.reference = {reference, reference + head.q_len};
  return head;
}

struct Outcome {
  std::vector<BlockLists> lists;  // [head]
  std::vector<float> out, lse;    // [head, rows, d], [head, rows]
};

Outcome run_part(const Instance& in, const std::string& backend, const Part& part,
                 const std::vector<float>& reference) {
  const int64_t rows = in.c.q_len - part.row, heads = in.c.q_heads, d = in.c.head_dim;
  sale_problem p = in.problem;
  p.q_len = rows;
  p.k_len = part.end - part.begin;
  p.q_offset = part.row - part.begin;
  p.q_starts = p.k_starts = nullptr;
  p.part = 1;
  p.out = {heads * rows * d, rows * d, d};
  sale_layer layer = with_backend(in.layer, backend);
  if (part.begin > 0) layer.sink = 0;
  const Step step(p, layer, in.options);
  const Blocks blocks = make_blocks(step.plan);
  Outcome made;
  made.out.resize(static_cast<size_t>(heads * rows * d));
  made.lse.resize(static_cast<size_t>(heads * rows));
  sale_call call = in.call();
  call.q = in.q.row(0, 0, part.row);
  call.k = in.k.row(0, 0, part.begin);
  call.v = in.v.row(0, 0, part.begin);
  call.out = made.out.data();
  call.lse = made.lse.data();
  call.reference = reference.data();
  step.select(call, blocks);
  step.run(call);
  for (int32_t h = 0; h < heads; ++h) {
    made.lists.emplace_back();
    for (int64_t t = 0; t * 64 < rows; ++t) made.lists.back().push_back(read_row(blocks.get(), {0, h, t}));
  }
  return made;
}

void check_lists(const Instance& in, int64_t h, const Part& part, const float* reference, const BlockLists& got,
                 const std::string& who) {
  const auto head = head_of_part(in, h, part, reference);
  const auto mean = sale_oracle::mean(head.k, head.k_len, head.d);
  const auto tiles = sale_oracle::select(head, mean, estimator_of(in, h), {part.begin > 0 ? 0 : in.c.sink, in.c.local},
                                         in.tau(h), in.tau(h) == 0);
  for (size_t t = 0; t < tiles.size(); ++t)
    expect(got[t] == tiles[t].kept, who + ": head " + std::to_string(h) + " tile " + std::to_string(t) +
                                        " of keys from " + std::to_string(part.begin) +
                                        ": not what the definition says");
}

// Both parts, merged in double, against attention over the blocks of both.
void check_merged(const Instance& in, int64_t h, const Part& whole, const Outcome& a, const Outcome& b, int64_t cut,
                  const std::string& who) {
  const auto head = head_of_part(in, h, whole, nullptr);
  BlockLists both = a.lists[static_cast<size_t>(h)];
  for (size_t t = 0; t < both.size(); ++t)
    for (int32_t block : b.lists[static_cast<size_t>(h)][t]) both[t].push_back(block + static_cast<int32_t>(cut / 32));
  const auto exact = sale_oracle::attend(head, both, {});
  for (int64_t r = 0; r < head.q_len; ++r) {
    const auto row = static_cast<size_t>(h * head.q_len + r);
    const double x = a.lse[row], y = b.lse[row], top = std::max(x, y);
    const double wx = std::exp(x - top), wy = std::exp(y - top);
    const double lse = top + std::log(wx + wy), limit = 1e-4 + 1e-5 * std::fabs(lse);
    expect(std::fabs(lse - exact.lse[static_cast<size_t>(r)]) <= limit, who + ": lse of the parts, merged, is off");
    for (int64_t c = 0; c < head.d; ++c) {
      const auto at = row * static_cast<size_t>(head.d) + static_cast<size_t>(c),
                 e = static_cast<size_t>(r * head.d + c);
      const double merged = (wx * double{a.out[at]} + wy * double{b.out[at]}) / (wx + wy);
      const double error = std::fabs(merged - exact.out[e]);
      expect(error <= 1e-3 * exact.weighed[e] + 1e-30,
             who + ": the parts, merged, are off by " + std::to_string(error));
    }
  }
}

TEST(Parts, MergeToAttentionOverTheBlocksOfBoth) {
  Tally ignored;
  const std::string failures = in_parallel(
      60, [](int64_t i) { return in_two(300'000 + static_cast<uint64_t>(i)); },
      [](const Case& c) {
        const Instance in(c);
        Random random(c.seed);
        const int64_t cut = 32 * random.between(1, (c.k_len - 1) / 64);  // the second part is the larger one
        const int64_t row = (cut + 63) / 64 * 64;
        const size_t rows = static_cast<size_t>(c.q_len - row), heads = static_cast<size_t>(c.q_heads);
        // Any numbers define lists; these are what a row's scores come to, more or less.
        std::vector<float> reference(rows * heads);
        for (float& x : reference) x = static_cast<float>(random.between(-1000, 5000)) / 1000;
        if (random.one_in(4)) reference[reference.size() / 2] = -INFINITY;
        const Part first{0, cut, row}, second{cut, c.k_len, row};
        for (const std::string& backend : backends_for(in)) {
          const Outcome a = run_part(in, backend, first, reference), b = run_part(in, backend, second, reference);
          for (int32_t h = 0; h < c.q_heads; ++h) {
            const float* given = reference.data() + static_cast<size_t>(h) * rows;
            check_lists(in, h, first, given, a.lists[static_cast<size_t>(h)], backend);
            check_lists(in, h, second, given, b.lists[static_cast<size_t>(h)], backend);
            check_merged(in, h, {0, c.k_len, row}, a, b, cut, backend);
          }
        }
        return Tally{};
      },
      ignored);
  EXPECT_TRUE(failures.empty()) << failures;
}

// Rows that stand in a part's keys, behind them or far behind, in every form; tiles that keep nothing, and last blocks
// that are candidates.
TEST(Parts, AgreeWithTheOracle) {
  Tally total;
  const std::string failures = in_parallel(
      150,
      [](int64_t i) {
        Case c = sale_case::random_case(320'000 + static_cast<uint64_t>(i), {1200, 12'000'000});
        c.compensate = i % 3 == 0 && c.compute == SALE_COMPUTE_EXACT;
        return make_part(c);
      },
      [](const Case& c) {
        Instance in(c);
        give_reference(in);
        return check_instance(in);
      },
      total);
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_LT(total.kept, total.visible * 9 / 10);
}

// The reference of a row is the lse of attention to the sink and local keys alone: given that, one part that is the
// whole decides as without it, but for rounding.
TEST(Parts, AReferenceOfItsOwnChangesLittle) {
  Tally total;
  const std::string failures = in_parallel(
      40, [](int64_t i) { return in_two(310'000 + static_cast<uint64_t>(i)); },
      [](const Case& c) {
        Tally tally;
        Instance in(c);
        const float never = 1e30f;
        for (const std::string& backend : backends_for(in)) {
          sale_layer layer = with_backend(in.layer, backend);
          layer.thresholds = &never;
          layer.n_thresholds = 1;
          std::vector<float> reference(static_cast<size_t>(c.q_heads * c.q_len));
          in.clear_outputs();
          sale_call call = in.call();
          call.lse = reference.data();
          Step(in.problem, layer, in.options).run(call);
          const Outcome part = run_part(in, backend, {0, c.k_len, 0}, reference);
          in.clear_outputs();
          const Result whole = run(in, backend);
          int64_t differ = 0, all = 0;
          for (size_t h = 0; h < part.lists.size(); ++h)
            for (size_t t = 0; t < part.lists[h].size(); ++t) {
              std::vector<int32_t> difference;
              std::set_symmetric_difference(part.lists[h][t].begin(), part.lists[h][t].end(),
                                            whole.lists[0][h][t].begin(), whole.lists[0][h][t].end(),
                                            std::back_inserter(difference));
              differ += static_cast<int64_t>(difference.size());
              all += static_cast<int64_t>(2 * t + 2);
            }
          expect(differ * 200 <= all + 400, backend + ": " + std::to_string(differ) + " of " + std::to_string(all) +
                                                " blocks are decided otherwise");
          tally.exempted += differ;
          tally.candidates += all;
        }
        return tally;
      },
      total);
  EXPECT_TRUE(failures.empty()) << failures;
  // A short problem may have its two blocks; all together have not.
  EXPECT_LE(total.exempted * 1000, total.candidates) << total.exempted << " of " << total.candidates;
}

}  // namespace
}  // namespace sale_test
