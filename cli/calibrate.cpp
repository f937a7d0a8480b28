// sale calibrate: a threshold for every layer and head that spends one error budget where it saves the most blocks.
//
// The model runs densely, so that every layer sees what it would see. At each layer every threshold of a grid is tried
// on every head, which gives two curves per head: density, and output error on sampled rows, |O - O~|_1 as a share of
// what the heads of the layer put out on average (the worst prompt counts). Then, with one multiplier m for the whole
// model, each head takes the threshold with the least density + m error^2, and m is the smallest that keeps the root
// mean square of the errors within the limit. No head may lose more than four times the limit of its own output, by L1
// norm.
#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

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
  std::vector<double> limits{0.05};
  int rows = 48;
};

// Entry 0 is dense, then tau = 2^-13 .. 4.
constexpr int grid_size = 17;
float grid_tau(int i) { return i == 0 ? 0.0f : static_cast<float>(std::exp2(i - 14)); }
constexpr double most_of_own_output = 4;  // times the limit

struct Rows {
  std::vector<int64_t> rows;
  std::vector<ExactRow> exact;
  std::vector<std::vector<double>> outputs;
  double size = 0;  // sum of |O|_1
};

// One head at one threshold, over the prompts so far.
struct Point {
  double error = 0, relative = 0;  // worst prompt: as a share of the layer's mean output, of the head's own
  double mass = 0;                 // sum over prompts
  int64_t kept = 0, visible = 0;
  double density() const { return static_cast<double>(kept) / static_cast<double>(std::max<int64_t>(visible, 1)); }
};
using Curve = std::array<Point, grid_size>;

class Sweep : public lm::Attention {
public:
  Sweep(const lm::Config& config, AttentionSettings settings, const Arguments& a, int64_t capacity)
      : dense_(config, dense_of(settings), capacity),
        settings_(std::move(settings)),
        a_(a),
        threads_(thread_count(a.threads)),
        placement_(config, uses_device(settings_.backend), capacity),
        workspace_(placement_.device()),
        curves_(static_cast<size_t>(config.layers * config.q_heads)) {}

  void run(const lm::AttentionCall& call) override;
  void truncate(int64_t tokens) override { dense_.truncate(tokens), placement_.truncate(tokens); }
  const std::vector<Curve>& curves() const { return curves_; }  // [layers * q_heads]

private:
  static AttentionSettings dense_of(AttentionSettings s) {
    s.dense = true;
    return s;
  }
  std::vector<Rows> exact_rows(const lm::AttentionCall& call) const;
  void measure(const lm::AttentionCall& call, const Placement::Call& placed, const KeyIndex& index, int at,
               const std::vector<Rows>& rows);

  SaleAttention dense_;
  AttentionSettings settings_;
  const Arguments& a_;
  int threads_;
  Placement placement_;
  Scratch workspace_;
  std::vector<Curve> curves_;
};

