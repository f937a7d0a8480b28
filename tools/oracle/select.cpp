// Sections 3 and 4 of docs/numerics.md: the threshold of a row and the vote on a block.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "oracle.hpp"

namespace sale_oracle {
namespace {

constexpr float float_nan = std::numeric_limits<float>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

// The reference keys of a row: of the always-kept blocks, those it sees.
std::vector<int64_t> reference_keys(const Head& h, int64_t row, const Regions& r) {
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < h.visible_keys(row); ++j)
    if (h.sees(row, j) && is_reference(h, row, j, r)) keys.push_back(j);
  return keys;
}

// ---- 3, to the bit -------------------------------------------------------------------------------------------------

struct Fixed {  // a row of 15-bit numbers in two parts
  std::vector<int16_t> high, low;
  float rho = 0;
};

Fixed fixed_point(const float* x, int64_t d) {
  Fixed f;
  f.high.assign(static_cast<size_t>(d), 0);
  f.low.assign(static_cast<size_t>(d), 0);
  float largest = 0;
  for (int64_t c = 0; c < d; ++c) {
    if (!std::isfinite(x[c])) {
      f.rho = float_nan;
      return f;
    }
    largest = std::max(largest, std::fabs(x[c]));
  }
  if (largest < 0x1p-100f) return f;
  f.rho = largest / 16256.0f;
  const float factor = 16256.0f / largest;
  for (int64_t c = 0; c < d; ++c) {
    const int32_t code = static_cast<int32_t>(std::nearbyint(x[c] * factor));
    const int32_t high = static_cast<int32_t>(std::floor((code + 64) / 128.0));
    f.high[static_cast<size_t>(c)] = static_cast<int16_t>(high);
    f.low[static_cast<size_t>(c)] = static_cast<int16_t>(code - 128 * high);
  }
  return f;
}

float fixed_score(const Fixed& q, const Fixed& k, float scale) {
  int32_t hh = 0, x = 0, ll = 0;
  for (size_t c = 0; c < q.high.size(); ++c) {
    hh += q.high[c] * k.high[c];
    x += q.high[c] * k.low[c] + q.low[c] * k.high[c];
    ll += q.low[c] * k.low[c];
  }
  const float upper = static_cast<float>(hh) * 16384.0f, middle = static_cast<float>(x) * 128.0f;
  const float sum = (upper + middle) + static_cast<float>(ll);
  const float factor = (q.rho * scale) * k.rho;
  return sum * factor;
}

float defined_exp2(float x) {
  if (x < -126.0f) return 0;
  const float n = std::nearbyint(x), f = x - n;
  float y = 1.535336206e-04f;
  for (float a : {1.339887452e-03f, 9.618437358e-03f, 5.550332471e-02f, 2.402264791e-01f, 6.931472029e-01f, 1.0f}) {
    const float product = y * f;
    y = product + a;
  }
  return std::ldexp(y, static_cast<int>(n));
}

double defined_ln(double x) {
  int e;
  double z = std::frexp(x, &e);  // [1/2, 1)
  if (z < 0.70710678118654752440) {
    z *= 2;
    e -= 1;
  }
  const double t = (z - 1) / (z + 1), u = t * t;
  double series = 1.0 / 17;
  for (int k = 15; k >= 1; k -= 2) series = 1.0 / k + u * series;
  double ln2;
  const uint64_t ln2_bits = 0x3fe62e42fefa39ef;
  std::memcpy(&ln2, &ln2_bits, 8);
  return e * ln2 + 2 * t * series;
}

float defined_threshold(const Floats& scores, float tau) {
  for (float s : scores)
    if (!std::isfinite(s)) return float_nan;
  if (scores.empty()) return std::numeric_limits<float>::infinity();  // sees nothing: its tile has no candidates
  const float m = *std::max_element(scores.begin(), scores.end());
  float log2e;
  const uint32_t log2e_bits = 0x3fb8aa3b;
  std::memcpy(&log2e, &log2e_bits, 4);
  int64_t n = 0;
  for (float s : scores) {
    const float x = (s - m) * log2e;
    n += static_cast<int64_t>(std::nearbyint(1048576.0f * defined_exp2(x)));
  }
  const double bracket = defined_ln(double{tau}) + defined_ln(static_cast<double>(n) * 0x1p-20);
  return static_cast<float>(double{m} + bracket);
}

// ---- 3, in double --------------------------------------------------------------------------------------------------

double dot(const float* a, const float* b, int64_t d) {
  double s[4] = {0, 0, 0, 0};
  for (int64_t c = 0; c < d; c += 4)
    for (int64_t e = 0; e < 4; ++e) s[e] += double{a[c + e]} * double{b[c + e]};
  return (s[0] + s[1]) + (s[2] + s[3]);
}

void exact_threshold(const std::vector<double>& scores, float tau, double& m, double& l, double& t) {
  m = -infinity;
  l = 0;
  for (double s : scores) m = std::max(m, s);
  for (double s : scores) l += std::exp(s - m);
  t = m + std::log(double{tau}) + std::log(l);
}

// A row whose reference is given: the same in both precisions, but for the last rounding.
double given_threshold(const Head& h, int64_t row, const Floats& smoothing, double log_tau) {
  const float* q = h.q.data() + row * h.d;
  const float reference = h.reference[static_cast<size_t>(row)];
  double mean_score = 0;
  bool finite = std::isfinite(reference);
  for (int64_t c = 0; c < h.d; ++c) {
    mean_score += double{q[c]} * double{smoothing[static_cast<size_t>(c)]};
    finite = finite && std::isfinite(q[c]);
  }
  return finite ? (log_tau + double{reference}) - double{h.scale} * mean_score : std::nan("");
}

}  // namespace

