// sale calibrate: a threshold for every layer and head, so that its output error stays within a limit.
//
// The model runs densely, so that every layer sees what it would see; at each layer the largest threshold of a grid is
// found, per head and by bisection, with which the selection's relative L1 error on sampled rows stays within the limit.
// A head's threshold is the smallest over the prompts; 0 (dense) when even the grid's least is too coarse.
#include <algorithm>
#include <cmath>

#include "calibration_prompts.hpp"
#include "lm/workers.hpp"
#include "measure.hpp"
#include "progress.hpp"
#include "quality.hpp"
#include "text.hpp"

namespace sale::cli {
namespace {

struct Arguments : CalibrationArguments {
  std::string calibration, estimator = "int8";
  double limit = 0.05;
  int rows = 48;
};

// tau = 2^-15 .. 1 in steps of a square root of two; entry 0 is dense.
constexpr int grid_size = 32;
float grid_tau(int i) { return i == 0 ? 0.0f : static_cast<float>(std::exp2(-15.0 + 0.5 * (i - 1))); }

struct Rows {
  std::vector<int64_t> rows;
  std::vector<ExactRow> exact;
  std::vector<std::vector<double>> outputs;
  double size = 0;
};

struct Found {
  double error = 0, mass = 0;
  int64_t kept = 0, visible = 0;
};

class Bisection : public lm::Attention {
 public:
  Bisection(const lm::Config& config, AttentionSettings settings, const Arguments& a, int64_t capacity)
      : dense_(config, dense_of(settings), capacity), settings_(std::move(settings)), a_(a), threads_(thread_count(a.threads)),
        best_(static_cast<size_t>(config.layers * config.q_heads), grid_size - 1), found_(best_.size()) {}

  void run(const lm::AttentionCall& call) override;
  void truncate(int64_t tokens) override { dense_.truncate(tokens); }
  // At the final thresholds, so of a second pass; see `fixed`.
  const std::vector<Found>& found() const { return found_; }
  std::vector<float> thresholds() const {
    std::vector<float> taus;
    for (int b : best_) taus.push_back(grid_tau(b));
    return taus;
  }
  bool fixed = false;  // measure only

 private:
  static AttentionSettings dense_of(AttentionSettings s) {
    s.dense = true;
    return s;
  }
  std::vector<Rows> exact_rows(const lm::AttentionCall& call) const;
  std::vector<Found> measure(const lm::AttentionCall& call, const KeyIndex& index, const std::vector<int>& at, const std::vector<Rows>& rows);

