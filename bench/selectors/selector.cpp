#include "bench/selectors/selector.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lm/bf16.hpp"

namespace sale::bench {
namespace {

constexpr float nothing = -std::numeric_limits<float>::infinity();

// Rows of scores to rows of probabilities.
void soften(std::vector<float>& s, int64_t rows, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = s.data() + r * stride;
    const float top = *std::max_element(row, row + stride);
    double sum = 0;
    for (int64_t j = 0; j < stride; ++j)
      sum += static_cast<double>(row[j] = top == nothing ? 0 : std::exp(row[j] - top));
    for (int64_t j = 0; j < stride; ++j) row[j] = sum > 0 ? row[j] / static_cast<float>(sum) : 0;
  }
}

// The fewest of `weights`, largest first, that bring the sum over `marked` to `share` of the whole.
void mark_share(const std::vector<double>& weights, double share, std::vector<char>& marked) {
  std::vector<size_t> order(weights.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
  double whole = 0, have = 0;
  for (size_t i = 0; i < weights.size(); ++i) whole += weights[i], have += marked[i] ? weights[i] : 0;
  for (size_t i : order) {
    if (have >= share * whole) return;
    if (!marked[i]) marked[i] = 1, have += weights[i];
  }
}

// Mean softmax mass of each block of the tile.
std::vector<double> masses(const Head& h, int64_t tile) {
  const int64_t rows = h.rows(tile), blocks = h.visible_blocks(tile), stride = Head::stride(blocks * 32);
  std::vector<float> p = h.scores(tile * 64, rows, blocks * 32);
  soften(p, rows, stride);
  std::vector<double> mass(static_cast<size_t>(blocks));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < blocks * 32; ++j)
      mass[static_cast<size_t>(j / 32)] +=
          static_cast<double>(p[static_cast<size_t>(r * stride + j)]) / static_cast<double>(rows);
  return mass;
}

struct Exact : Selector {
  Exact(const Head& h, double tau) : Selector(h), tau_(tau) {}
  void choose(int64_t tile, std::vector<char>& wanted) const override {
    const Head& h = head_;
    const int64_t rows = h.rows(tile), blocks = h.visible_blocks(tile), stride = Head::stride(blocks * 32);
    const int64_t local = std::max<int64_t>(1, h.local_block(tile)) * 32;
    const std::vector<float> s = h.scores(tile * 64, rows, blocks * 32);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = s.data() + r * stride;
      const auto reference = [&](auto&& f) {
        for (int64_t j = 0; j < std::min<int64_t>(32, blocks * 32); ++j) f(row[j]);
        for (int64_t j = local; j < blocks * 32; ++j) f(row[j]);
      };
      float m = nothing;
      double l = 0;
      reference([&](float x) { m = std::max(m, x); });
      reference([&](float x) { l += static_cast<double>(std::exp(x - m)); });
      const auto limit = static_cast<float>(static_cast<double>(m) + std::log(tau_ * l));
      for (int64_t j = 32; j < local; ++j)
        if (row[j] >= limit) wanted[static_cast<size_t>(j / 32)] = 1;
    }
  }
  double tau_;
};

struct TopK : Selector {
  TopK(const Head& h, double k) : Selector(h), k_(k) {}
  void choose(int64_t tile, std::vector<char>& wanted) const override {
    std::vector<double> mass = masses(head_, tile);
    std::vector<size_t> order(mass.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return mass[a] > mass[b]; });
    for (size_t i = 0; i < std::min(order.size(), static_cast<size_t>(k_)); ++i) wanted[order[i]] = 1;
  }
  double k_;
};

void mark_kept_anyway(const Head& h, int64_t tile, std::vector<char>& wanted) {
  wanted[0] = 1;
  for (size_t b = static_cast<size_t>(h.local_block(tile)); b < wanted.size(); ++b) wanted[b] = 1;
}

struct TopP : Selector {
  TopP(const Head& h, double p) : Selector(h), p_(p) {}
  void choose(int64_t tile, std::vector<char>& wanted) const override {
    mark_kept_anyway(head_, tile, wanted);
    mark_share(masses(head_, tile), p_, wanted);
  }
  double p_;
};

