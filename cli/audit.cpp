// sale audit: how well a few audited rows tell the output error of a head, and what they cost.
//
// A prompt runs sparsely through a model. In every layer each number of rows is audited with several seeds, and all
// rows once: the full measurement. One estimate is one head, one seed.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "arguments.hpp"
#include "command.hpp"
#include "lab/adapter.hpp"
#include "lab/answers.hpp"
#include "lab/progress.hpp"
#include "lab/text.hpp"
#include "run_options.hpp"

namespace sale::cli {
namespace {

constexpr int32_t most_rows = 65536;
constexpr double close = 0.1;          // an estimate within a tenth of the measurement
constexpr double least_error = 1e-3;   // below it the tensors' rounding is all there is to measure
constexpr double wanted_share = 0.95;  // of the estimates

struct Arguments {
  std::string model = default_model, text = default_text, tokens, json;
  std::vector<int> rows{16, 32, 64, 128, 256, 512};
  int seeds = 4;
  SparseArguments sparse;
  bool quiet = false;
};

struct Sample {                    // one number of rows
  std::vector<double> deviations;  // |estimate / measured - 1|, a head and seed each
  double seconds = 0;              // of one audit of every head
  double share() const {
    const auto within = std::count_if(deviations.begin(), deviations.end(), [](double d) { return d <= close; });
    return deviations.empty() ? 1 : static_cast<double>(within) / static_cast<double>(deviations.size());
  }
  double at(double quantile) const {
    if (deviations.empty()) return 0;
    std::vector<double> sorted = deviations;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(quantile * static_cast<double>(sorted.size() - 1))];
  }
};

class AuditBench : public lm::Attention {
public:
  AuditBench(const lm::Config& config, AttentionSettings settings, const Arguments& a, int64_t capacity)
      : settings_(std::move(settings)),
        a_(a),
        placement_(config, uses_device(settings_.backend), capacity),
        workspace_(placement_.device()),
        samples(a.rows.size()) {}

  void run(const lm::AttentionCall& call) override {
    const Placement::Call placed = placement_.place(call);
    const auto audit = [&](int32_t rows, uint64_t seed) { return audited(placed, call.layer, rows, seed); };
    const Stats all = audit(most_rows, 0);
    attention_s += all.index_s + all.select_s + all.attend_s;
    for (const sale_head_audit& h : all.audits) measured.push_back(relative_l1(h));
    for (size_t i = 0; i < samples.size(); ++i)
      for (int seed = 1; seed <= a_.seeds; ++seed) {
        const Stats some = audit(a_.rows[i], static_cast<uint64_t>(seed * 1000 + call.layer));
        samples[i].seconds += some.audit_s / a_.seeds;
        for (size_t h = 0; h < some.audits.size(); ++h)
          if (const double full = relative_l1(all.audits[h]); full >= least_error)
            samples[i].deviations.push_back(std::fabs(relative_l1(some.audits[h]) / full - 1));
      }
    placement_.fetch(call);
  }

private:
  Stats audited(const Placement::Call& placed, int layer, int32_t rows, uint64_t seed) {
    const Plan plan(placed.problem, settings_.options(layer).audit(rows, seed));
    workspace_.need(plan.workspace().total);
    Stats stats;
    plan.run(placed.tensors, workspace_.bytes(), {}, &stats);
    backend = plan.backend();
    return stats;
  }

  AttentionSettings settings_;
  const Arguments& a_;
  Placement placement_;
  Scratch workspace_;

public:
  std::vector<Sample> samples;   // one per number of rows
  std::vector<double> measured;  // relative L1 error of every head, all rows
  double attention_s = 0;
  std::string backend;
};

void print_table(const AuditBench& b, const Arguments& a) {
  const auto n = static_cast<size_t>(
      std::count_if(b.measured.begin(), b.measured.end(), [](double e) { return e >= least_error; }));
  fmt::print("{} of {} heads have an error of {} % or more; attention {:.2f} s on {}\n\n", n, b.measured.size(),
             100 * least_error, b.attention_s, b.backend);
  fmt::print("| rows | within 10 % | median off by | 95 % within | time, of attention |\n|---|---|---|---|---|\n");
  for (size_t i = 0; i < b.samples.size(); ++i) {
    const Sample& s = b.samples[i];
    fmt::print("| {} | {:.1f} % | {:.1f} % | {:.1f} % | {:.2f} % |\n", a.rows[i], 100 * s.share(), 100 * s.at(0.5),
               100 * s.at(wanted_share), 100 * s.seconds / b.attention_s);
  }
}

int run(Arguments& a) {
  LoadedModel m = load_model(a.model, a.sparse.threads);
  a.sparse.calibration = calibration_for(a.sparse.calibration, a.model, a.sparse.backend);
  Sparse sparse;
  resolve(a.sparse, m.identity, sparse);
  lm::PromptSpec spec;
  spec.tokens =
      parse_tokens("--tokens", a.tokens, "16k", 2048, std::min<int64_t>(most_rows, m.model.config().max_positions));
  spec.facts = 5;
  const lm::Prompt prompt = lm::needle_prompt(m.tokenizer, read_text(a.text), spec);
  lm::KVCache cache(m.model.config(), static_cast<int64_t>(prompt.context.size()));
  AuditBench bench(m.model.config(), sparse.settings, a, static_cast<int64_t>(prompt.context.size()));
  {
    Progress progress("auditing", a.quiet);
    lm::ForwardOptions options;
    options.logits = lm::Logits::none;
    options.progress = progress.callback();
    m.model.forward(prompt.context, cache, bench, options);
  }
  fmt::print("{}, {} tokens of {} with needles, {}, {} seeds\n", m.identity.name,
             grouped(static_cast<int64_t>(prompt.context.size())), std::filesystem::path(a.text).filename().string(),
             sparse.estimator_name(m.identity.head_dim), a.seeds);
  print_table(bench, a);
  if (!a.json.empty()) {
    Json j = json_head("audit");
    j["model"] = m.identity.name, j["backend"] = bench.backend, j["tokens"] = prompt.context.size();
    j["attention_s"] = bench.attention_s, j["error_of_heads"] = bench.measured;
    j["rows"] = Json::array();
    for (size_t i = 0; i < bench.samples.size(); ++i)
      j["rows"].push_back({{"rows", a.rows[i]},
                           {"within_a_tenth", bench.samples[i].share()},
                           {"off_median", bench.samples[i].at(0.5)},
                           {"off_95_percent", bench.samples[i].at(wanted_share)},
                           {"seconds", bench.samples[i].seconds}});
    write_json(a.json, j);
  }
  return good;
}

}  // namespace

void add_audit(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("audit", "How well a few audited rows tell each head's output error, and what they cost");
  auto a = std::make_shared<Arguments>();
  command->add_option("--model", a->model, "folder with config.json, tokenizer.json and safetensors")
      ->capture_default_str();
  command->add_option("--text", a->text, "book the prompt is made of")->capture_default_str();
  command->add_option("--tokens", a->tokens,
                      "length of the prompt, up to 64k (default: 16k, or the model's positions if fewer)");
  command->add_option("--rows", a->rows, "numbers of rows to audit, may be repeated")
      ->check(CLI::Range(1, most_rows))
      ->take_all()
      ->capture_default_str();
  command->add_option("--seeds", a->seeds, "audits of each, other rows each time")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_option("--json", a->json, "write the result there");
  command->add_flag("--quiet", a->quiet, "no progress on stderr");
  add_sparse_options(*command, a->sparse, "calibration.json in the model's folder, if there is one");
  command->callback([a, &action] { action = [a] { return run(*a); }; });
}

}  // namespace sale::cli