Span candidates_of(const Head& h, int64_t tile, int64_t rows, const Regions& r) {
  const int64_t first_row = tile * rows, last_row = std::min(h.q_len, (tile + 1) * rows) - 1;
  const int64_t blocks = (h.k_len + block_keys - 1) / block_keys;
  const int64_t end = (h.visible_keys(last_row) + block_keys - 1) / block_keys;
  // Where the window of the first row begins, and whether the last one's is open to the first key.
  const int64_t behind = h.first_key(first_row) >= h.k_len ? blocks : h.first_key(first_row) / block_keys;
  const bool whole = h.kept_sink > 0 || h.first_key(last_row) == 0;
  Span s{};
  s.sink = whole ? r.sink / block_keys : 0;
  s.last = std::min(h.first_local(first_row, r.local), end);
  s.first = std::max(s.sink, behind);
  // Some row does not see all of the local region: no candidates.
  if (h.first_key(last_row) > s.last * block_keys) s.last = s.first;
  s.last = std::max(s.first, s.last);
  return s;
}

bool is_reference(const Head& h, int64_t row, int64_t key, const Regions& r) {
  const int64_t block = key / block_keys;
  // The sink is told by the tile that shares a list, local keys by the 64 rows.
  const int64_t sink = candidates_of(h, row / h.rule_rows, h.rule_rows, r).sink;
  return block < sink || block >= std::max(sink, h.first_local(row / tile_rows * tile_rows, r.local));
}

Thresholds thresholds(const Head& h, const Floats& smoothed_keys, const Floats& smoothing, float tau, const Regions& r,
                      bool fixed) {
  Thresholds t;
  for (int64_t i = 0; i < static_cast<int64_t>(h.reference.size()); ++i) {
    t.exact.push_back(given_threshold(h, i, smoothing, std::log(double{tau})));
    t.defined.push_back(static_cast<float>(given_threshold(h, i, smoothing, defined_ln(double{tau}))));
  }
  if (!h.reference.empty()) return t;
  std::vector<Fixed> keys;
  if (fixed)
    for (int64_t j = 0; j < h.k_len; ++j) keys.push_back(fixed_point(smoothed_keys.data() + j * h.d, h.d));
  for (int64_t i = 0; i < h.q_len; ++i) {
    const float* q = h.q.data() + i * h.d;
    const std::vector<int64_t> references = reference_keys(h, i, r);
    std::vector<double> scores;
    for (int64_t j : references) scores.push_back(double{h.scale} * dot(q, smoothed_keys.data() + j * h.d, h.d));
    double m, l, exact;
    exact_threshold(scores, tau, m, l, exact);
    t.m.push_back(m);
    t.l.push_back(l);
    t.exact.push_back(exact);
    if (!fixed) continue;
    const Fixed row = fixed_point(q, h.d);
    Floats defined;
    for (int64_t j : references) defined.push_back(fixed_score(row, keys[static_cast<size_t>(j)], h.scale));
    t.defined.push_back(defined_threshold(defined, tau));
  }
  return t;
}

namespace {

// ---- 4 -------------------------------------------------------------------------------------------------------------

int32_t code_dot(const int8_t* a, const int8_t* b, int64_t r) {
  int32_t sum = 0;
  for (int64_t c = 0; c < r; ++c) sum += static_cast<int16_t>(a[c]) * static_cast<int16_t>(b[c]);
  return sum;
}

struct Vote {
  const Head& h;
  const Estimator& e;
  Codes q, k;
  Thresholds t;
  Floats bias;  // INT4: b_j

  // One estimate, already the maximum of its group of keys, against row i's threshold.
  void weigh(float estimate, int64_t i, Candidate& c) const {
    const size_t row = static_cast<size_t>(i);
    if (!(estimate < t.defined[row])) c.kept = true;
    const double margin = double{estimate} - t.exact[row];
    if (std::isnan(margin)) {
      c.margin = infinity;
    } else if (margin > c.margin) {
      c.margin = margin;
      c.near = 0x1p-10 * std::max(1.0, std::fabs(t.exact[row]));
    }
  }