struct Pooled : Selector {
  static constexpr int64_t span = 128;
  Pooled(const Head& h, double share) : Selector(h), share_(share) {
    for (int64_t b = 0; b * span < h.k_len; ++b) {
      const int64_t end = std::min((b + 1) * span, h.k_len);
      for (int64_t c = 0; c < h.d; ++c) {
        float sum = 0;
        for (int64_t j = b * span; j < end; ++j) sum += h.k[static_cast<size_t>(j * h.d + c)];
        means_.push_back(sum / static_cast<float>(end - b * span));
      }
    }
  }
  void choose(int64_t tile, std::vector<char>& wanted) const override {
    const Head& h = head_;
    const int64_t rows = h.rows(tile), spans = h.position(tile * 64) / span + 1;
    std::vector<float> s(static_cast<size_t>(rows * spans));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t b = 0; b < spans; ++b) {
        const float *q = h.q.data() + (tile * 64 + r) * h.d, *k = means_.data() + b * h.d;
        s[static_cast<size_t>(r * spans + b)] = std::inner_product(q, q + h.d, k, 0.0f);
      }
    soften(s, rows, spans);
    std::vector<double> weight(static_cast<size_t>(spans));
    for (int64_t i = 0; i < rows * spans; ++i)
      weight[static_cast<size_t>(i % spans)] += static_cast<double>(s[static_cast<size_t>(i)]);
    const double most = *std::max_element(weight.begin(), weight.end());
    for (size_t b = 0; b < wanted.size() && b * 32 / span < weight.size(); ++b)
      if (weight[b * 32 / span] >= share_ * most) wanted[b] = 1;
  }
  double share_;
  std::vector<float> means_;  // [spans, d]
};

struct Antidiagonal : Selector {
  static constexpr int64_t step = 16;
  Antidiagonal(const Head& h, double p) : Selector(h), p_(p) {}
  void choose(int64_t tile, std::vector<char>& wanted) const override {
    const Head& h = head_;
    const int64_t blocks = h.visible_blocks(tile), stride = Head::stride(blocks * 32), groups = blocks * 32 / step;
    const int64_t rows = h.rows(tile), bands = (rows + step - 1) / step;
    const std::vector<float> s = h.scores(tile * 64, rows, blocks * 32);
    // One number for 16 rows and 16 keys: the mean along the antidiagonal, over pairs that are seen.
    std::vector<float> sums(static_cast<size_t>(bands * groups), nothing);
    for (int64_t i = 0; i < bands; ++i)
      for (int64_t g = 0; g < groups; ++g) {
        double sum = 0;
        int64_t seen = 0;
        for (int64_t t = 0; t < step && i * step + t < rows; ++t) {
          const float x = s[static_cast<size_t>((i * step + t) * stride + g * step + step - 1 - t)];
          if (x != nothing) sum += static_cast<double>(x), ++seen;
        }
        if (seen > 0) sums[static_cast<size_t>(i * groups + g)] = static_cast<float>(sum / static_cast<double>(seen));
      }
    soften(sums, bands, groups);
    std::vector<double> weight(wanted.size());
    for (int64_t i = 0; i < bands * groups; ++i)
      weight[static_cast<size_t>(i % groups * step / 32)] += static_cast<double>(sums[static_cast<size_t>(i)]);
    mark_kept_anyway(h, tile, wanted);
    mark_share(weight, p_, wanted);
  }
  double p_;
};

