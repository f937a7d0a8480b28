// The three contracts: codes to the bit, block lists to the bit, attention within its bound.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "harness.hpp"

namespace sale_test {
namespace {

using sale_oracle::BlockLists;
using sale_oracle::Head;

template <class... Parts>
std::string text(const Parts&... parts) {
  std::string s;
  const auto one = [](const auto& p) -> std::string {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(p)>>) {
      return std::to_string(p);
    } else {
      return p;
    }
  };
  ((s += one(parts)), ...);
  return s;
}

bool same_float(float a, float b) { return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b)); }

void check_codes(const Instance& in, int64_t b, int64_t kv, const sale_index* index, const std::string& who) {
  const int64_t group = in.c.q_heads / in.c.kv_heads, k_len = in.sequences[static_cast<size_t>(b)].k_len;
  const auto keys = in.k.head(b, kv);
  const auto e = estimator_of(in, kv * group);
  const auto mean = smoothing_of(in, b, kv);
  const auto expected = sale_oracle::key_codes(keys, k_len, in.c.head_dim, mean, e);
  const int8_t* codes;
  const float *scales, *smoothing;
  ok(sale_index_codes(index, static_cast<int32_t>(kv), &codes, &scales, &smoothing), "sale_index_codes");
  for (size_t c = 0; c < mean.size(); ++c)
    if (!same_float(mean[c], smoothing[c]))
      throw Failed(
          text(who, ": smoothing of kv head ", kv, " coordinate ", c, " is ", smoothing[c], ", expected ", mean[c]));
  for (size_t i = 0; i < expected.scales.size(); ++i)
    if (!same_float(expected.scales[i], scales[i]))
      throw Failed(
          text(who, ": key scale ", i, " of kv head ", kv, " is ", scales[i], ", expected ", expected.scales[i]));
  if (in.c.format == SALE_FP4) {
    const auto rows = sale_oracle::fp4_rows(keys, k_len, in.c.head_dim, mean, e);
    const size_t row = rows.size() / static_cast<size_t>(k_len);
    for (size_t i = 0; i < rows.size(); ++i)
      if (rows[i] != codes[i])
        throw Failed(text(who, ": byte ", i % row, " of sequence ", b, " kv head ", kv, " key ", i / row, " is ",
                          int{codes[i]}, ", expected ", int{rows[i]}));
    return;
  }
  for (size_t i = 0; i < expected.codes.size(); ++i)
    if (expected.codes[i] != codes[i])
      throw Failed(text(who, ": code of sequence ", b, " kv head ", kv, " key ", static_cast<int64_t>(i) / e.rank,
                        " coordinate ", static_cast<int64_t>(i) % e.rank, " is ", int{codes[i]}, ", expected ",
                        int{expected.codes[i]}));
}

bool finite(const sale_oracle::Floats& x) {
  return std::all_of(x.begin(), x.end(), [](float e) { return std::isfinite(e); });
}

std::string first_difference(const BlockLists& got, const BlockLists& expected) {
  for (size_t t = 0; t < expected.size(); ++t) {
    std::vector<int32_t> difference;
    std::set_symmetric_difference(got[t].begin(), got[t].end(), expected[t].begin(), expected[t].end(),
                                  std::back_inserter(difference));
    if (difference.empty()) continue;
    const bool kept = std::binary_search(got[t].begin(), got[t].end(), difference[0]);
    return text("tile ", t, " block ", difference[0], kept ? " kept" : " dropped", " (", difference.size(), " differ)");
  }
  return "";
}

}  // namespace

// The list against the definition: to the bit, and against exact thresholds outside 2^-10 of them.
void check_list(const Instance& in, int64_t b, int64_t h, const BlockLists& got, const std::string& who, Tally& tally) {
  const Head head = head_of(in, b, h);
  const auto mean = smoothing_of(in, b, h / (in.c.q_heads / in.c.kv_heads));
  const auto tiles =
      sale_oracle::select(head, mean, estimator_of(in, h), {in.c.sink, in.c.local}, in.tau(h), in.dense(b));
  BlockLists expected;
  for (const auto& t : tiles) expected.push_back(t.kept);
  const std::string difference = first_difference(got, expected);
  if (!difference.empty()) {
    throw Failed(text(who, ": sequence ", b, " head ", h, ": ", difference, ", not what the definition says"));
  }
  const bool regular = finite(head.q) && finite(head.k) && in.c.data != sale_case::Data::huge;
  for (size_t t = 0; t < tiles.size(); ++t)
    for (const auto& c : tiles[t].candidates) {
      ++tally.candidates;
      const bool kept = std::binary_search(got[t].begin(), got[t].end(), c.block);
      if (!regular || kept == !(c.margin < 0)) continue;
      ++tally.exempted;
      if (!(std::fabs(c.margin) <= c.near))
        throw Failed(text(who, ": sequence ", b, " head ", h, " tile ", t, " block ", c.block,
                          kept ? " kept" : " dropped", " with a margin of ", c.margin,
                          "; differences are allowed within ", c.near));
    }
}

namespace {

// Columns of V with a number that is not finite, over the kept blocks: products with zero reach every row of the tile.
std::vector<bool> tainted_columns(const Head& h, const std::vector<int32_t>& blocks) {
  std::vector<bool> tainted(static_cast<size_t>(h.d), false);
  for (int32_t b : blocks)
    for (int64_t j = b * 32; j < std::min<int64_t>((b + 1) * 32, h.k_len); ++j)
      for (int64_t c = 0; c < h.d; ++c)
        if (!std::isfinite(h.v[static_cast<size_t>(j * h.d + c)])) tainted[static_cast<size_t>(c)] = true;
  return tainted;
}

// Largest |error| / sum p|v| that a plain f32 implementation has on this head.
double plain_error(const Head& h, const BlockLists& lists, const sale_oracle::Attention& exact) {
  const auto plain = sale_oracle::attend_plainly(h, lists);
  double worst = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double e = std::fabs(plain[i] - exact.out[i]) / exact.weighed[i];
    if (std::isfinite(e)) worst = std::max(worst, e);
  }
  return worst;
}

}  // namespace

