// Codes to the bit, INT8 lists to the bit, FP8 lists within what rounding of the sums can do, attention within its
// bound.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "case/random.hpp"
#include "device.hpp"

namespace sale_device {
namespace {

using sale_oracle::Head;

bool same_float(float a, float b) { return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b)); }

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", x);
  return text;
}

// What every list holds: nothing beyond the visible blocks, all that is always kept.
void check_frame(const Head& h, const sale_oracle::BlockLists& lists, const sale_oracle::Regions& r, bool dense,
                 const std::string& where) {
  for (size_t t = 0; t < lists.size(); ++t) {
    const auto range = sale_oracle::wide_range(h, static_cast<int64_t>(t), r);
    for (int64_t b = 0; b < range.visible; ++b) {
      const bool kept = std::binary_search(lists[t].begin(), lists[t].end(), static_cast<int32_t>(b));
      const std::string block = where + " tile " + std::to_string(t) + ": block " + std::to_string(b);
      if (!h.sees_block(static_cast<int64_t>(t), b, tested().tile))
        expect(!kept, block + " is kept, but no row sees any of it");
      else if (dense || b < range.first || b >= range.last)
        expect(kept, block + " is always kept, but dropped");
    }
    expect(lists[t].empty() || lists[t].back() < range.visible, where + ": a block beyond the visible ones");
  }
}

bool kept_in(const std::vector<sale_oracle::Tile>& tiles, size_t t, int32_t block) {
  return t < tiles.size() && std::any_of(
                                 tiles[t].candidates.begin(), tiles[t].candidates.end(),
                                 [&](const auto& c) { return c.block == block && c.kept; });
}

void check_int8(const Instance& in, int64_t h, const Head& head, const sale_oracle::BlockLists& lists,
                const sale_oracle::Regions& r, const std::string& where, Tally& tally) {
  const auto mean = sale_oracle::mean(head.k, head.k_len, head.d);
  const auto tiles = sale_oracle::select(head, mean, estimator_of(in, h), r, in.tau(h), false);
  for (size_t t = 0; t < lists.size(); ++t) {
    const auto range = sale_oracle::wide_range(head, static_cast<int64_t>(t), r);
    for (int64_t b = range.first; b < range.last; ++b) {
      const auto block = static_cast<int32_t>(b);
      const bool want = kept_in(tiles, 2 * t, block) || kept_in(tiles, 2 * t + 1, block);
      const bool got = std::binary_search(lists[t].begin(), lists[t].end(), block);
      ++tally.candidates;
      expect(want == got, where + " tile " + std::to_string(t) + " block " + std::to_string(b) +
                              (got ? " kept" : " dropped") + ", not what the definition says");
    }
  }
}

void check_fp8(const Instance& in, int64_t h, const Head& head, const sale_oracle::BlockLists& lists,
               const sale_oracle::Regions& r, const std::string& where, Tally& tally) {
  // Scores beyond f32's range are infinite there and numbers in the oracle.
  if (in.c.data == sale_case::Data::huge) return;
  const auto e = estimator_of(in, h);
  const auto mean = sale_oracle::mean(head.k, head.k_len, head.d);
  const auto keys = sale_oracle::fp8_keys(head.k, head.k_len, head.d, mean, e, head.k_len);
  const auto tiles = sale_oracle::fp8_select(head, mean, keys, e, r, in.tau(h), in.c.dtype);
  for (size_t t = 0; t < lists.size(); ++t)
    for (size_t i = 0; i < tiles[2 * t].size(); ++i) {
      auto c = tiles[2 * t][i];
      if (2 * t + 1 < tiles.size()) {
        const auto& other = tiles[2 * t + 1][i];
        c.margin = std::max(c.margin, other.margin);
        c.low = std::max(c.low, other.low);
        c.high = std::max(c.high, other.high);
      }
      const bool got = std::binary_search(lists[t].begin(), lists[t].end(), c.block);
      ++tally.candidates;
      if (got == !(c.margin < 0)) continue;
      ++tally.exempted;
      expect(got ? c.high >= 0 : c.low <= 0,
             where + " tile " + std::to_string(t) + " block " + std::to_string(c.block) + (got ? " kept" : " dropped") +
                 " with a margin of " + number(c.margin) + ", which rounding could make " + number(c.low) + " .. " +
                 number(c.high));
    }
}

}  // namespace