struct VerticalSlash : Selector {
  VerticalSlash(const Head& h, double share) : Selector(h) {
    const int64_t rows = std::min<int64_t>(64, h.q_len), first = h.q_len - rows, stride = Head::stride(h.k_len);
    std::vector<float> p = h.scores(first, rows, h.k_len);
    soften(p, rows, stride);
    std::vector<double> vertical(static_cast<size_t>(h.k_len)), slash(vertical);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j <= h.position(first + r); ++j) {
        const auto x = static_cast<double>(p[static_cast<size_t>(r * stride + j)]);
        vertical[static_cast<size_t>(j)] += x, slash[static_cast<size_t>(h.position(first + r) - j)] += x;
      }
    std::vector<char> keys(vertical.size()), offsets(slash.size());
    mark_share(vertical, share, keys), mark_share(slash, share, offsets);
    columns_.resize((keys.size() + 31) / 32);
    for (size_t j = 0; j < keys.size(); ++j)
      if (keys[j]) columns_[j / 32] = 1;
    for (size_t o = 0; o < offsets.size(); ++o)
      if (offsets[o]) offsets_.push_back(static_cast<int64_t>(o));
  }
  void choose(int64_t tile, std::vector<char>& wanted) const override {
    for (size_t b = 0; b < wanted.size(); ++b) wanted[b] = columns_[b];
    const int64_t low = head_.position(tile * 64), high = low + head_.rows(tile) - 1;
    for (int64_t o : offsets_)
      for (int64_t b = std::max<int64_t>(0, low - o) / 32; o <= high && b <= (high - o) / 32; ++b)
        wanted[static_cast<size_t>(b)] = 1;
  }
  std::vector<char> columns_;
  std::vector<int64_t> offsets_;
};

struct SinkLocal : Selector {
  explicit SinkLocal(const Head& h) : Selector(h) {}
  void choose(int64_t, std::vector<char>&) const override {}
};

}  // namespace

Head::Head(const lm::AttentionCall& c, int head) : q_len(c.q_len), k_len(c.k_len), d(c.head_dim) {
  const auto widen = [&](const uint16_t* from, int64_t rows, int64_t stride, float factor, std::vector<float>& to) {
    to.resize(static_cast<size_t>(rows * d));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < d; ++i) to[static_cast<size_t>(r * d + i)] = lm::from_bf16(from[r * stride + i]) * factor;
  };
  widen(c.q + head * c.q_head_stride, q_len, c.q_token_stride, c.scale, q);
  const int kv_head = head / (c.q_heads / c.kv_heads);
  widen(c.k + kv_head * c.kv_head_stride, k_len, c.kv_token_stride, 1, k);
  for (int64_t at = 0; at < k_len; at += piece) {
    std::vector<float> some(static_cast<size_t>(piece * d));
    std::copy_n(k.begin() + at * d, std::min(piece, k_len - at) * d, some.begin());
    keys_.emplace_back(lm::Compute::f32, d, piece, some, std::vector<float>());
  }
}

std::vector<float> Head::scores(int64_t first, int64_t count, int64_t keys) const {
  const int64_t wide = stride(keys);
  std::vector<float> s(static_cast<size_t>(count * wide)), part(static_cast<size_t>(count * piece));
  for (int64_t at = 0; at < keys; at += piece) {
    keys_[static_cast<size_t>(at / piece)].run(count, q.data() + first * d, part.data(), lm::Linear::Then::store_f32,
                                               nullptr, 1);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t seen = std::clamp<int64_t>(position(first + r) + 1 - at, 0, piece);
      float* to = s.data() + r * wide + at;
      std::copy_n(part.begin() + r * piece, seen, to);
      std::fill(to + seen, to + piece, nothing);
    }
  }
  return s;
}

std::vector<int32_t> Selector::keep(int64_t tile) const {
  std::vector<char> wanted(static_cast<size_t>(head_.visible_blocks(tile)));
  choose(tile, wanted);
  mark_kept_anyway(head_, tile, wanted);
  std::vector<int32_t> kept;
  for (size_t b = 0; b < wanted.size(); ++b)
    if (wanted[b]) kept.push_back(static_cast<int32_t>(b));
  return kept;
}

std::unique_ptr<Selector> make_selector(Kind kind, double x, const Head& h) {
  switch (kind) {
    case Kind::exact: return std::make_unique<Exact>(h, x);
    case Kind::top_k: return std::make_unique<TopK>(h, x);
    case Kind::top_p: return std::make_unique<TopP>(h, x);
    case Kind::pooled: return std::make_unique<Pooled>(h, x);
    case Kind::antidiagonal: return std::make_unique<Antidiagonal>(h, x);
    case Kind::vertical_slash: return std::make_unique<VerticalSlash>(h, x);
    default: return std::make_unique<SinkLocal>(h);
  }
}

}  // namespace sale::bench