std::vector<Rows> Sweep::exact_rows(const lm::AttentionCall& call) const {
  std::vector<Rows> heads(static_cast<size_t>(call.q_heads));
  lm::for_each_index(threads_, call.q_heads, [&](int64_t h, int) {
    Rows& r = heads[static_cast<size_t>(h)];
    r.rows = sample_rows(a_.seed, call.layer, static_cast<int>(h), Quality::first_position, call.q_len, a_.rows);
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

void Sweep::measure(const lm::AttentionCall& call, const Placement::Call& placed, const KeyIndex& index, int at,
                    const std::vector<Rows>& rows) {
  Options options = settings_.options(call.layer);
  options.threshold(grid_tau(at));
  const Plan plan(placed.problem, options, Plan::Keys::have_an_index);
  workspace_.need(plan.workspace().total);
  BlockList blocks(plan);
  Stats stats;
  stats.per_head = true;
  const sale_index* handle = index.get();
  plan.select(placed.tensors, blocks, workspace_.bytes(), {&handle, 1}, &stats);
  double layer_size = 0;
  for (const Rows& r : rows) layer_size += r.size / static_cast<double>(rows.size());
  lm::for_each_index(threads_, call.q_heads, [&](int64_t h, int) {
    const Rows& r = rows[static_cast<size_t>(h)];
    Point& p = curves_[static_cast<size_t>(call.layer * call.q_heads + h)][static_cast<size_t>(at)];
    double error = 0;
    for (size_t i = 0; i < r.rows.size(); ++i) {
      const auto kept = blocks.row(0, static_cast<int32_t>(h), r.rows[i] / blocks.q_block()).kept;
      error += l1_distance(r.exact[i].output(kept), r.outputs[i]);
      p.mass += r.exact[i].mass(kept) / static_cast<double>(r.rows.size());
    }
    p.error = std::max(p.error, error / layer_size);
    p.relative = std::max(p.relative, error / r.size);
    p.kept += stats.heads[static_cast<size_t>(h)].kept_blocks,
        p.visible += stats.heads[static_cast<size_t>(h)].visible_blocks;
  });
}

void Sweep::run(const lm::AttentionCall& call) {
  dense_.run(call);
  const Placement::Call placed = placement_.place(call);
  KeyIndex index(placed.problem, settings_.options(call.layer), call.k_len);
  index.update(placed.tensors.k, placed.keys, call.k_len);
  const std::vector<Rows> rows = exact_rows(call);
  for (int at = 0; at < grid_size; ++at) measure(call, placed, index, at, rows);
}

// The best grid entry of every head for this multiplier.
std::vector<int> choose(const std::vector<Curve>& curves, double multiplier, double limit) {
  std::vector<int> chosen;
  for (const Curve& c : curves) {
    int best = 0;
    const auto cost = [&](int i) {
      return c[static_cast<size_t>(i)].density() + multiplier * std::pow(c[static_cast<size_t>(i)].error, 2);
    };
    for (int i = 1; i < grid_size; ++i)
      if (c[static_cast<size_t>(i)].relative <= most_of_own_output * limit && cost(i) < cost(best)) best = i;
    chosen.push_back(best);
  }
  return chosen;
}

double rms_error(const std::vector<Curve>& curves, const std::vector<int>& chosen) {
  double sum = 0;
  for (size_t h = 0; h < curves.size(); ++h) sum += std::pow(curves[h][static_cast<size_t>(chosen[h])].error, 2);
  return std::sqrt(sum / static_cast<double>(curves.size()));
}

std::vector<int> allocate(const std::vector<Curve>& curves, double limit) {
  double low = 1e-6, high = 1e12;  // the error falls as the multiplier grows
  for (int i = 0; i < 100; ++i) {
    const double middle = std::sqrt(low * high);
    (rms_error(curves, choose(curves, middle, limit)) <= limit ? high : low) = middle;
  }
  return choose(curves, high, limit);
}

void summarize(Calibration& c, const std::vector<Curve>& curves, const std::vector<int>& chosen, size_t prompts) {
  int64_t kept = 0, visible = 0;
  double mass = 0, error = 0;
  fmt::print("{:<8} {:<6} {:>12} {:>10} {:>12} {:>12} {:>10}\n", "layer", "head", "threshold", "density", "L1 error",
             "of layer's", "mass");
  for (size_t i = 0; i < curves.size(); ++i) {
    const Point& p = curves[i][static_cast<size_t>(chosen[i])];
    const auto heads = static_cast<size_t>(c.model.q_heads);
    const double retained = p.mass / static_cast<double>(prompts);
    fmt::print("{:<8} {:<6} {:>12.6f} {:>8.1f} % {:>10.2f} % {:>10.2f} % {:>8.2f} %\n", i / heads, i % heads,
               grid_tau(chosen[i]), 100 * p.density(), 100 * p.relative, 100 * p.error, 100 * retained);
    c.thresholds.push_back(grid_tau(chosen[i]));
    kept += p.kept, visible += p.visible, mass += retained, error += p.relative;
  }
  const auto n = static_cast<double>(curves.size());
  c.density = static_cast<double>(kept) / static_cast<double>(visible);
  c.retained_mass = std::min(1.0, mass / n);
  c.relative_l1 = error / n;
  fmt::print("all: density {:.1f} %, relative L1 error {:.2f} %, retained mass {:.2f} %\n", 100 * c.density,
             100 * c.relative_l1, 100 * c.retained_mass);
}

int run(const Arguments& a, const std::string& command_line) {
  LoadedModel m = load_model(a.model, a.threads);
  SparseArguments sparse_arguments;
  sparse_arguments.backend = a.backend, sparse_arguments.threads = a.threads,
  sparse_arguments.calibration = a.calibration;
  if (a.calibration.empty()) sparse_arguments.estimator = a.estimator;
  Sparse sparse;
  resolve(sparse_arguments, m.identity, sparse);
  const std::vector<CalibrationPrompt> prompts = make_prompts(a, m);
  size_t longest = 0;
  for (const CalibrationPrompt& p : prompts) longest = std::max(longest, p.tokens.size());
  lm::KVCache cache(m.model.config(), static_cast<int64_t>(longest));
  Sweep sweep(m.model.config(), sparse.settings, a, cache.capacity());
  run_prompts(m, prompts, cache, sweep, a.quiet);

  Calibration c = start_calibration(m.identity, prompts, command_line);
  c.rank = m.identity.head_dim;
  c.format = sparse.settings.format;
  if (sparse.calibration) {
    c.format = sparse.calibration->format, c.rank = sparse.calibration->rank;
    c.q_projections = sparse.calibration->q_projections, c.k_projections = sparse.calibration->k_projections;
    if (c.projected()) c.note = "Projections: " + sparse.calibration->command;
  }
  Json results = Json::array();
  for (size_t i = 0; i < a.limits.size(); ++i) {
    c.thresholds.clear();
    c.relative_l1_limit = a.limits[i];
    fmt::print("limit {}\n", a.limits[i]);
    summarize(c, sweep.curves(), allocate(sweep.curves(), a.limits[i]), prompts.size());
    // The curves cost the time; several limits are tried out for the price of one.
    std::filesystem::path out = a.out;
    if (a.limits.size() > 1)
      out.replace_filename(fmt::format("{}_{}{}", out.stem().string(), i, out.extension().string()));
    write_calibration(out, c);
    fmt::print("written: {}\n", out.string());
    results.push_back({{"limit", a.limits[i]},
                       {"written", out.string()},
                       {"density", c.density},
                       {"relative_l1_error", c.relative_l1},
                       {"retained_mass", c.retained_mass},
                       {"thresholds", c.thresholds}});
  }
  if (!a.json.empty()) {
    Json j = calibration_json("calibrate", c);
    j["results"] = results;
    write_json(a.json, j);
  }
  return good;
}

}  // namespace

void add_calibrate(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "calibrate", "Find every head's threshold for an error limit and write a calibration file");
  auto a = std::make_shared<Arguments>();
  add_prompt_options(*command, *a);
  command
      ->add_option("--limit", a->limits,
                   "relative L1 error allowed, root mean square over heads; may be repeated: OUT_0, OUT_1, ...")
      ->check(CLI::Range(0.0, 1.0))
      ->take_all()
      ->capture_default_str();
  command->add_option("--rows", a->rows, "rows sampled per head and prompt")
      ->check(CLI::Range(4, 4096))
      ->capture_default_str();
  command->add_option("--calibration", a->calibration, "take estimator and projections from this file (sale project)");
  command->add_option("--estimator", a->estimator, "int8, int4 or fp8, without --calibration")
      ->check(CLI::IsMember({"int8", "int4", "fp8"}))
      ->capture_default_str();
  command->add_option("--out", a->out, "calibration file to write")->required();
  command->callback([a, &action] {
    action = [a] {
      const std::string estimator = a->calibration.empty()
                                        ? "--estimator " + a->estimator
                                        : "--calibration " + std::filesystem::path(a->calibration).filename().string();
      return run(*a, fmt::format("sale calibrate {} --limit {} --rows {} {}", prompt_words(*a),
                                 fmt::join(a->limits, " --limit "), a->rows, estimator));
    };
  });
}

}  // namespace sale::cli
