// Section 5 of docs/numerics.md: e4m3 estimates. Codes of keys to the bit; votes in double, with a bound on what
// rounding can do to them.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "oracle.hpp"

namespace sale_oracle {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr uint8_t nan_code = 0x7f;
constexpr int64_t scale_keys = 8192;
// Of a coordinate's code, how near to a tie rounding of the 16-bit products may have decided otherwise: the tensor
// cores add 16 products at a time to a sum of 24 bits, cutting off.
constexpr double sum_error = 0x1p-19;
// 8-bit products are added with 13 bits below the largest of them.
constexpr double product_error = 0x1p-13;

double magnitude(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  if ((code & 0x7f) == nan_code) return std::numeric_limits<double>::quiet_NaN();
  return exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
}

struct Row {
  std::vector<double> codes, doubt;  // [rank]; doubt: by how much a code may be another
  double top = 32;                   // the largest code
  double scale = 0, factor = 0;      // of codes, in units of q
  double limit = 0;                  // T' in code units
  double near = 0;                   // what T may be off by, in units of scores
  double threshold = 0;              // T
  bool finite = true;
};

double dot(const float* a, const float* b, int64_t d) {
  double s = 0;
  for (int64_t c = 0; c < d; ++c) s += double{a[c]} * double{b[c]};
  return s;
}
double reach(const float* a, const float* b, int64_t d) {
  double s = 0;
  for (int64_t c = 0; c < d; ++c) s += std::fabs(double{a[c]} * double{b[c]});
  return s;
}

void code_row(const float* q, int64_t d, const Estimator& e, sale_dtype dtype, Row& row) {
  std::vector<double> x(static_cast<size_t>(e.rank)), error(x.size(), 0.0);
  double largest = 0;
  for (int64_t c = 0; c < e.rank; ++c) {
    const size_t i = static_cast<size_t>(c);
    if (e.q_projection == nullptr) {
      x[i] = double{q[c]};
    } else {
      for (int64_t a = 0; a < d; ++a) {
        const double product = double{q[a]} * rounded(double{e.q_projection[a * e.rank + c]}, dtype);
        x[i] += product;
        error[i] += sum_error * std::fabs(product);
      }
    }
    row.finite = row.finite && std::isfinite(x[i]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  const bool zero = !(largest >= 0x1p-100);
  row.top = e.q_projection != nullptr && e.rank > 28 ? 4 : 32;
  row.scale = zero ? 0 : largest / row.top;
  row.factor = zero ? 0 : row.top / largest;
  for (size_t i = 0; i < x.size(); ++i) {
    const double y = x[i] * row.factor, spread = error[i] * row.factor + std::fabs(y) * 0x1p-18;
    const auto code = [](double v) { return from_e4m3(to_e4m3(static_cast<float>(v))); };
    row.codes.push_back(code(y));
    row.doubt.push_back(
        std::max(std::fabs(code(y + spread) - row.codes[i]), std::fabs(code(y - spread) - row.codes[i])));
  }
}

// Logarithm of the weight on the reference keys: of the always kept blocks of the row's half, those it sees. farthest:
// the largest sum of |q||k| among them.
double reference_of(const Head& h, int64_t i, const Regions& r, double& farthest) {
  if (!h.reference.empty()) return double{h.reference[static_cast<size_t>(i)]};
  const float* q = h.q.data() + i * h.d;
  double m = -infinity, l = 0;
  std::vector<double> scores;
  for (int64_t j = 0; j < h.visible_keys(i); ++j) {
    if (!h.sees(i, j) || !is_reference(h, i, j, r)) continue;
    const float* k = h.k.data() + j * h.d;
    scores.push_back(double{h.scale} * dot(q, k, h.d));
    farthest = std::max(farthest, double{h.scale} * reach(q, k, h.d));
    m = std::max(m, scores.back());
  }
  for (double s : scores) l += std::exp(s - m);
  return m + std::log(l);
}

void limit_row(const Head& h, int64_t i, const Floats& smoothing, double key_scale, const Regions& r, float tau,
               Row& row) {
  const float* q = h.q.data() + i * h.d;
  double farthest = 0;
  const double mean_score = double{h.scale} * dot(q, smoothing.data(), h.d);
  row.threshold = reference_of(h, i, r, farthest) + std::log(double{tau}) - mean_score;
  row.finite = row.finite && std::isfinite(row.threshold);
  row.near = 0x1p-10 * std::max(1.0, std::fabs(row.threshold)) + sum_error * farthest +
             0x1p-16 * double{h.scale} * reach(q, smoothing.data(), h.d);
  const double step = row.scale * key_scale * double{h.scale};
  row.limit = step == 0 ? (row.threshold > 0 ? 1e30 : -1e30) : std::clamp(row.threshold / step, -1e30, 1e30);
}

}  // namespace

uint8_t to_e4m3(float x) {
  if (std::isnan(x)) return nan_code;
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const double a = std::fabs(double{x});
  if (a >= 448) return static_cast<uint8_t>(sign | 0x7e);
  int e = 0;
  std::frexp(a, &e);  // a = f 2^e, f in [1/2, 1)
  const int last = a == 0 ? -9 : std::max(e - 4, -9);
  const auto n = static_cast<int>(std::nearbyint(std::ldexp(a, -last)));  // 8 .. 16 steps, fewer below 2^-6
  // The code's bits count steps: a carry goes on into the exponent by itself.
  const int code = last == -9 ? n : (last + 9) * 8 + n;
  return static_cast<uint8_t>(sign | code);
}

double from_e4m3(uint8_t code) { return (code & 0x80) != 0 ? -magnitude(code) : magnitude(code); }

Fp8Keys fp8_keys(const Floats& k, int64_t k_len, int64_t d, const Floats& smoothing, const Estimator& e,
                 int64_t first) {
  const Floats y = transform_fused(k, k_len, d, smoothing.data(), e.k_projection, e.rank);
  float largest = 0;
  for (int64_t i = 0; i < std::min(first, scale_keys) * e.rank; ++i)
    if (std::isfinite(y[static_cast<size_t>(i)])) largest = std::max(largest, std::fabs(y[static_cast<size_t>(i)]));
  Fp8Keys keys;
  keys.scale = largest < 0x1p-100f ? 0.0f : largest / 112.0f;
  const float factor = keys.scale == 0 ? 0.0f : 1.0f / keys.scale;
  for (int64_t j = 0; j < k_len; ++j) {
    bool bad = false;
    for (int64_t c = 0; c < e.rank; ++c) {
      const float x = y[static_cast<size_t>(j * e.rank + c)] * factor;
      bad = bad || !(std::fabs(x) <= 448);
      keys.codes.push_back(to_e4m3(x));
    }
    if (bad) std::fill(keys.codes.end() - e.rank, keys.codes.end(), nan_code);
  }
  return keys;
}

std::vector<Fp8Tile> fp8_select(const Head& h, const Floats& smoothing, const Fp8Keys& keys, const Estimator& e,
                                const Regions& r, float tau, sale_dtype dtype) {
  const int64_t rank = e.rank;
  const double terms = static_cast<double>(e.q_projection == nullptr ? rank : rank <= 28 ? 32 : 64);
  // Keys beyond the end of a last block that is a candidate, in a part of a sequence, have code 0.
  const auto padded = static_cast<size_t>((h.k_len + block_keys - 1) / block_keys * block_keys);
  std::vector<double> k(padded * static_cast<size_t>(rank), 0.0), largest(padded, 0.0);
  for (size_t i = 0; i < keys.codes.size(); ++i) k[i] = from_e4m3(keys.codes[i]);
  for (int64_t j = 0; j < h.k_len; ++j)
    for (int64_t c = 0; c < rank; ++c)
      largest[static_cast<size_t>(j)] =
          std::max(largest[static_cast<size_t>(j)], std::fabs(k[static_cast<size_t>(j * rank + c)]));

  std::vector<Fp8Tile> tiles;
  for (int64_t t = 0; t < h.tiles(); ++t) {
    const Range range = wide_range(h, t / 2, r);
    Fp8Tile tile;
    for (int64_t b = range.first; b < range.last; ++b)
      tile.push_back({static_cast<int32_t>(b), -infinity, -infinity, -infinity});
    for (int64_t i = t * tile_rows; i <= h.last_row(t) && !tile.empty() && tau != FLT_MAX; ++i) {
      Row row;
      code_row(h.q.data() + i * h.d, h.d, e, dtype, row);
      limit_row(h, i, smoothing, double{keys.scale}, r, tau, row);
      const double step = row.scale * double{keys.scale} * double{h.scale};
      for (Fp8Candidate& c : tile)
        for (int64_t j = c.block * block_keys; j < (c.block + 1) * block_keys; ++j) {
          const double* codes = k.data() + j * rank;
          double sum = 0, doubt = 0;
          for (int64_t a = 0; a < rank; ++a) sum += row.codes[static_cast<size_t>(a)] * codes[a];
          for (int64_t a = 0; a < rank; ++a) doubt += row.doubt[static_cast<size_t>(a)] * std::fabs(codes[a]);
          if (!row.finite || std::isnan(sum)) {
            c = {c.block, infinity, infinity, infinity};
            break;
          }
          // Sums hold the threshold too, as far as its three pieces reach.
          const double limit = std::min(std::fabs(row.limit), 3 * 448.0 * 448.0);
          const double most = std::max({row.top * largest[static_cast<size_t>(j)], limit, std::fabs(sum)});
          const double margin = sum * step - row.threshold;
          const double near = row.near + (terms * product_error * most + doubt) * step;
          c.margin = std::max(c.margin, margin);
          c.low = std::max(c.low, margin - near);
          c.high = std::max(c.high, margin + near);
        }
    }
    tiles.push_back(std::move(tile));
  }
  return tiles;
}

}  // namespace sale_oracle
