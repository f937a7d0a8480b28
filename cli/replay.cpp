// sale replay: a model's attention over one prompt, all layers as one problem, timed dense and sparse.
#include <algorithm>
#include <cmath>

#include "arguments.hpp"
#include "command.hpp"
#include "lab/answers.hpp"
#include "lab/capture.hpp"
#include "lab/progress.hpp"
#include "lab/session.hpp"
#include "lab/text.hpp"
#include "lm/bf16.hpp"
#include "run_options.hpp"

namespace sale::cli {
namespace {

struct Arguments {
  std::string model = default_model, json;
  PromptArguments prompt;
  SparseArguments sparse;
  std::vector<double> factors{1};  // of the thresholds
  int repeats = 3;
  bool every = false, quiet = false;
};

struct Variant {
  std::string name;
  double factor;
  sale_compute compute;
  bool compensate;
};

struct Row {
  double total_s = 0, index_s = 0, select_s = 0, attend_s = 0, density = 1, error = 0;
};

// The captured tensors where the backend reads them.
class Placed {
public:
  Placed(const CapturedAttention& c, bool device) : device_(device), out_(c.q.size()) {
    tensors_ = {c.q.data(), c.k.data(), c.v.data(), out_.data(), nullptr};
    if (!device) return;
    const auto copy = [](DeviceMemory& to, const std::vector<uint16_t>& from) {
      to.need(from.size() * 2);
      to.put(0, from.data(), from.size() * 2);
      return to.data();
    };
    there_[3].need(c.q.size() * 2);
    tensors_ = {copy(there_[0], c.q), copy(there_[1], c.k), copy(there_[2], c.v), there_[3].data(), nullptr};
  }
  const Tensors& tensors() const { return tensors_; }
  const std::vector<uint16_t>& output() {
    if (device_) there_[3].get(0, out_.data(), out_.size() * 2);
    return out_;
  }

private:
  bool device_;
  std::vector<uint16_t> out_;
  DeviceMemory there_[4];
  Tensors tensors_;
};

Problem problem_of(const CapturedAttention& c, bool device) {
  Problem problem(1, c.q_heads, c.kv_heads, c.tokens, c.tokens, c.head_dim, SALE_BF16);
  problem.scale(c.scale);
  if (device) problem.device(device_ordinal);
  return problem;
}

double median(std::vector<double> s) {
  std::sort(s.begin(), s.end());
  return s[s.size() / 2];
}

// L1 norm of the difference as a share of what dense attention puts out, over every 61st row.
double relative_l1(const std::vector<uint16_t>& want, const std::vector<uint16_t>& got, int64_t head_dim) {
  double error = 0, size = 0;
  const auto rows = static_cast<int64_t>(want.size()) / head_dim;
  for (int64_t r = 0; r < rows; r += 61)
    for (int64_t c = r * head_dim; c < (r + 1) * head_dim; ++c) {
      const auto at = static_cast<size_t>(c);
      const double w = static_cast<double>(lm::from_bf16(want[at])), g = static_cast<double>(lm::from_bf16(got[at]));
      error += std::fabs(w - g), size += std::fabs(w);
    }
  return error / size;
}

Row measure(const Problem& problem, const Options& options, bool device, Placed& placed, int repeats) {
  const Plan plan(problem, options);
  Scratch scratch(device);
  scratch.need(plan.workspace().total);
  BlockList blocks(plan);
  Stats stats;
  plan.run(placed.tensors(), scratch.bytes(), {}, &stats);
  Row row{0, stats.index_s, stats.select_s, stats.attend_s, stats.density()};
  const auto time = [&](auto&& f) {
    std::vector<double> s;
    for (int i = 0; i < repeats; ++i) s.push_back(seconds_of(device, f));
    return median(s);
  };
  row.total_s = time([&] { plan.run(placed.tensors(), scratch.bytes()); });
  const double both = time([&] { plan.select(placed.tensors(), blocks, scratch.bytes()); });
  row.attend_s = time([&] { plan.attend(placed.tensors(), blocks, scratch.bytes()); });
  row.index_s = std::min(row.index_s, both);  // by the clock, between two waits
  row.select_s = both - row.index_s;
  return row;
}

std::vector<Variant> variants_of(const Arguments& a, const AttentionSettings& s) {
  std::vector<Variant> all;
  for (double factor : a.factors) {
    if (!a.every) {
      all.push_back({"as asked", factor, s.compute, s.compensate});
      continue;
    }
    all.push_back({"exact", factor, SALE_COMPUTE_EXACT, false});
    all.push_back({"exact, compensated", factor, SALE_COMPUTE_EXACT, true});
    all.push_back({"low-bit", factor, SALE_COMPUTE_FP8, false});
    all.push_back({"low-bit, compensated", factor, SALE_COMPUTE_FP8, true});
  }
  return all;
}

std::vector<float> scaled(std::vector<float> thresholds, double factor) {
  for (float& t : thresholds) t = static_cast<float>(static_cast<double>(t) * factor);
  return thresholds;
}

int run(Arguments& a) {
  LoadedModel m = load_model(a.model, a.sparse.threads);
  a.sparse.calibration = calibration_for(a.sparse.calibration, a.model, a.sparse.backend);
  Sparse sparse;
  resolve(a.sparse, m.identity, sparse);
  const Task task = make_task(a.prompt, m, a.model);
  const bool device = uses_device(a.sparse.backend);
  const CapturedAttention captured = capture(m, task.context, sparse.settings, a.quiet);
  const Problem problem = problem_of(captured, device);
  Placed placed(captured, device);

  Options plain = captured_options(sparse.settings);
  plain.dense().compute(SALE_COMPUTE_EXACT).compensate(false);
  const Row dense = measure(problem, plain, device, placed, a.repeats);
  const std::vector<uint16_t> exact = placed.output();
  fmt::print("{} tokens of {}, {} query and {} kv heads of {}: dense {:.3f} ms{}\n\n", captured.tokens, m.identity.name,
             captured.q_heads, captured.kv_heads, captured.head_dim, 1e3 * dense.attend_s,
             device ? ", " + device_name() : "");
  fmt::print(
      "| attention | thresholds | density | L1 error | index / select / attend ms | total ms | against dense |\n");
  fmt::print("|---|---|---|---|---|---|---|\n");
  Json all = json_head("replay");
  all["tokens"] = captured.tokens, all["dense_s"] = dense.attend_s, all["device"] = device_name();
  all["estimator"] = sparse.estimator_name(m.identity.head_dim);
  all["rows"] = Json::array();
  for (const Variant& v : variants_of(a, sparse.settings)) {
    Options options = captured_options(sparse.settings);
    options.compute(v.compute).compensate(v.compensate);
    if (sparse.settings.calibration != nullptr && !sparse.settings.tau_over_calibration)
      options.thresholds(scaled(sparse.settings.calibration->thresholds, v.factor));
    else
      options.threshold(static_cast<float>(static_cast<double>(sparse.settings.tau) * v.factor));
    Row row = measure(problem, options, device, placed, a.repeats);
    row.error = relative_l1(exact, placed.output(), captured.head_dim);
    fmt::print("| {} | x {:g} | {:.2f} % | {:.2f} % | {:.3f} / {:.3f} / {:.3f} | {:.3f} | {:.2f}x |\n", v.name,
               v.factor, 100 * row.density, 100 * row.error, 1e3 * row.index_s, 1e3 * row.select_s, 1e3 * row.attend_s,
               1e3 * row.total_s, dense.attend_s / row.total_s);
    std::fflush(stdout);
    all["rows"].push_back({{"attention", v.name},
                           {"factor", v.factor},
                           {"density", row.density},
                           {"relative_l1", row.error},
                           {"index_s", row.index_s},
                           {"select_s", row.select_s},
                           {"attend_s", row.attend_s},
                           {"total_s", row.total_s}});
  }
  if (!a.json.empty()) write_json(a.json, all);
  return good;
}

}  // namespace

void add_replay(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "replay", "Time a model's attention over a prompt: all layers captured, then replayed as one problem");
  auto a = std::make_shared<Arguments>();
  a->prompt.text = default_text;
  command->add_option("--model", a->model, "folder with config.json, tokenizer.json and safetensors")
      ->capture_default_str();
  command->add_option("--tokens", a->prompt.tokens, "length of the prompt")->capture_default_str();
  command->add_option("--text", a->prompt.text, "book the prompt hides its facts in")->capture_default_str();
  command->add_option("--seed", a->prompt.seed, "of the prompt")->capture_default_str();
  command->add_option("--factor", a->factors, "multiplies every threshold; may be repeated")
      ->check(CLI::Range(0.0, 1e6))
      ->take_all();
  command->add_option("--repeats", a->repeats, "timed runs; the median is shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--every", a->every, "exact and low-bit, each without and with compensation (GPUs)");
  command->add_option("--json", a->json, "write the result there");
  command->add_flag("--quiet", a->quiet, "no progress on stderr");
  add_sparse_options(*command, a->sparse, "the model's, if there is one");
  command->callback([a, &action] { action = [a] { return run(*a); }; });
}

}  // namespace sale::cli
