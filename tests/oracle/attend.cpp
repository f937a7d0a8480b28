// Section 6 of docs/numerics.md: attention over given blocks.
#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle.hpp"

namespace sale_oracle {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::vector<int64_t> seen_keys(const Head& h, const std::vector<int32_t>& blocks, int64_t row) {
  std::vector<int64_t> keys;
  for (int32_t b : blocks)
    for (int64_t j = b * block_keys; j < std::min((b + 1) * block_keys, h.visible_keys(row)); ++j) keys.push_back(j);
  return keys;
}

// x coded with 127 steps over its largest number, and decoded again; NaN when anything is not finite.
void through_int8(float* x, int64_t n) {
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  const float factor = 127.0f / largest;
  for (int64_t i = 0; i < n; ++i) {
    if (!finite) {
      x[i] = std::numeric_limits<float>::quiet_NaN();
    } else {
      x[i] = largest < 0x1p-100f ? 0.0f : std::nearbyint(x[i] * factor);
    }
  }
}

float int8_scale(const float* x, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest / 127.0f;
}

// Q and K as the INT8 form sees them: integers times the scale, in double; K without its mean.
struct Coded {
  std::vector<double> q, k;
  Floats k_mean;
};

Coded coded(const Head& h) {
  Coded c;
  c.k_mean = mean(h.k, h.k_len, h.d);
  Floats q = h.q, k = h.k;
  for (size_t i = 0; i < k.size(); ++i) k[i] = k[i] - c.k_mean[i % static_cast<size_t>(h.d)];
  const auto decode = [&](Floats& x, int64_t group_rows, int64_t rows, std::vector<double>& to) {
    for (int64_t r = 0; r < rows; r += group_rows) {
      float* at = x.data() + r * h.d;
      const int64_t n = std::min(group_rows, rows - r) * h.d;
      const double scale = int8_scale(at, n);
      through_int8(at, n);
      for (int64_t i = 0; i < n; ++i) to.push_back(at[i] * scale);
    }
  };
  decode(q, 1, h.q_len, c.q);
  decode(k, block_keys, h.k_len, c.k);
  return c;
}

template <class T>
double dot(const T* a, const T* b, int64_t d) {
  double s[4] = {0, 0, 0, 0};
  for (int64_t c = 0; c < d; c += 4)
    for (int64_t e = 0; e < 4; ++e) s[e] += static_cast<double>(a[c + e]) * static_cast<double>(b[c + e]);
  return (s[0] + s[1]) + (s[2] + s[3]);
}

double reach(const float* a, const float* b, int64_t d) {
  double s = 0;
  for (int64_t c = 0; c < d; ++c) s += std::fabs(double{a[c]} * double{b[c]});
  return s;
}

}  // namespace

BlockLists all_blocks(const Head& h) {
  BlockLists lists;
  for (int64_t t = 0; t < h.tiles(); ++t) {
    lists.emplace_back();
    for (int32_t b = 0; b < h.visible_blocks(t); ++b) lists.back().push_back(b);
  }
  return lists;
}

Attention attend(const Head& h, const BlockLists& blocks, bool int8_products) {
  Attention a;
  a.out.assign(static_cast<size_t>(h.q_len * h.d), 0.0);
  a.weighed = a.out;
  const Coded codes = int8_products ? coded(h) : Coded{};
  for (int64_t i = 0; i < h.q_len; ++i) {
    const float* q = h.q.data() + i * h.d;
    const std::vector<int64_t> keys = seen_keys(h, blocks[static_cast<size_t>(i / tile_rows)], i);
    std::vector<double> s;
    double m = -infinity, l = 0, farthest = 0;
    for (int64_t j : keys) {
      const double product = int8_products ? dot(codes.q.data() + i * h.d, codes.k.data() + j * h.d, h.d)
                                           : dot(q, h.k.data() + j * h.d, h.d);
      s.push_back(product * double{h.scale});
      farthest = std::max(farthest, double{h.scale} * reach(q, h.k.data() + j * h.d, h.d));
      if (s.back() > m) m = s.back();
    }
    double* out = a.out.data() + i * h.d;
    double* weighed = a.weighed.data() + i * h.d;
    const bool nothing = m == -infinity && std::none_of(s.begin(), s.end(), [](double x) { return std::isnan(x); });
    for (size_t n = 0; n < s.size() && !nothing; ++n) {
      const double p = std::exp(s[n] - m);
      l += p;
      const float* v = h.v.data() + keys[n] * h.d;
      for (int64_t c = 0; c < h.d; ++c) {
        out[c] += p * double{v[c]};
        weighed[c] += p * std::fabs(double{v[c]});
      }
    }
    for (int64_t c = 0; c < h.d && !nothing; ++c) {
      out[c] /= l;
      weighed[c] /= l;
    }
    double shift = 0;
    if (int8_products) shift = dot(q, codes.k_mean.data(), h.d) * double{h.scale};
    a.lse.push_back(nothing ? -infinity : m + std::log(l) + shift);
    a.reach.push_back(farthest);
  }
  return a;
}

Floats attend_plainly(const Head& h, const BlockLists& blocks) {
  Floats all(static_cast<size_t>(h.q_len * h.d), 0.0f);
  for (int64_t i = 0; i < h.q_len; ++i) {
    const std::vector<int64_t> keys = seen_keys(h, blocks[static_cast<size_t>(i / tile_rows)], i);
    Floats s;
    float m = -std::numeric_limits<float>::infinity(), l = 0;
    for (int64_t j : keys) {
      float sum = 0;
      for (int64_t c = 0; c < h.d; ++c)
        sum += h.q[static_cast<size_t>(i * h.d + c)] * h.k[static_cast<size_t>(j * h.d + c)];
      s.push_back(sum * h.scale);
      m = std::max(m, s.back());
    }
    float* out = all.data() + i * h.d;
    for (size_t n = 0; n < s.size(); ++n) {
      const float p = std::exp(s[n] - m);
      l += p;
      for (int64_t c = 0; c < h.d; ++c) out[c] += p * h.v[static_cast<size_t>(keys[n] * h.d + c)];
    }
    for (int64_t c = 0; c < h.d && !keys.empty(); ++c) out[c] /= l;
  }
  return all;
}

}  // namespace sale_oracle
