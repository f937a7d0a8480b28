#include "sweep.hpp"

#include <algorithm>
#include <cmath>

#include "lm/bf16.hpp"
#include "lm/workers.hpp"
#include "measure.hpp"
#include "quality.hpp"

namespace sale::cli {
namespace {

AttentionSettings dense_of(AttentionSettings s) {
  s.dense = true;
  return s;
}

std::span<const float> layer_part(const std::vector<float>& of_all, const lm::AttentionCall& call) {
  return std::span(of_all).subspan(static_cast<size_t>(call.layer * call.q_heads), static_cast<size_t>(call.q_heads));
}

size_t head_at(const lm::AttentionCall& call, int64_t h) { return static_cast<size_t>(call.layer * call.q_heads + h); }

}  // namespace

// ---- cost ----------------------------------------------------------------------------------------------------------

void Cost::add(double rows, double kept, double seconds) {
  rr_ += rows * rows, rk_ += rows * kept, kk_ += kept * kept, rs_ += rows * seconds, ks_ += kept * seconds;
}
void Cost::add(const Cost& o) { rr_ += o.rr_, rk_ += o.rk_, kk_ += o.kk_, rs_ += o.rs_, ks_ += o.ks_; }

Cost Cost::of(const Json& j) {
  Cost c;
  c.rr_ = j.at(0), c.rk_ = j.at(1), c.kk_ = j.at(2), c.rs_ = j.at(3), c.ks_ = j.at(4);
  return c;
}

std::pair<double, double> Cost::solve() const {
  const double determinant = rr_ * kk_ - rk_ * rk_;
  if (!(determinant > 1e-9 * rr_ * kk_)) return {0, kk_ > 0 ? ks_ / kk_ : 0};
  const double a = (rs_ * kk_ - ks_ * rk_) / determinant, b = (ks_ * rr_ - rs_ * rk_) / determinant;
  // A negative share would be noise of the clock.
  if (a < 0) return {0, ks_ / kk_};
  if (b < 0) return {rs_ / rr_, 0};
  return {a, b};
}

// ---- what was measured ---------------------------------------------------------------------------------------------

void Measured::add(const Measured& other) {
  if (tries.empty()) tries.resize(other.tries.size(), Points(other.tries.empty() ? 0 : other.tries.front().size()));
  for (size_t t = 0; t < tries.size(); ++t)
    for (size_t h = 0; h < tries[t].size(); ++h) {
      Point& to = tries[t][h];
      const Point& p = other.tries[t][h];
      to = {std::max(to.error, p.error),
            std::max(to.relative, p.relative),
            std::max(to.per_token, p.per_token),
            to.mass + p.mass,
            to.kept + p.kept,
            to.visible + p.visible};
    }
  cost.add(other.cost);
  rows_of_blocks += other.rows_of_blocks;
  prompts += other.prompts;
}

Json json_of(const Measured& m) {
  Json tries = Json::array();
  for (const Points& points : m.tries) {
    Json heads = Json::array();
    for (const Point& p : points) heads.push_back({p.error, p.relative, p.per_token, p.mass, p.kept, p.visible});
    tries.push_back(heads);
  }
  return {{"tries", tries}, {"cost", m.cost.json()}, {"rows_of_blocks", m.rows_of_blocks}, {"prompts", m.prompts}};
}

Measured measured_of(const Json& j) {
  Measured m;
  for (const Json& heads : j.at("tries")) {
    m.tries.emplace_back();
    for (const Json& p : heads) m.tries.back().push_back({p.at(0), p.at(1), p.at(2), p.at(3), p.at(4), p.at(5)});
  }
  m.cost = Cost::of(j.at("cost"));
  j.at("rows_of_blocks").get_to(m.rows_of_blocks), j.at("prompts").get_to(m.prompts);
  return m;
}

// ---- sweep ---------------------------------------------------------------------------------------------------------

struct Sweep::Rows {
  std::vector<int64_t> rows;
  std::vector<ExactRow> exact;
  std::vector<std::vector<double>> outputs;
  double size = 0;  // sum of |O|_1
};

Sweep::Sweep(const lm::Config& config, AttentionSettings settings, Tries tries, Form form, int64_t capacity)
    : dense_(config, dense_of(settings), capacity),
      settings_(std::move(settings)),
      tries_(std::move(tries)),
      form_(form),
      threads_(thread_count(settings_.threads)),
      placement_(config, uses_device(settings_.backend), capacity),
      workspace_(placement_.device()) {
  measured_.tries.assign(tries_.size(), Points(static_cast<size_t>(config.layers * config.q_heads)));
  measured_.prompts = 1;
}

std::vector<Sweep::Rows> Sweep::exact_rows(const lm::AttentionCall& call) const {
  std::vector<Rows> heads(static_cast<size_t>(call.q_heads));
  lm::for_each_index(threads_, call.q_heads, [&](int64_t h, int) {
    Rows& r = heads[static_cast<size_t>(h)];
    r.rows = sample_rows(form_.seed, call.layer, static_cast<int>(h), Quality::first_position, call.q_len, form_.rows);
    // The end of a built prompt is where facts are asked for.
    for (int64_t back : {8, 24, 40, 64, 90, 120, 150}) r.rows.push_back(call.q_len - back);
    for (int64_t row : r.rows) {
      r.exact.emplace_back(call, static_cast<int>(h), row);
      r.outputs.push_back(r.exact.back().output());
      r.size += l1(r.outputs.back());
    }
  });
  return heads;
}

void Sweep::measure(const lm::AttentionCall& call, const Placement::Call& placed, const KeyIndex& index, size_t at,
                    const std::vector<Rows>& rows) {
  Options options = settings_.options(call.layer);
  options.thresholds(layer_part(tries_[at], call));
  const Plan plan(placed.problem, options, Plan::Keys::have_an_index);
  workspace_.need(plan.workspace().total);
  BlockList blocks(plan);
  Stats stats;
  stats.per_head = true;
  const sale_index* handle = index.get();
  plan.select(placed.tensors, blocks, workspace_.bytes(), {&handle, 1}, &stats);
  if (form_.cost && at % 4 == 0) {
    Stats attend;
    plan.attend(placed.tensors, blocks, workspace_.bytes(), &attend);
    const double rows_of_blocks =
        static_cast<double>((call.q_len + blocks.q_block() - 1) / blocks.q_block() * call.q_heads);
    measured_.cost.add(rows_of_blocks, static_cast<double>(attend.kept_blocks), attend.attend_s);
    if (at == 0) measured_.rows_of_blocks += rows_of_blocks;
  }
  double layer_size = 0;
  for (const Rows& r : rows) layer_size += r.size / static_cast<double>(rows.size());
  lm::for_each_index(threads_, call.q_heads, [&](int64_t h, int) {
    const Rows& r = rows[static_cast<size_t>(h)];
    Point& p = measured_.tries[at][head_at(call, h)];
    double error = 0;
    for (size_t i = 0; i < r.rows.size(); ++i) {
      const auto kept = blocks.row(0, static_cast<int32_t>(h), r.rows[i] / blocks.q_block()).kept;
      error += l1_distance(r.exact[i].output(kept), r.outputs[i]);
      p.mass += r.exact[i].mass(kept) / static_cast<double>(r.rows.size());
    }
    p.error = error / layer_size, p.relative = error / r.size;
    p.kept = stats.heads[static_cast<size_t>(h)].kept_blocks;
    p.visible = stats.heads[static_cast<size_t>(h)].visible_blocks;
  });
}

void Sweep::run(const lm::AttentionCall& call) {
  const Placement::Call placed = placement_.place(call);
  KeyIndex index(placed.problem, settings_.options(call.layer), call.k_len);
  index.update(placed.tensors.k, placed.keys, call.k_len);
  const std::vector<Rows> rows = exact_rows(call);
  for (size_t at = 0; at < tries_.size(); ++at) measure(call, placed, index, at, rows);
  dense_.run(call);  // last: what was put out for the clock's sake is overwritten
}

// ---- halving -------------------------------------------------------------------------------------------------------

Halving::Halving(const lm::Config& config, AttentionSettings settings, double theta, std::vector<float> thresholds,
                 int64_t capacity)
    : dense_(config, dense_of(settings), capacity),
      settings_(std::move(settings)),
      theta_(theta),
      thresholds_(std::move(thresholds)),
      placement_(config, uses_device(settings_.backend), capacity),
      workspace_(placement_.device()),
      points_(thresholds_.size()) {}

void Halving::run(const lm::AttentionCall& call) {
  dense_.run(call);
  const auto rows = static_cast<size_t>(call.q_len), width = static_cast<size_t>(call.out_token_stride);
  const std::vector<uint16_t> dense(call.out, call.out + rows * width);
  const Placement::Call placed = placement_.place(call);
  KeyIndex index(placed.problem, settings_.options(call.layer), call.k_len);
  index.update(placed.tensors.k, placed.keys, call.k_len);
  const sale_index* handle = index.get();
  for (bool again = true; again;) {
    const Plan plan(placed.problem, settings_.options(call.layer).thresholds(layer_part(thresholds_, call)),
                    Plan::Keys::have_an_index);
    workspace_.need(plan.workspace().total);
    Stats stats;
    stats.per_head = true;
    plan.run(placed.tensors, workspace_.bytes(), {&handle, 1}, &stats);
    placement_.fetch(call);
    again = false;
    lm::for_each_index(thread_count(settings_.threads), call.q_heads, [&](int64_t h, int) {
      double error = 0, size = 0;
      for (int64_t i = 0; i < call.q_len; ++i)
        for (int64_t c = 0; c < call.head_dim; ++c) {
          const auto at = static_cast<size_t>(i * call.out_token_stride + h * call.out_head_stride + c);
          const double exact = static_cast<double>(lm::from_bf16(dense[at]));
          error += std::fabs(static_cast<double>(lm::from_bf16(call.out[at])) - exact), size += std::fabs(exact);
        }
      Point& p = points_[head_at(call, h)];
      p.per_token = error / static_cast<double>(call.q_len), p.relative = error / size;
      p.kept = stats.heads[static_cast<size_t>(h)].kept_blocks;
      p.visible = stats.heads[static_cast<size_t>(h)].visible_blocks;
    });
    for (int h = 0; h < call.q_heads; ++h) {
      float& tau = thresholds_[head_at(call, h)];
      if (tau == 0 || points_[head_at(call, h)].per_token <= theta_) continue;
      tau = tau / 2 < least ? 0 : tau / 2;
      again = true;
    }
  }
  std::copy(dense.begin(), dense.end(), call.out);
}

}  // namespace sale::cli
