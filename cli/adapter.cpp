#include "adapter.hpp"

#include <algorithm>
#include <chrono>

namespace sale::cli {
namespace {

// Decoding makes a plan per token and layer; they are cheap, but not to be kept.
constexpr size_t most_plans = 512;

double since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double ratio(int64_t kept, int64_t visible) {
  return visible > 0 ? static_cast<double>(kept) / static_cast<double>(visible) : 1;
}

}  // namespace

Options AttentionSettings::options(int layer) const {
  Options o;
  if (calibration != nullptr)
    o = calibration->options(layer);
  else
    o.estimator(format);
  if (calibration == nullptr || tau_over_calibration) o.threshold(tau);
  return o.compute(compute).compensate(compensate).backend(backend).threads(threads);
}

double AttentionTotals::density() const {
  int64_t kept = 0, visible = 0;
  for (const sale_head_stats& h : heads) kept += h.kept_blocks, visible += h.visible_blocks;
  return ratio(kept, visible);
}
double AttentionTotals::density(size_t head) const {
  return ratio(heads[head].kept_blocks, heads[head].visible_blocks);
}

namespace {

// Elements from the first to behind the last.
int64_t extent(int64_t tokens, int64_t token_stride, int64_t heads, int64_t head_stride, int64_t head_dim) {
  return (tokens - 1) * token_stride + (heads - 1) * head_stride + head_dim;
}

}  // namespace

Placement::Placement(const lm::Config& config, bool device, int64_t capacity)
    : device_(device), capacity_(capacity), layers_(static_cast<size_t>(config.layers)) {}

void Placement::append(Layer& layer, const lm::AttentionCall& c) const {
  const auto row = static_cast<size_t>(c.head_dim) * 2, head = static_cast<size_t>(capacity_) * row;
  layer.k.need(head * static_cast<size_t>(c.kv_heads)), layer.v.need(head * static_cast<size_t>(c.kv_heads));
  const auto add = [&](const DeviceMemory& to, const uint16_t* from) {
    for (int64_t h = 0; h < c.kv_heads; ++h)
      to.put_rows(static_cast<size_t>(h) * head + static_cast<size_t>(layer.length) * row, row,
                  from + h * c.kv_head_stride + layer.length * c.kv_token_stride,
                  static_cast<size_t>(c.kv_token_stride) * 2, row, static_cast<size_t>(c.k_len - layer.length));
  };
  add(layer.k, c.k), add(layer.v, c.v);
  layer.length = c.k_len;
}

Placement::Call Placement::place(const lm::AttentionCall& c) {
  Problem problem(1, c.q_heads, c.kv_heads, c.q_len, c.k_len, c.head_dim, SALE_BF16);
  const sale_strides q{0, c.q_head_stride, c.q_token_stride}, out{0, c.out_head_stride, c.out_token_stride};
  sale_strides kv{0, c.kv_head_stride, c.kv_token_stride};
  Tensors tensors{c.q, c.k, c.v, c.out, nullptr};
  if (device_) {
    Layer& layer = layers_[static_cast<size_t>(c.layer)];
    append(layer, c);
    kv = {0, capacity_ * c.head_dim, c.head_dim};
    const auto bytes = [&](int64_t token, int64_t head) {
      return static_cast<size_t>(extent(c.q_len, token, c.q_heads, head, c.head_dim)) * 2;
    };
    q_.need(bytes(q.token, q.head)), out_.need(bytes(out.token, out.head));
    q_.put(0, c.q, bytes(q.token, q.head));
    tensors = {q_.data(), layer.k.data(), layer.v.data(), out_.data(), nullptr};
    problem.device(device_ordinal);
  }
  problem.scale(c.scale).strides(q, kv, kv, out);
  return {std::move(problem), tensors, kv};
}

void Placement::fetch(const lm::AttentionCall& c) const {
  if (!device_) return;
  // All heads of a token stand together, so what lies between is output too.
  out_.get(0, c.out,
           static_cast<size_t>(extent(c.q_len, c.out_token_stride, c.q_heads, c.out_head_stride, c.head_dim)) * 2);
}

void Placement::truncate(int64_t tokens) {
  for (Layer& layer : layers_) layer.length = std::min(layer.length, tokens);
}

SaleAttention::SaleAttention(const lm::Config& config, AttentionSettings settings, int64_t capacity)
    : q_heads_(config.q_heads),
      settings_(std::move(settings)),
      capacity_(capacity),
      indexes_(static_cast<size_t>(config.layers)),
      placement_(config, uses_device(settings_.backend), capacity),
      workspace_(placement_.device()) {
  totals_.heads.resize(static_cast<size_t>(config.layers * config.q_heads));
}

void SaleAttention::reset_totals() {
  const size_t heads = totals_.heads.size();
  totals_ = {};
  totals_.heads.resize(heads);
}

const Plan& SaleAttention::plan_for(const lm::AttentionCall& call, const Problem& problem, bool dense) {
  const Key key{call.layer, dense, call.q_len, call.k_len};
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  if (plans_.size() >= most_plans) plans_.clear();
  Options options = settings_.options(call.layer);
  if (dense) options.dense().compensate(false).compute(SALE_COMPUTE_EXACT);
  Plan plan(problem, options, dense ? Plan::Keys::indexed_each_run : Plan::Keys::have_an_index);
  workspace_.need(plan.workspace().total);
  backend_ = plan.backend();
  return plans_.emplace(key, std::move(plan)).first->second;
}

KeyIndex& SaleAttention::index_for(const lm::AttentionCall& call, const Placement::Call& placed, Stats& stats) {
  auto& index = indexes_[static_cast<size_t>(call.layer)];
  if (!index) index = std::make_unique<KeyIndex>(placed.problem, settings_.options(call.layer), capacity_);
  const double seconds =
      seconds_of(placement_.device(), [&] { index->update(placed.tensors.k, placed.keys, call.k_len); });
  stats.index_s += seconds;
  return *index;
}

void SaleAttention::run_sparse(const lm::AttentionCall& call, const Placement::Call& placed) {
  const Plan& plan = plan_for(call, placed.problem, false);
  Stats sum, stats;
  stats.per_head = true;
  const sale_index* index = index_for(call, placed, sum).get();
  if (watcher_ == nullptr) {
    plan.run(placed.tensors, workspace_.bytes(), {&index, 1}, &stats);
    totals_.select_s += stats.select_s, totals_.attend_s += stats.attend_s;
  } else {
    BlockList blocks(plan);
    plan.select(placed.tensors, blocks, workspace_.bytes(), {&index, 1}, &stats);
    Stats attend;
    plan.attend(placed.tensors, blocks, workspace_.bytes(), &attend);
    totals_.select_s += stats.select_s, totals_.attend_s += attend.attend_s;
    placement_.fetch(call);
    const auto start = std::chrono::steady_clock::now();
    watcher_->saw(call, blocks);
    totals_.watch_s += since(start);
  }
  totals_.index_s += sum.index_s + stats.index_s;
  for (size_t h = 0; h < stats.heads.size(); ++h) {
    sale_head_stats& to = totals_.heads[static_cast<size_t>(call.layer * q_heads_) + h];
    to.kept_blocks += stats.heads[h].kept_blocks, to.visible_blocks += stats.heads[h].visible_blocks;
  }
}

void SaleAttention::run(const lm::AttentionCall& call) {
  const Placement::Call placed = placement_.place(call);
  if (!settings_.dense && (!call.decode || settings_.sparse_decode)) {
    run_sparse(call, placed);
  } else {
    const Plan& plan = plan_for(call, placed.problem, true);
    Stats stats;
    plan.run(placed.tensors, workspace_.bytes(), {}, &stats);
    totals_.attend_s += stats.attend_s;
  }
  placement_.fetch(call);
}

void SaleAttention::truncate(int64_t tokens) {
  placement_.truncate(tokens);
  // At length 0 another prompt begins, and with it other smoothing vectors.
  for (auto& index : indexes_) {
    if (index && tokens == 0)
      index.reset();
    else if (index && index->length() > tokens)
      index->truncate(tokens);
  }
}

}  // namespace sale::cli
