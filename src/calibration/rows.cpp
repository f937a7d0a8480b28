#include "calibration/rows.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "calibration/numbers.hpp"

namespace sale::calibration {
namespace {

constexpr int lanes = 8;
constexpr int64_t first_position = 1024;  // earlier rows run dense, or nearly so

// Eight sums side by side: vector code without reordering anything the compiler may not reorder.
// to[j]: the product of q with each of n keys.
void score(const double* q, const float* k, int64_t n, int32_t dim, double* to) {
  for (int64_t j = 0; j < n; ++j, k += dim) {
    double sum[lanes] = {};
    for (int32_t c = 0; c < dim; c += lanes)
      for (int i = 0; i < lanes; ++i)
        sum[i] +=  // both have dim numbers, NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult)
            q[c + i] * static_cast<double>(k[c + i]);
    to[j] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
}

// to[c]: the sum over n tokens of w times their values. Returns the sum of w.
double weigh(const double* w, const float* v, int64_t n, int32_t dim, double* to) {
  double mass = 0;
  for (int64_t j = 0; j < n; ++j) mass += w[j];
  for (int32_t c = 0; c < dim; c += lanes) {
    double sum[lanes] = {};
    for (int64_t j = 0; j < n; ++j)
      for (int i = 0; i < lanes; ++i) sum[i] += w[j] * static_cast<double>(v[j * dim + c + i]);
    for (int i = 0; i < lanes; ++i) to[c + i] = sum[i];
  }
  return mass;
}

const char* at(const Tensor& t, size_t bytes, int64_t head, int64_t token) {
  return static_cast<const char*>(t.data) +
         static_cast<size_t>(head * t.strides.head + token * t.strides.token) * bytes;
}

class Random {  // splitmix64
public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // Uniform in [0, n).
  int64_t below(int64_t n) {
    const auto range = static_cast<uint64_t>(n);
    const uint64_t fair = UINT64_MAX - UINT64_MAX % range;  // numbers from here on would favour small results
    uint64_t x = next();
    while (x >= fair) x = next();
    return static_cast<int64_t>(x % range);
  }

private:
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

}  // namespace

void KvHead::take(const Layer& layer, int32_t kv_head, ThreadPool& pool) {
  constexpr int64_t piece = 1024;
  const size_t bytes = bytes_of(layer.shape.dtype);
  dim = layer.shape.head_dim, tokens = layer.tokens;
  const auto n = static_cast<size_t>(tokens) * static_cast<size_t>(dim);
  k.resize(n), v.resize(n);
  const auto read = [&](const Tensor& from, std::vector<float>& to, int64_t first) {
    const int64_t last = std::min(tokens, first + piece);
    with_type(layer.shape.dtype, at(from, bytes, kv_head, first), [&](const auto* x) {
      float* out = to.data() + first * dim;
      for (int64_t j = first; j < last; ++j, x += from.strides.token, out += dim)
        for (int32_t c = 0; c < dim; ++c) out[c] = static_cast<float>(x[c]);
    });
  };
  share_out(pool, (tokens + piece - 1) / piece, [&](int64_t i, int) {
    read(layer.k, k, i * piece);
    read(layer.v, v, i * piece);
  });
}

Means::Means(const KvHead& of) : groups(of.tokens / keys) {
  const auto sum_up = [&](const std::vector<float>& from, std::vector<float>& to) {
    std::vector<double> sum(static_cast<size_t>(of.dim));
    for (int64_t g = 0; g < groups; ++g) {
      std::fill(sum.begin(), sum.end(), 0);
      const float* x = from.data() + g * keys * of.dim;
      for (int64_t j = 0; j < keys; ++j, x += of.dim)
        for (size_t c = 0; c < sum.size(); ++c) sum[c] += static_cast<double>(x[c]);
      for (double m : sum) to.push_back(static_cast<float>(m / static_cast<double>(keys)));
    }
  };
  sum_up(of.k, k), sum_up(of.v, v);
}

void ExactRow::compute(const Layer& layer, const KvHead& held, int32_t head, int64_t row, const Means* means) {
  const Shape& s = layer.shape;
  const int64_t keys = row + 1;
  dim_ = s.head_dim, blocks_ = (keys + SALE_K_BLOCK - 1) / SALE_K_BLOCK;
  weights_.resize(static_cast<size_t>(keys));
  mass_.assign(static_cast<size_t>(blocks_), 0), output_.assign(static_cast<size_t>(dim_), 0);
  sums_.assign(static_cast<size_t>(blocks_ * dim_), 0);
  double q[256];
  with_type(s.dtype, at(layer.q, bytes_of(s.dtype), head, row), [&](const auto* from) {
    for (int32_t c = 0; c < dim_; ++c)
      q[c] = static_cast<double>(static_cast<float>(from[c])) * static_cast<double>(layer.scale);
  });
  score(q, held.k.data(), keys, dim_, weights_.data());
  const double top = *std::max_element(weights_.begin(), weights_.end());
  double sum = 0;
  for (double& w : weights_) sum += w = std::exp(w - top);
  for (double& w : weights_) w /= sum;
  means_ = means;
  if (means != nullptr) {
    // A mean of exponentials is larger than the exponential of the mean: docs/numerics.md has the factor.
    const double each = std::numbers::sqrt2 * SALE_K_BLOCK / sum;
    standing_in_.resize(static_cast<size_t>(std::min(means->groups, keys / Means::keys)));
    score(q, means->k.data(), static_cast<int64_t>(standing_in_.size()), dim_, standing_in_.data());
    for (double& w : standing_in_) w = each * std::exp(w - top);
  }
  for (int64_t b = 0; b < blocks_; ++b) {
    const int64_t first = b * SALE_K_BLOCK;
    mass_[static_cast<size_t>(b)] = weigh(weights_.data() + first, held.v.data() + first * dim_,
                                          std::min<int64_t>(SALE_K_BLOCK, keys - first), dim_, sums_.data() + b * dim_);
  }
  double bad = sum - sum;
  for (int64_t b = 0; b < blocks_; ++b)
    for (int32_t c = 0; c < dim_; ++c) output_[static_cast<size_t>(c)] += sums_[static_cast<size_t>(b * dim_ + c)];
  for (double x : output_) bad += x - x;
  require(bad == 0, "layer ", layer.number, ": the attention of query head ", head, " at token ", row,
          " is not finite; q, k and v of finite numbers are needed");
}

double ExactRow::size() const {
  double sum = 0;
  for (double x : output_) sum += std::fabs(x);
  return sum;
}

ExactRow::Loss ExactRow::loss(const Bits& kept, int64_t tile) const {
  double out[256] = {}, mass = 0;
  const auto is_kept = [&](int64_t b) { return (kept[static_cast<size_t>(b / 64)] >> (b % 64) & 1) != 0; };
  for (int64_t b = 0; b < blocks_; ++b) {
    if (!is_kept(b)) continue;
    mass += mass_[static_cast<size_t>(b)];
    const double* from = sums_.data() + b * dim_;
    for (int32_t c = 0; c < dim_; ++c) out[c] += from[c];
  }
  double all = mass;
  constexpr int64_t blocks = Means::keys / SALE_K_BLOCK;
  for (int64_t g = 0; means_ != nullptr && g < static_cast<int64_t>(standing_in_.size()); ++g) {
    if ((g + 1) * Means::keys > tile + 1) break;
    int dropped = 0;
    for (int64_t b = g * blocks; b < (g + 1) * blocks; ++b) dropped += is_kept(b) ? 0 : 1;
    const double weight = dropped * standing_in_[static_cast<size_t>(g)];
    if (weight == 0) continue;
    all += weight;
    const float* value = means_->v.data() + g * dim_;
    for (int32_t c = 0; c < dim_; ++c) out[c] += weight * static_cast<double>(value[c]);
  }
  double error = 0;
  for (int32_t c = 0; c < dim_; ++c) error += std::fabs(out[c] / all - output_[static_cast<size_t>(c)]);
  return {error, mass};
}

std::vector<int64_t> sample_rows(uint64_t seed, int32_t layer, int32_t head, int64_t tokens, int32_t count) {
  std::vector<int64_t> rows;
  rows.reserve(static_cast<size_t>(count) + 7);
  const int64_t first = tokens <= first_position ? 0 : first_position;
  Random random(seed ^ (static_cast<uint64_t>(layer) << 32 | static_cast<uint64_t>(head) << 16));
  for (int32_t i = 0; i < count; ++i) rows.push_back(first + random.below(tokens - first));
  for (int64_t back : {8, 24, 40, 64, 90, 120, 150}) rows.push_back(tokens - back);
  return rows;
}

}  // namespace sale::calibration