// first: keys of the update that fixed the smoothing vector and FP8's scale.
void check_device_codes(const Instance& in, int64_t b, int64_t kv, const sale_index* index, int64_t first) {
  const int64_t group = in.c.q_heads / in.c.kv_heads, k_len = sale_index_length(index);
  const auto keys = in.k.head(b, kv);
  const auto e = estimator_of(in, kv * group);
  const auto mean = sale_oracle::mean(keys, first, in.c.head_dim);
  const int8_t* codes;
  const float *scales, *smoothing;
  ok(sale_index_codes(index, static_cast<int32_t>(kv), &codes, &scales, &smoothing), "sale_index_codes");
  const std::string where = "sequence " + std::to_string(b) + " kv head " + std::to_string(kv);
  for (size_t c = 0; c < mean.size(); ++c)
    expect(same_float(mean[c], smoothing[c]), where + ": smoothing of coordinate " + std::to_string(c) + " is " +
                                                  number(smoothing[c]) + ", expected " + number(mean[c]));
  std::vector<uint8_t> want;
  std::vector<float> want_scales;
  if (in.c.format == SALE_FP8) {
    auto expected = sale_oracle::fp8_keys(keys, k_len, in.c.head_dim, mean, e, first);
    want = std::move(expected.codes);
    want_scales = {expected.scale};
  } else {
    const auto expected = sale_oracle::key_codes(keys, k_len, in.c.head_dim, mean, e);
    want.assign(expected.codes.begin(), expected.codes.end());
    want_scales = expected.scales;
  }
  for (size_t i = 0; i < want_scales.size(); ++i)
    expect(same_float(want_scales[i], scales[i]), where + ": key scale " + std::to_string(i) + " is " +
                                                      number(scales[i]) + ", expected " + number(want_scales[i]));
  for (size_t i = 0; i < want.size() && i < static_cast<size_t>(k_len * e.rank); ++i)
    expect(want[i] == static_cast<uint8_t>(codes[i]),
           where + ": code of key " + std::to_string(static_cast<int64_t>(i) / e.rank) + " coordinate " +
               std::to_string(static_cast<int64_t>(i) % e.rank) + " is " +
               std::to_string(static_cast<uint8_t>(codes[i])) + ", expected " + std::to_string(want[i]));
}

Tally check_device_case(const Case& c) {
  Instance in(c);
  return check_device_instance(in);
}

Tally check_device_instance(Instance& in) {
  const Case& c = in.c;
  Copy copy(in);
  const Result r = run(copy);
  Tally tally;
  tally.cases = tally.backend_runs = 1;
  tally.kept = r.kept;
  tally.visible = r.visible;
  const Lists lists = narrow(r.lists, in);
  const sale_oracle::Regions regions{c.sink, c.local};
  for (int64_t b = 0; b < c.batch; ++b) {
    const auto s = static_cast<size_t>(b);
    for (int64_t kv = 0; kv < c.kv_heads; ++kv)
      check_device_codes(in, b, kv, r.indexes[s].get(), in.sequences[s].k_len);
    for (int64_t h = 0; h < c.q_heads; ++h) {
      const std::string where = "sequence " + std::to_string(b) + " head " + std::to_string(h);
      Head head = head_of(in, b, h);
      head.rule_rows = tested().tile;
      const auto& wide = r.lists[s][static_cast<size_t>(h)];
      const bool dense = in.dense(b) || in.tau(h) == 0;
      if (tested().int4()) {
        sale_test::check_list(in, b, h, wide, tested().name, tally);
        const Expected e = expected_attention(in, b, h, wide, tested().tile);
        tally.worst = std::max(tally.worst, check_attention(in, b, h, e, tested().name));
        continue;
      }
      check_frame(head, wide, regions, dense, where);
      if (!dense && c.format == SALE_INT8) check_int8(in, h, head, wide, regions, where, tally);
      if (!dense && c.format == SALE_FP8) check_fp8(in, h, head, wide, regions, where, tally);
      const Expected e = expected_attention(in, b, h, lists[s][static_cast<size_t>(h)], tested().tile);
      tally.worst = std::max(tally.worst, check_attention(in, b, h, e, tested().name));
    }
  }
  return tally;
}

Case device_case(uint64_t seed, const sale_case::Limits& limits) {
  Case c = sale_case::random_case(seed, limits);
  sale_case::Random random(seed ^ 0xde71ce);
  constexpr int32_t ranks[]{4, 12, 16, 24, 28, 28, 28, 32, 40, 48, 56, 60};
  constexpr int32_t pages[]{16, 32, 48, 64, 128, 256};
  c.head_dim = random.one_in(2) ? 64 : 128;
  if (c.dtype == SALE_F32) c.dtype = SALE_BF16;
  c.compute = random.one_in(3) ? SALE_COMPUTE_FP8 : SALE_COMPUTE_EXACT;
  c.compensate = random.one_in(3);
  c.rank = 0;
  c.format = random.one_in(4) ? SALE_INT8 : SALE_FP8;
  if (c.format == SALE_FP8 && !random.one_in(3)) c.rank = ranks[random.below(std::size(ranks))];
  if (c.layout != sale_case::Layout::packed && random.one_in(3)) c.page_size = pages[random.below(std::size(pages))];
  c.threads = 0;
  if (tested().int4()) {  // INT4 and INT8, all coordinates or some of a projection
    c.format = random.one_in(3) ? SALE_INT8 : SALE_INT4;
    constexpr int32_t sm80_ranks[]{16, 32, 48, 64, 64, 64, 80, 96, 112};
    c.rank = random.one_in(2) ? 0 : sm80_ranks[random.below(std::size(sm80_ranks))];
    if (c.rank >= c.head_dim) c.rank = 0;
  }
  return served(c);
}

}  // namespace sale_device