  void int8_row(int64_t i, Candidate& c) const {
    int32_t largest = INT32_MIN;
    for (int64_t j = c.block * block_keys; j < (c.block + 1) * block_keys; ++j)
      largest = std::max(largest, code_dot(q.codes.data() + i * e.rank, k.codes.data() + j * e.rank, e.rank));
    const float block_scale = k.scales[static_cast<size_t>(c.block)];
    const float tile_scale = q.scales[static_cast<size_t>(i / tile_rows)];
    const float factor = (tile_scale * h.scale) * block_scale;
    weigh(static_cast<float>(largest) * factor, i, c);
  }

  void int4_row(int64_t i, Candidate& c) const {
    const float pair_scale = q.scales[static_cast<size_t>(i / 16 * 8 + i % 8)];
    for (int64_t g = 0; g < 4; ++g) {
      const float pi = pair_scale * k.scales[static_cast<size_t>(c.block * 4 + g)], u = 1.0f / pi;
      int64_t largest = INT64_MIN;
      for (int64_t n = 0; n < 4; ++n)
        for (int64_t step = 0; step < 2; ++step) {
          const int64_t j = c.block * block_keys + 8 * n + 2 * g + step;
          const float beta = bias[static_cast<size_t>(j)] * u;
          if (!(std::fabs(beta) < 0x1p22f)) {
            c.kept = true;
            c.margin = infinity;
            continue;
          }
          const int64_t d = code_dot(q.codes.data() + i * e.rank, k.codes.data() + j * e.rank, e.rank);
          largest = std::max(largest, d + static_cast<int64_t>(std::nearbyint(beta)));
        }
      if (largest == INT64_MIN) continue;
      const float factor = pi * h.scale;
      weigh(static_cast<float>(largest) * factor, i, c);
    }
  }
};

Floats smoothed(const Head& h, const Floats& smoothing) {
  Floats x = h.k;
  for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] - smoothing[i % static_cast<size_t>(h.d)];
  return x;
}

Floats key_bias(const Head& h, const Floats& smoothed_keys, const Floats& q_mean) {
  Floats b;
  for (int64_t j = 0; j < h.k_len; ++j) {
    float sum = 0;
    for (int64_t a = 0; a < h.d; ++a) {
      const float product = q_mean[static_cast<size_t>(a)] * smoothed_keys[static_cast<size_t>(j * h.d + a)];
      sum = sum + product;
    }
    b.push_back(sum);
  }
  return b;
}

}  // namespace

std::vector<Tile> select(const Head& h, const Floats& smoothing, const Estimator& e, const Regions& r, float tau,
                         bool dense) {
  std::vector<Tile> tiles;
  dense = dense || tau == 0;
  const bool local = tau == FLT_MAX;  // sink and local keys alone, whatever the others hold
  const Floats keys = smoothed(h, smoothing);
  Vote vote{h, e, {}, {}, {}, {}};
  if (!dense && !local) {
    const Floats q_mean = mean(h.q, h.q_len, h.d);
    vote.q = query_codes(h.q, h.q_len, h.d, q_mean, e);
    vote.k = key_codes(h.k, h.k_len, h.d, smoothing, e);
    vote.t = thresholds(h, keys, smoothing, tau, r, true);
    if (e.format == SALE_INT4) vote.bias = key_bias(h, keys, q_mean);
    // Keys beyond the end of a last block that is a candidate, in a part of a sequence, have code 0.
    const auto padded = static_cast<size_t>((h.k_len + block_keys - 1) / block_keys * block_keys);
    vote.k.codes.resize(padded * static_cast<size_t>(e.rank));
    vote.bias.resize(padded);
  }
  for (int64_t t = 0; t < h.tiles(); ++t) {
    Tile tile;
    tile.visible = h.visible_blocks(t);
    const int64_t shared = t * tile_rows / h.rule_rows;
    const Span span = candidates_of(h, shared, h.rule_rows, r);
    tile.first_candidate = span.first, tile.last_candidate = span.last;
    for (int64_t b = 0; b < tile.visible; ++b) {
      if (!h.sees_block(shared, b, h.rule_rows)) continue;
      Candidate c{static_cast<int32_t>(b), -infinity, 0, dense || b < tile.first_candidate || b >= tile.last_candidate};
      if (!c.kept && !local) {
        for (int64_t i = t * tile_rows; i <= h.last_row(t); ++i)
          e.format == SALE_INT4 ? vote.int4_row(i, c) : vote.int8_row(i, c);
        tile.candidates.push_back(c);
      }
      if (c.kept) tile.kept.push_back(c.block);
    }
    tiles.push_back(std::move(tile));
  }
  return tiles;
}

}  // namespace sale_oracle
