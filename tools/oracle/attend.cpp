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
    for (int64_t j = b * block_keys; j < (b + 1) * block_keys; ++j)
      if (h.sees(row, j)) keys.push_back(j);
  return keys;
}

// What a row weighs: a key, or the means of 256 keys in the place of those in dropped blocks.
struct Term {
  const double *k, *v;
  double more;  // added to its score
  int64_t key;  // -1: means
};

std::vector<Term> terms_of(const Head& h, const Operands& x, const Form& form, const std::vector<int32_t>& blocks,
                           int64_t row) {
  std::vector<Term> terms;
  for (int64_t j : seen_keys(h, blocks, row)) terms.push_back({x.k.data() + j * h.d, x.v.data() + j * h.d, 0, j});
  if (!form.compensate) return terms;
  const int64_t first = row / form.tile * form.tile, first_local = h.first_local(first, form.local);
  for (int64_t m = 0; m * mean_keys < h.k_len; ++m) {
    if (std::min((m + 1) * mean_keys, h.k_len) > h.visible_keys(first)) break;  // not seen whole by every row
    // Nor is one there that a row of the tile has left behind a part of.
    if (m * mean_keys < h.first_key(std::min(first + form.tile, h.q_len) - 1)) continue;
    int64_t dropped = 0;
    for (int64_t b = m * mean_blocks; b < std::min((m + 1) * mean_blocks, first_local) && b * block_keys < h.k_len; ++b)
      dropped += !std::binary_search(blocks.begin(), blocks.end(), static_cast<int32_t>(b));
    if (dropped == 0) continue;
    const double weight = std::exp2(5.5) * static_cast<double>(dropped);
    terms.push_back({x.k_means.data() + m * h.d, x.v_means.data() + m * h.d, std::log(weight), -1});
  }
  return terms;
}

template <class T>
double dot(const T* a, const T* b, int64_t d) {
  double s[4] = {0, 0, 0, 0};
  for (int64_t c = 0; c < d; c += 4)
    for (int64_t e = 0; e < 4; ++e) s[e] += static_cast<double>(a[c + e]) * static_cast<double>(b[c + e]);
  return (s[0] + s[1]) + (s[2] + s[3]);
}

template <class T>
double reach(const float* a, const T* b, int64_t d) {
  double s[4] = {0, 0, 0, 0};
  for (int64_t c = 0; c < d; c += 4)
    for (int64_t e = 0; e < 4; ++e) s[e] += std::fabs(double{a[c + e]} * static_cast<double>(b[c + e]));
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// What a form whose values are codes may lose of a term of probability p, up to 1, times |v|.
//   coding   FP8: e4m3 of 2^8 p loses 2^-4 of a normal number at most, half a step of 2^-9 of a smaller one, and never
//            more than the number itself. F16 of 2^9 p: 2^-11, half a step of 2^-24. The maximum that probabilities are
//            relative to only grows.
//   adding   FP8: of a step's 128 products and 4 partial sums each is cut off 13 bits below the largest number around,
//            which is no more than the sum of all. F16: a step's sum of 64 products becomes f16 after every 8 (cut off,
//            2^-10 of it) or every 4 (to nearest, 2^-11), and is no more than the sum of all.
double doubt_of(sale_compute compute, double p) {
  if (compute == SALE_COMPUTE_FP8) return std::max(0x1p-4 * p, std::min(p, 0x1p-18)) + 140 * 0x1p-13 * p;
  return std::max(0x1p-11 * p, std::min(p, 0x1p-34)) + 0x1p-7 * p;
}
// F16: what a step's sums may lose below f16's normal numbers, 8 steps of 2^-24, where values are 1 at most and weights
// 2^9; two kept blocks or 64 pseudo-keys a step.
double lost_of_steps(const Head& h, const std::vector<int32_t>& blocks, bool compensate) {
  const int64_t steps = static_cast<int64_t>(blocks.size() + 1) / 2 + (compensate ? h.k_len / (64 * mean_keys) + 1 : 0);
  return 0x1p-30 * static_cast<double>(steps);
}

}  // namespace

BlockLists all_blocks(const Head& h) {
  BlockLists lists;
  for (int64_t t = 0; t < h.tiles(); ++t) {
    lists.emplace_back();
    for (int32_t b = 0; b < h.visible_blocks(t); ++b)
      if (h.sees_block(t, b)) lists.back().push_back(b);
  }
  return lists;
}

Attention attend(const Head& h, const BlockLists& blocks, const Form& form) {
  Attention a;
  a.out.assign(static_cast<size_t>(h.q_len * h.d), 0.0);
  a.weighed = a.doubt = a.out;
  const Operands x = operands(h, form);
  const bool f16 = form.compute == SALE_COMPUTE_F16, coded = f16 || form.compute == SALE_COMPUTE_FP8;
  for (int64_t i = 0; i < h.q_len; ++i) {
    const float* q = h.q.data() + i * h.d;
    const std::vector<int32_t>& kept = blocks[static_cast<size_t>(i / tile_rows)];
    const std::vector<Term> terms = terms_of(h, x, form, kept, i);
    std::vector<double> s;
    double m = -infinity, l = 0, farthest = 0, shift = 0;
    for (const Term& t : terms) {
      s.push_back(dot(x.q.data() + i * h.d, t.k, h.d) * double{h.scale} + t.more);
      const double far = t.key < 0 ? reach(q, t.k, h.d) : reach(q, h.k.data() + t.key * h.d, h.d);
      farthest = std::max(farthest, double{h.scale} * far);
      if (coded) farthest = std::max(farthest, double{h.scale} * reach(q, t.k, h.d));
      if (s.back() > m) m = s.back();
    }
    if (!x.smoothing.empty()) shift = dot(q, x.smoothing.data(), h.d) * double{h.scale};
    if (coded) farthest = std::max(farthest, double{h.scale} * reach(q, x.smoothing.data(), h.d));
    double* out = a.out.data() + i * h.d;
    double* weighed = a.weighed.data() + i * h.d;
    double* doubt = a.doubt.data() + i * h.d;
    const bool nothing = m == -infinity && std::none_of(s.begin(), s.end(), [](double e) { return std::isnan(e); });
    for (size_t n = 0; n < s.size() && !nothing; ++n) {
      const double p = std::exp(s[n] - m), lost = coded ? doubt_of(form.compute, p) : 0;
      l += p;
      for (int64_t c = 0; c < h.d; ++c) {
        out[c] += p * terms[n].v[c];
        weighed[c] += p * std::fabs(terms[n].v[c]);
      }
      for (int64_t c = 0; c < h.d && coded; ++c) doubt[c] += lost * std::fabs(terms[n].v[c]);
    }
    for (int64_t c = 0; c < h.d && f16 && !nothing; ++c)
      doubt[c] += lost_of_steps(h, kept, form.compensate) * double{x.most[static_cast<size_t>(c)]};
    for (int64_t c = 0; c < h.d && !nothing; ++c) {
      out[c] /= l;
      weighed[c] /= l;
      doubt[c] /= l;
    }
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
