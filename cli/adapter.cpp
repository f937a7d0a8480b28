#include "adapter.hpp"

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
  return o.backend(backend).threads(threads);
}

double AttentionTotals::density() const {
  int64_t kept = 0, visible = 0;
  for (const sale_head_stats& h : heads) kept += h.kept_blocks, visible += h.visible_blocks;
  return ratio(kept, visible);
}
double AttentionTotals::density(size_t head) const {
  return ratio(heads[head].kept_blocks, heads[head].visible_blocks);
}

Problem problem_of(const lm::AttentionCall& c) {
  Problem problem(1, c.q_heads, c.kv_heads, c.q_len, c.k_len, c.head_dim, SALE_BF16);
  const sale_strides q{0, c.q_head_stride, c.q_token_stride}, kv{0, c.kv_head_stride, c.kv_token_stride};
  problem.scale(c.scale).strides(q, kv, kv, {0, c.out_head_stride, c.out_token_stride});
  return problem;
}

SaleAttention::SaleAttention(const lm::Config& config, AttentionSettings settings, int64_t capacity)
    : q_heads_(config.q_heads),
      settings_(std::move(settings)),
      capacity_(capacity),
      indexes_(static_cast<size_t>(config.layers)) {
  totals_.heads.resize(static_cast<size_t>(config.layers * config.q_heads));
}

void SaleAttention::reset_totals() {
  const size_t heads = totals_.heads.size();
  totals_ = {};
  totals_.heads.resize(heads);
}

const Plan& SaleAttention::plan_for(const lm::AttentionCall& call, bool dense) {
  const Key key{call.layer, dense, call.q_len, call.k_len};
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  if (plans_.size() >= most_plans) plans_.clear();
  Options options = settings_.options(call.layer);
  if (dense) options.dense();
  Plan plan(problem_of(call), options, dense ? Plan::Keys::indexed_each_run : Plan::Keys::have_an_index);
  workspace_.need(plan.workspace().total);
  backend_ = plan.backend();
  return plans_.emplace(key, std::move(plan)).first->second;
}

KeyIndex& SaleAttention::index_for(const lm::AttentionCall& call, Stats& stats) {
  auto& index = indexes_[static_cast<size_t>(call.layer)];
  const auto start = std::chrono::steady_clock::now();
  if (!index) index = std::make_unique<KeyIndex>(problem_of(call), settings_.options(call.layer), capacity_);
  index->update(call.k, {0, call.kv_head_stride, call.kv_token_stride}, call.k_len);
  stats.index_s += since(start);
  return *index;
}

void SaleAttention::run_sparse(const lm::AttentionCall& call) {
  const Plan& plan = plan_for(call, false);
  Stats sum, stats;
  stats.per_head = true;
  const sale_index* index = index_for(call, sum).get();
  if (watcher_ == nullptr) {
    plan.run(tensors_of(call), workspace_, {&index, 1}, &stats);
    totals_.select_s += stats.select_s, totals_.attend_s += stats.attend_s;
  } else {
    BlockList blocks(plan);
    plan.select(tensors_of(call), blocks, workspace_, {&index, 1}, &stats);
    Stats attend;
    plan.attend(tensors_of(call), blocks, workspace_, &attend);
    totals_.select_s += stats.select_s, totals_.attend_s += attend.attend_s;
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
  if (!settings_.dense && (!call.decode || settings_.sparse_decode)) return run_sparse(call);
  const Plan& plan = plan_for(call, true);
  Stats stats;
  plan.run(tensors_of(call), workspace_, {}, &stats);
  totals_.attend_s += stats.attend_s;
}

void SaleAttention::truncate(int64_t tokens) {
  // At length 0 another prompt begins, and with it other smoothing vectors.
  for (auto& index : indexes_) {
    if (index && tokens == 0)
      index.reset();
    else if (index && index->length() > tokens)
      index->truncate(tokens);
  }
}

}  // namespace sale::cli
