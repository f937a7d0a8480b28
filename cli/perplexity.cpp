// sale perplexity: what sparsity costs on a text, dense and with SALE.
#include <cmath>

#include "arguments.hpp"
#include "command.hpp"
#include "lab/answers.hpp"
#include "lab/progress.hpp"
#include "lab/text.hpp"
#include "run_options.hpp"

namespace sale::cli {
namespace {

struct Arguments {
  std::string model = default_model, text = default_text, tokens, offset = "0", json;
  SparseArguments sparse;
  double dense = 0;  // known already
  double most = 0;   // percent
  bool quiet = false;
};

// Over the second half: tokens with at least half the length before them.
double perplexity(LoadedModel& m, const std::vector<int32_t>& tokens, lm::KVCache& cache, SaleAttention& attention,
                  const std::string& label, bool quiet) {
  cache.truncate(0);
  std::vector<int32_t> targets(tokens.begin() + 1, tokens.end());
  targets.push_back(-1);
  const size_t half = tokens.size() / 2;
  std::fill(targets.begin(), targets.begin() + static_cast<std::ptrdiff_t>(half), -1);
  Progress progress(label, quiet);
  lm::ForwardOptions options;
  options.logits = lm::Logits::targets;
  options.targets = targets;
  options.progress = progress.callback();
  const lm::ForwardResult result = m.model.forward(tokens, cache, attention, options);
  double sum = 0;
  for (float p : result.log_probs) sum += static_cast<double>(p);
  return std::exp(-sum / static_cast<double>(tokens.size() - 1 - half));
}

int run(Arguments& a) {
  LoadedModel m = load_model(a.model, a.sparse.threads);
  a.sparse.calibration = calibration_for(a.sparse.calibration, a.model, a.sparse.backend);
  Sparse sparse;
  resolve(a.sparse, m.identity, sparse);
  const int64_t count = parse_tokens("--tokens", a.tokens, "32k", 64, m.model.config().max_positions);
  const std::vector<int32_t> all = m.tokenizer.encode(read_text(a.text), false);
  const int64_t offset = parse_count("--offset", a.offset, 0, static_cast<int64_t>(all.size()));
  std::vector<int32_t> tokens = m.tokenizer.prefix();
  const auto need = static_cast<size_t>(count) - tokens.size(), from = static_cast<size_t>(offset);
  if (all.size() - from < need)
    refuse("--text: {} has {} tokens after --offset; --tokens asks for {}", a.text, all.size() - from, count);
  tokens.insert(tokens.end(), all.begin() + offset, all.begin() + offset + static_cast<std::ptrdiff_t>(need));

  lm::KVCache cache(m.model.config(), count);
  AttentionSettings dense_settings = sparse.settings;
  dense_settings.dense = true;
  SaleAttention dense(m.model.config(), dense_settings, count), attention(m.model.config(), sparse.settings, count);
  const double without = a.dense > 0 ? a.dense : perplexity(m, tokens, cache, dense, "dense", a.quiet);
  const double with = perplexity(m, tokens, cache, attention, "SALE", a.quiet), percent = 100 * (with / without - 1);
  fmt::print("perplexity over tokens {} .. {}: dense {:.4f}, SALE {:.4f} ({:+.2f} %), density {:.1f} %\n", count / 2,
             count, without, with, percent, 100 * attention.totals().density());
  if (!a.json.empty()) {
    Json j = json_head("perplexity");
    j["model"] = m.identity.name, j["backend"] = attention.backend();
    j["estimator"] = sparse.estimator_name(m.identity.head_dim);
    j["tokens"] = count, j["dense"] = without, j["sale"] = with, j["percent"] = percent,
    j["density"] = attention.totals().density();
    write_json(a.json, j);
  }
  if (a.most > 0 && percent > a.most) {
    fmt::print("above the {} % allowed by --most\n", a.most);
    return check_failed;
  }
  return good;
}

}  // namespace

void add_perplexity(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("perplexity", "Perplexity of the second half of a long text, dense and with SALE");
  auto a = std::make_shared<Arguments>();
  command->add_option("--model", a->model, "folder with config.json, tokenizer.json and safetensors")
      ->capture_default_str();
  command->add_option("--text", a->text, "text to read")->capture_default_str();
  command->add_option("--tokens", a->tokens, "tokens of it (default: 32k, or the model's positions if fewer)");
  command->add_option("--offset", a->offset, "first token")->capture_default_str();
  command->add_option("--dense", a->dense, "perplexity of dense attention when it is known, to save the run");
  command->add_option("--most", a->most, "percent above dense that make the exit code 1");
  command->add_option("--json", a->json, "write the result there");
  command->add_flag("--quiet", a->quiet, "no progress on stderr");
  add_sparse_options(*command, a->sparse, "calibration.json in the model's folder, if there is one");
  command->callback([a, &action] { action = [a] { return run(*a); }; });
}

}  // namespace sale::cli
