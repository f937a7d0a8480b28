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

std::vector<float> AttentionSettings::thresholds(int layer, int q_heads) const {
  if (calibration == nullptr || tau_over_calibration) return std::vector<float>(static_cast<size_t>(q_heads), tau);
  const auto from = calibration->layer_thresholds(layer);
  return {from.begin(), from.end()};
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
      workspace_(placement_.device()),
      guard_(settings_.guard, static_cast<int>(config.layers), config.q_heads) {
  totals_.heads.resize(static_cast<size_t>(config.layers * config.q_heads));
  reset_totals();
}

void SaleAttention::reset_totals() {
  const size_t heads = totals_.heads.size();
  totals_ = {};
  totals_.heads.resize(heads);
  totals_.audits.assign(heads, {0, 0, 0, 0, 1});
}

Options SaleAttention::options_now(int layer) const {
  std::vector<float> thresholds = settings_.thresholds(layer, q_heads_);
  guard_.apply(layer, thresholds);
  return settings_.options(layer).thresholds(thresholds);
}

const Plan& SaleAttention::plan_for(const lm::AttentionCall& call, const Problem& problem, bool dense) {
  const Key key{call.layer, dense, call.q_len, call.k_len};
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  if (plans_.size() >= most_plans) plans_.clear();
  Options options = options_now(call.layer);
  // Tokens generated one by one are no sample of anything.
  if (!dense && !call.decode) options.audit(settings_.audit, settings_.audit_seed + static_cast<uint64_t>(call.layer));
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

// By the plan as it stands; a watcher sees the blocks.
void SaleAttention::attend(const lm::AttentionCall& call, const Placement::Call& placed, Stats& stats) {
  const Plan& plan = plan_for(call, placed.problem, false);
  Stats index;
  const sale_index* keys = index_for(call, placed, index).get();
  stats.per_head = true;
  if (watcher_ == nullptr) {
    plan.run(placed.tensors, workspace_.bytes(), {&keys, 1}, &stats);
  } else {
    BlockList blocks(plan);
    plan.select(placed.tensors, blocks, workspace_.bytes(), {&keys, 1}, &stats);
    const double select_s = stats.select_s;
    plan.attend(placed.tensors, blocks, workspace_.bytes(), &stats);
    stats.select_s = select_s;
    placement_.fetch(call);
    const auto start = std::chrono::steady_clock::now();
    watcher_->saw(call, blocks);
    totals_.watch_s += since(start);
  }
  stats.index_s = index.index_s;
}

// One head as a problem of its own, which makes its own index.
Stats SaleAttention::run_head(const lm::AttentionCall& call, const Placement::Call& placed, int head, float tau) {
  const int64_t kv_head = head / (call.q_heads / call.kv_heads);
  const auto at = [](const void* base, int64_t elements) { return static_cast<const uint16_t*>(base) + elements; };
  const Tensors tensors{at(placed.tensors.q, head * call.q_head_stride),
                        at(placed.tensors.k, kv_head * placed.keys.head),
                        at(placed.tensors.v, kv_head * placed.keys.head),
                        static_cast<uint16_t*>(placed.tensors.out) + head * call.out_head_stride, nullptr};
  Problem problem(1, 1, 1, call.q_len, call.k_len, call.head_dim, SALE_BF16);
  problem.scale(call.scale)
      .strides({0, call.q_head_stride, call.q_token_stride}, placed.keys, placed.keys,
               {0, call.out_head_stride, call.out_token_stride});
  if (placement_.device()) problem.device(device_ordinal);
  Options options = settings_.options(call.layer);
  if (const Calibration* c = settings_.calibration) {
    const auto part = [&](std::span<const float> all) {
      const size_t size = all.size() / static_cast<size_t>(call.kv_heads);
      return all.subspan(static_cast<size_t>(kv_head) * size, size);
    };
    if (c->projected())
      options.estimator(c->format, c->rank, part(c->layer_q_projection(call.layer)),
                        part(c->layer_k_projection(call.layer)));
    if (!c->smoothing.empty())
      options.smoothing(part(c->layer_smoothing(call.layer)), part(c->layer_scales(call.layer)));
  }
  options.threshold(tau).audit(settings_.audit, settings_.audit_seed + static_cast<uint64_t>(call.layer));
  const Plan plan(problem, options);
  workspace_.need(plan.workspace().total);
  Stats stats;
  stats.per_head = true;
  plan.run(tensors, workspace_.bytes(), {}, &stats);
  return stats;
}

// Heads that the guard does not let pass, until it does.
void SaleAttention::run_again(const lm::AttentionCall& call, const Placement::Call& placed, Stats& stats) {
  bool lowered = false;
  for (int h = 0; h < q_heads_; ++h) {
    const auto tau = [&] {
      std::vector<float> all = settings_.thresholds(call.layer, q_heads_);
      guard_.apply(call.layer, all);
      return all[static_cast<size_t>(h)];
    };
    while (guard_.passes(call.layer, h, tau(), stats.audits[static_cast<size_t>(h)])) {
      const Stats again = run_head(call, placed, h, tau());
      stats.index_s += again.index_s, stats.select_s += again.select_s, stats.attend_s += again.attend_s;
      stats.audit_s += again.audit_s;
      stats.heads[static_cast<size_t>(h)] = again.heads[0], stats.audits[static_cast<size_t>(h)] = again.audits[0];
      lowered = true;
    }
  }
  if (lowered) std::erase_if(plans_, [&](const auto& p) { return std::get<0>(p.first) == call.layer; });
}

void SaleAttention::run_sparse(const lm::AttentionCall& call, const Placement::Call& placed) {
  Stats stats;
  attend(call, placed, stats);
  if (settings_.guard > 0 && !stats.audits.empty()) run_again(call, placed, stats);
  totals_.index_s += stats.index_s, totals_.select_s += stats.select_s, totals_.attend_s += stats.attend_s;
  totals_.audit_s += stats.audit_s;
  for (size_t h = 0; h < stats.heads.size(); ++h) {
    const size_t at = static_cast<size_t>(call.layer * q_heads_) + h;
    sale_head_stats& to = totals_.heads[at];
    to.kept_blocks += stats.heads[h].kept_blocks, to.visible_blocks += stats.heads[h].visible_blocks;
    if (stats.audits.empty()) continue;
    sale_head_audit& sum = totals_.audits[at];
    const sale_head_audit& one = stats.audits[h];
    sum = {sum.rows + one.rows, sum.error + one.error, sum.size + one.size, sum.mass + one.mass,
           std::min(sum.least_mass, one.least_mass)};
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