Expected expected_attention(const Instance& in, int64_t b, int64_t h, const BlockLists& lists, int64_t tile) {
  Expected e{head_of(in, b, h), {}, 2 * sale_case::epsilon(in.c.dtype), {}};
  e.exact = sale_oracle::attend(e.head, lists, form_of(in, tile));
  if (in.c.dtype == SALE_F32) {
    const bool other = in.c.compute == SALE_COMPUTE_INT8 || in.c.compensate;  // than what the plain one computes
    e.relative = 2 * plain_error(e.head, lists, other ? sale_oracle::attend(e.head, lists, {}) : e.exact) + 0x1p-21;
  }
  for (const auto& list : lists) e.tainted.push_back(tainted_columns(e.head, list));
  return e;
}

double check_attention(const Instance& in, int64_t b, int64_t h, const Expected& e, const std::string& who) {
  const Head& head = e.head;
  // What rounding to a denormal, or flushing one, may cost.
  const double smallest = in.c.dtype == SALE_F16 ? 0x1p-24 : static_cast<double>(head.k_len + 2) * 0x1p-126;
  double worst = 0;
  for (int64_t i = 0; i < head.q_len; ++i) {
    const std::vector<bool>& tainted = e.tainted[static_cast<size_t>(i / 64)];
    const double reach = e.exact.reach[static_cast<size_t>(i)];
    if (reach / double{head.scale} > 1e36) continue;  // beyond f32: NaN or a number, as dense attention
    // Scores carry their own rounding: an f32 score of 1000 is known to 2^-14. Beside f32 outputs it always counts: a
    // head of few rows is no fair sample of what a plain implementation does to the worst row.
    const double slack = reach > 64 ? reach * 0x1p-21 : in.c.dtype == SALE_F32 ? reach * 0x1p-23 : 0;
    const std::byte* row = in.out.row(b, h, i);
    for (int64_t c = 0; c < head.d; ++c) {
      const size_t at = static_cast<size_t>(i * head.d + c);
      const double got = sale_case::load(row + c * sale_case::bytes_of(in.c.dtype), in.c.dtype), want = e.exact.out[at];
      const auto say = [&] {
        return text(who, ": sequence ", b, " head ", h, " row ", i, " coordinate ", c, ": out is ", got, ", expected ",
                    want);
      };
      if (tainted[static_cast<size_t>(c)] && !std::isfinite(got)) continue;
      const bool alike = std::isfinite(want) == std::isfinite(got) && std::isnan(want) == std::isnan(got);
      if (!alike) throw Failed(say());
      if (!std::isfinite(want)) continue;
      const double limit = (e.relative + 2 * slack) * e.exact.weighed[at] + e.exact.doubt[at] + smallest;
      const double error = std::fabs(got - want);
      worst = std::max(worst, error / limit);
      if (!(error <= limit)) throw Failed(text(say(), ", error ", error / limit, " of the limit"));
    }
    const double got = static_cast<double>(in.lse_row(b, h)[i]), want = e.exact.lse[static_cast<size_t>(i)];
    const bool coarse = in.c.dtype == SALE_BF16 || on_device(who);  // its tensor cores cut off sums
    const double limit = (coarse ? 1e-4 : 1e-5) + 1e-6 * std::fabs(want) + slack;
    const bool same = got == want || (std::isnan(got) && std::isnan(want)) || std::fabs(got - want) <= limit;
    if (!same)
      throw Failed(text(who, ": sequence ", b, " head ", h, " row ", i, ": lse is ", got, ", expected ", want,
                        ", limit ", limit));
  }
  return worst;
}

Tally check_case(const Case& c) {
  Instance in(c);
  return check_instance(in);
}

Tally check_instance(Instance& in) {
  const Case& c = in.c;
  Tally tally;
  tally.cases = 1;
  Result first;
  std::string first_name;
  std::vector<Expected> expected;  // lists agree, so one for all backends
  for (const std::string& backend : backends_for(in)) {
    Result r = run(in, backend);
    ++tally.backend_runs;
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t kv = 0; kv < c.kv_heads; ++kv)
        check_codes(in, b, kv, r.indexes[static_cast<size_t>(b)].get(), backend);
    const bool lead = first_name.empty();
    if (!lead) expect(r.lists == first.lists, "block lists of " + backend + " and " + first_name + " differ");
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t h = 0; h < c.q_heads; ++h) {
        const BlockLists& lists = r.lists[static_cast<size_t>(b)][static_cast<size_t>(h)];
        if (lead) {
          check_list(in, b, h, lists, backend, tally);
          expected.push_back(expected_attention(in, b, h, lists));
        }
        const Expected& e = expected[static_cast<size_t>(b * c.q_heads + h)];
        tally.worst = std::max(tally.worst, check_attention(in, b, h, e, backend));
      }
    if (!lead) continue;
    tally.kept = r.kept;
    tally.visible = r.visible;
    first = std::move(r);
    first_name = backend;
  }
  expect(!first_name.empty(), "no backend can run this");
  return tally;
}

}  // namespace sale_test
