#include "bench/selectors/compensation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/selectors/selector.hpp"
#include "lm/bf16.hpp"
#include "lm/workers.hpp"

namespace sale::bench {
namespace {

// Means of whole blocks of 32 rows, [blocks, d].
std::vector<float> means(const float* rows, int64_t count, int64_t d) {
  std::vector<float> m(static_cast<size_t>(count / 32 * d));
  for (int64_t r = 0; r < count / 32 * 32; ++r)
    for (int64_t c = 0; c < d; ++c) m[static_cast<size_t>(r / 32 * d + c)] += rows[r * d + c] / 32;
  return m;
}

// One row: its own output and weight, joined by those of the pseudo-keys.
void join(const float* q, const std::vector<float>& k, const std::vector<float>& v, const std::vector<int64_t>& dropped,
          int64_t d, float lse, uint16_t* out) {
  std::vector<double> weights;
  double most = static_cast<double>(lse);
  for (int64_t b : dropped) {
    weights.push_back(static_cast<double>(std::inner_product(q, q + d, k.begin() + b * d, 0.0f)) + std::log(32.0));
    most = std::max(most, weights.back());
  }
  const double own = std::exp(static_cast<double>(lse) - most);
  std::vector<double> sum(static_cast<size_t>(d));
  double whole = own;
  for (size_t c = 0; c < sum.size(); ++c) sum[c] = own * static_cast<double>(lm::from_bf16(out[c]));
  for (size_t i = 0; i < dropped.size(); ++i) {
    const double w = std::exp(weights[i] - most);
    whole += w;
    const float* value = v.data() + dropped[i] * d;
    for (size_t c = 0; c < sum.size(); ++c) sum[c] += w * static_cast<double>(value[c]);
  }
  for (size_t c = 0; c < sum.size(); ++c) out[c] = lm::to_bf16(static_cast<float>(sum[c] / whole));
}

}  // namespace

void compensate(const lm::AttentionCall& call, const BlockList& blocks, const std::vector<float>& lse, int threads) {
  for (int h = 0; h < call.q_heads; ++h) {
    const Head head(call, h);
    const uint16_t* from = call.v + h / (call.q_heads / call.kv_heads) * call.kv_head_stride;
    std::vector<float> values(static_cast<size_t>(call.k_len * head.d));
    for (int64_t j = 0; j < call.k_len; ++j)
      for (int64_t c = 0; c < head.d; ++c)
        values[static_cast<size_t>(j * head.d + c)] = lm::from_bf16(from[j * call.kv_token_stride + c]);
    const std::vector<float> k = means(head.k.data(), call.k_len, head.d), v = means(values.data(), call.k_len, head.d);
    lm::for_each_index(threads, head.tiles(), [&](int64_t tile, int) {
      const std::vector<int32_t> kept = blocks.row(0, h, tile).kept;
      std::vector<int64_t> dropped;
      for (int64_t b = 0; b < head.local_block(tile); ++b)
        if (!std::binary_search(kept.begin(), kept.end(), static_cast<int32_t>(b))) dropped.push_back(b);
      if (dropped.empty()) return;
      for (int64_t r = tile * 64; r < tile * 64 + head.rows(tile); ++r)
        join(head.q.data() + r * head.d, k, v, dropped, head.d, lse[static_cast<size_t>(h * call.q_len + r)],
             call.out + h * call.out_head_stride + r * call.out_token_stride);
    });
  }
}

}  // namespace sale::bench
