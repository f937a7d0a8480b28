#include "lab/measure.hpp"

#include <algorithm>
#include <cmath>

#include "lm/bf16.hpp"
#include "sale/sale.h"

namespace sale::lab {
namespace {

constexpr int lanes = 8;

// Eight sums side by side: vector code without reordering anything the compiler may not reorder.
double dot(const double* q, const uint16_t* k, int n) {
  double sum[lanes] = {};
  for (int c = 0; c < n; c += lanes)
    for (int i = 0; i < lanes; ++i) sum[i] += q[c + i] * static_cast<double>(lm::from_bf16(k[c + i]));
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace

ExactRow::ExactRow(const lm::AttentionCall& call, int head, int64_t row) : call_(&call) {
  const int kv_head = head / (call.q_heads / call.kv_heads);
  const uint16_t* keys = call.k + kv_head * call.kv_head_stride;
  values_ = call.v + kv_head * call.kv_head_stride;
  const uint16_t* from = call.q + head * call.q_head_stride + row * call.q_token_stride;
  double q[256];
  for (int c = 0; c < call.head_dim; ++c)
    q[c] = static_cast<double>(lm::from_bf16(from[c])) * static_cast<double>(call.scale);
  weights_.resize(static_cast<size_t>(row + call.k_len - call.q_len + 1));
  for (size_t j = 0; j < weights_.size(); ++j)
    weights_[j] = dot(q, keys + static_cast<int64_t>(j) * call.kv_token_stride, call.head_dim);
  const double top = *std::max_element(weights_.begin(), weights_.end());
  double sum = 0;
  for (double& w : weights_) sum += w = std::exp(w - top);
  for (double& w : weights_) w /= sum;
}

double ExactRow::mass(std::span<const int32_t> kept) const {
  double sum = 0;
  for (int32_t b : kept)
    for (int64_t j = int64_t{b} * SALE_K_BLOCK; j < std::min<int64_t>((int64_t{b} + 1) * SALE_K_BLOCK, keys()); ++j)
      sum += weights_[static_cast<size_t>(j)];
  return sum;
}

void ExactRow::accumulate(int64_t begin, int64_t end, std::vector<double>& to, double& sum) const {
  for (int64_t j = begin; j < std::min(end, keys()); ++j) {
    const double w = weights_[static_cast<size_t>(j)];
    const uint16_t* v = values_ + j * call_->kv_token_stride;
    sum += w;
    for (size_t c = 0; c < to.size(); ++c) to[c] += w * static_cast<double>(lm::from_bf16(v[c]));
  }
}

std::vector<double> ExactRow::output() const {
  std::vector<double> out(static_cast<size_t>(call_->head_dim));
  double sum = 0;
  accumulate(0, keys(), out, sum);
  return out;
}

std::vector<double> ExactRow::output(std::span<const int32_t> kept) const {
  std::vector<double> out(static_cast<size_t>(call_->head_dim));
  double sum = 0;
  for (int32_t b : kept) accumulate(int64_t{b} * SALE_K_BLOCK, (int64_t{b} + 1) * SALE_K_BLOCK, out, sum);
  for (double& x : out) x /= sum;
  return out;
}

double l1(std::span<const double> x) {
  double sum = 0;
  for (double e : x) sum += std::fabs(e);
  return sum;
}

double l1_distance(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] - b[i]);
  return sum;
}

}  // namespace sale::lab