  SaleAttention dense_;
  AttentionSettings settings_;
  const Arguments& a_;
  int threads_;
  Workspace workspace_;
  std::vector<int> best_;
  std::vector<Found> found_;
};

std::vector<Rows> Bisection::exact_rows(const lm::AttentionCall& call) const {
  std::vector<Rows> heads(static_cast<size_t>(call.q_heads));
  lm::for_each_index(threads_, call.q_heads, [&](int64_t h, int) {
    Rows& r = heads[static_cast<size_t>(h)];
    r.rows = sample_rows(a_.seed, call.layer, static_cast<int>(h), Quality::first_position, call.q_len, a_.rows);
    // The end of a built prompt is where facts are asked for.
    for (int64_t back : {8, 40, 90, 150}) r.rows.push_back(call.q_len - back);
    for (int64_t row : r.rows) {
      r.exact.emplace_back(call, static_cast<int>(h), row);
      r.outputs.push_back(r.exact.back().output());
      r.size += l1(r.outputs.back());
    }
  });
  return heads;
}

std::vector<Found> Bisection::measure(const lm::AttentionCall& call, const KeyIndex& index, const std::vector<int>& at, const std::vector<Rows>& rows) {
  std::vector<float> taus;
  for (int i : at) taus.push_back(grid_tau(i));
  Options options = settings_.options(call.layer);
  options.thresholds(taus);
  const Plan plan(problem_of(call), options, Plan::Keys::have_an_index);
  workspace_.need(plan.workspace().total);
  BlockList blocks(plan);
  Stats stats;
  stats.per_head = true;
  const sale_index* handle = index.get();
  plan.select(tensors_of(call), blocks, workspace_, {&handle, 1}, &stats);
  std::vector<Found> found(at.size());
  lm::for_each_index(threads_, static_cast<int64_t>(at.size()), [&](int64_t h, int) {
    const Rows& r = rows[static_cast<size_t>(h)];
    Found& f = found[static_cast<size_t>(h)];
    for (size_t i = 0; i < r.rows.size(); ++i) {
      const auto kept = blocks.row(0, static_cast<int32_t>(h), r.rows[i] / SALE_Q_BLOCK).kept;
      f.error += l1_distance(r.exact[i].output(kept), r.outputs[i]) / r.size;
      f.mass += r.exact[i].mass(kept) / static_cast<double>(r.rows.size());
    }
    f.kept = stats.heads[static_cast<size_t>(h)].kept_blocks, f.visible = stats.heads[static_cast<size_t>(h)].visible_blocks;
  });
  return found;
}

void Bisection::run(const lm::AttentionCall& call) {
  dense_.run(call);
  KeyIndex index(problem_of(call), settings_.options(call.layer), call.k_len);
  index.update(call.k, {0, call.kv_head_stride, call.kv_token_stride}, call.k_len);
  const std::vector<Rows> rows = exact_rows(call);
  const auto first = static_cast<size_t>(call.layer * call.q_heads);
  const std::vector<int> most(best_.begin() + static_cast<std::ptrdiff_t>(first),
                              best_.begin() + static_cast<std::ptrdiff_t>(first) + call.q_heads);
  if (fixed) {
    const std::vector<Found> found = measure(call, index, most, rows);
    for (size_t h = 0; h < found.size(); ++h) {
      Found& to = found_[first + h];
      to.error = std::max(to.error, found[h].error);
      to.mass += found[h].mass, to.kept += found[h].kept, to.visible += found[h].visible;
    }
    return;
  }
  // Largest index within the limit, in [0, most]: low is known good (0: dense), high + 1 known bad or beyond.
  std::vector<int> low(most.size(), 0), high = most;
  while (low != high) {
    std::vector<int> middle(most.size());
    for (size_t h = 0; h < middle.size(); ++h) middle[h] = (low[h] + high[h] + 1) / 2;
    const std::vector<Found> found = measure(call, index, middle, rows);
    for (size_t h = 0; h < middle.size(); ++h) {
      if (low[h] == high[h]) continue;
      if (found[h].error <= a_.limit) low[h] = middle[h];
      else high[h] = middle[h] - 1;
    }
  }
  for (size_t h = 0; h < low.size(); ++h) best_[first + h] = low[h];
}

void summarize(Calibration& c, const std::vector<Found>& found, size_t prompts) {
  int64_t kept = 0, visible = 0;
  double mass = 0, error = 0;
  fmt::print("{:<8} {:<6} {:>12} {:>10} {:>12} {:>10}\n", "layer", "head", "threshold", "density", "L1 error", "mass");
  for (size_t i = 0; i < found.size(); ++i) {
    const Found& f = found[i];
    const auto heads = static_cast<size_t>(c.model.q_heads);
    fmt::print("{:<8} {:<6} {:>12.6f} {:>8.1f} % {:>10.2f} % {:>8.2f} %\n", i / heads, i % heads, c.thresholds[i],
               100 * static_cast<double>(f.kept) / static_cast<double>(f.visible), 100 * f.error, 100 * f.mass / static_cast<double>(prompts));
    kept += f.kept, visible += f.visible, mass += f.mass, error += f.error;
  }
  const auto n = static_cast<double>(found.size());
  c.density = static_cast<double>(kept) / static_cast<double>(visible);
  c.retained_mass = std::min(1.0, mass / n / static_cast<double>(prompts));
  c.relative_l1 = error / n;
  fmt::print("all: density {:.1f} %, relative L1 error {:.2f} %, retained mass {:.2f} %\n", 100 * c.density, 100 * c.relative_l1, 100 * c.retained_mass);
}

int run(const Arguments& a, const std::string& command_line) {
  LoadedModel m = load_model(a.model, a.threads);
  SparseArguments sparse_arguments;
  sparse_arguments.backend = a.backend, sparse_arguments.threads = a.threads, sparse_arguments.calibration = a.calibration;
  if (a.calibration.empty()) sparse_arguments.estimator = a.estimator;
  Sparse sparse;
  resolve(sparse_arguments, m.identity, sparse);
  const std::vector<CalibrationPrompt> prompts = make_prompts(a, m);
  size_t longest = 0;
  for (const CalibrationPrompt& p : prompts) longest = std::max(longest, p.tokens.size());
  lm::KVCache cache(m.model.config(), static_cast<int64_t>(longest));
  Bisection bisection(m.model.config(), sparse.settings, a, cache.capacity());
  run_prompts(m, prompts, cache, bisection, a.quiet);
  bisection.fixed = true;
  run_prompts(m, prompts, cache, bisection, a.quiet);

  Calibration c = start_calibration(m.identity, prompts, command_line);
  c.rank = m.identity.head_dim;
  c.format = sparse.settings.format;
  if (sparse.calibration) {
    c.format = sparse.calibration->format, c.rank = sparse.calibration->rank;
    c.q_projections = sparse.calibration->q_projections, c.k_projections = sparse.calibration->k_projections;
    if (c.projected()) c.note = "Projections: " + sparse.calibration->command;
  }
  c.thresholds = bisection.thresholds();
  c.relative_l1_limit = a.limit;
  summarize(c, bisection.found(), prompts.size());
  write_calibration(a.out, c);
  fmt::print("written: {}\n", a.out);
  return good;
}

}  // namespace

void add_calibrate(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("calibrate", "Find every head's threshold for an error limit and write a calibration file");
  auto a = std::make_shared<Arguments>();
  add_prompt_options(*command, *a);
  command->add_option("--limit", a->limit, "relative L1 error of a head's output, on every prompt")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  command->add_option("--rows", a->rows, "rows sampled per head and prompt")->check(CLI::Range(4, 4096))->capture_default_str();
  command->add_option("--calibration", a->calibration, "take estimator and projections from this file (sale project)");
  command->add_option("--estimator", a->estimator, "int8 or int4, without --calibration")->check(CLI::IsMember({"int8", "int4"}))->capture_default_str();
  command->add_option("--out", a->out, "calibration file to write")->required();
  command->callback([a, &action] {
    action = [a] {
      return run(*a, fmt::format("sale calibrate --tokens {} --windows {} --needles {} --json-prompts {} --limit {} --rows {}", a->tokens, a->windows,
                                 a->needles, a->json, a->limit, a->rows));
    };
  });
}

}  // namespace sale::cli
