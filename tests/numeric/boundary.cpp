// Thresholds to the last bit. A block list is a coarse witness of the arithmetic behind it: a slip in the last digits
// changes one block in millions. So look for the tau at which the definition just keeps a block and at the next float
// just drops it; the library must change its mind at the same place.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

#include "case/random.hpp"
#include "harness.hpp"

namespace sale_test {
namespace {

using sale_case::Random;

bool kept_by_definition(const Instance& in, const sale_oracle::Head& head, const sale_oracle::Floats& mean, float tau,
                        int64_t tile, int32_t block) {
  const auto tiles = sale_oracle::select(head, mean, estimator_of(in, 0), {in.c.sink, in.c.local}, tau, false);
  const auto& kept = tiles[static_cast<size_t>(tile)].kept;
  return std::binary_search(kept.begin(), kept.end(), block);
}

bool kept_by_library(Instance& in, const std::string& backend, float tau, int64_t tile, int32_t block) {
  sale_layer layer = with_backend(in.layer, backend);
  layer.thresholds = &tau;
  layer.n_thresholds = 1;
  const Step step(in.problem, layer, in.options);
  const Blocks blocks = make_blocks(step.plan);
  step.select(in.call(), blocks);
  const auto kept = read_lists(in, blocks.get())[0][0][static_cast<size_t>(tile)];
  return std::binary_search(kept.begin(), kept.end(), block);
}

// Positive floats ascend with their bits: the last tau that keeps the block, or 0 when it is kept or dropped always.
float last_keeping_tau(const std::function<bool(float)>& keeps) {
  uint32_t low = std::bit_cast<uint32_t>(1e-30f), high = std::bit_cast<uint32_t>(1e30f);
  if (!keeps(std::bit_cast<float>(low)) || keeps(std::bit_cast<float>(high))) return 0;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    (keeps(std::bit_cast<float>(middle)) ? low : high) = middle;
  }
  return std::bit_cast<float>(low);
}

Case small_case(int64_t i) {
  Random random(static_cast<uint64_t>(i) + 77);
  Case c;
  constexpr int32_t dims[]{64, 128, 32, 96};
  c.head_dim = dims[random.below(4)];
  c.q_len = random.between(1, 3);
  c.k_len = random.between(130, 330);
  c.sink = c.local = 32;
  c.dense_below = 0;
  c.dtype = static_cast<sale_dtype>(i % 3);
  constexpr sale_format formats[]{SALE_INT8, SALE_INT4, SALE_FP4};
  c.format = formats[i / 3 % 3];
  if (c.format != SALE_INT4 && random.one_in(3)) c.rank = 16;
  c.data = random.one_in(2) ? sale_case::Data::normal : sale_case::Data::real_like;
  c.threads = 1;
  c.seed = static_cast<uint64_t>(i);
  return c;
}

// INT4 adds q_mean . k in units of the codes' product; queries far from zero make that number large, up to where the
// definition gives up and keeps the block.
void move_queries(Instance& in, Random& random) {
  auto q = in.q.head(0, 0);
  const float most = in.c.dtype == SALE_F32 ? 22.0f : in.c.dtype == SALE_F16 ? 10.0f : 7.0f;
  const float by = std::exp2(most * random.uniform());
  for (float& x : q) x += by;
  in.q.set_head(0, 0, q);
}

Tally check_boundary(const Case& c) {
  Instance in(c);
  Random random(c.seed + 1);
  if (c.format == SALE_INT4 && random.one_in(2)) move_queries(in, random);
  const auto head = head_of(in, 0, 0);
  const auto mean = sale_oracle::mean(head.k, head.k_len, head.d);
  const auto tiles = sale_oracle::select(head, mean, estimator_of(in, 0), {c.sink, c.local}, 0.01f, false);
  if (tiles[0].candidates.empty()) return {};
  const auto& all = tiles[0].candidates;
  const int32_t block = all[static_cast<size_t>(random.below(static_cast<int64_t>(all.size())))].block;
  float tau = last_keeping_tau([&](float t) { return kept_by_definition(in, head, mean, t, 0, block); });
  const bool always = tau == 0;
  if (always) tau = 1.0f;
  const float next = std::nextafter(tau, 2e30f);
  for (const std::string& backend : backends_for(in))
    for (const float t : {tau, next}) {
      const bool expected = always ? kept_by_definition(in, head, mean, t, 0, block) : t == tau;
      char text[64];
      std::snprintf(text, sizeof text, "%.9g", static_cast<double>(t));
      expect(kept_by_library(in, backend, t, 0, block) == expected,
             backend + ": block " + std::to_string(block) +
                 (expected ? " must be kept at tau " : " must be dropped at tau ") + text);
    }
  Tally tally;
  tally.cases = always ? 0 : 1;
  return tally;
}

TEST(Boundary, BlocksFlipAtTheSameTau) {
  Tally total;
  const std::string failures = in_parallel(600, small_case, check_boundary, total);
  std::printf("boundary: %lld blocks flip at the tau of the definition, to the float\n",
              static_cast<long long>(total.cases));
  EXPECT_TRUE(failures.empty()) << failures;
  EXPECT_GE(total.cases, 400);
}

}  // namespace
}  // namespace sale_test
