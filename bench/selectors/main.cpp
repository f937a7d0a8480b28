// Selectors under one kernel: a model runs with each of them, attention over the blocks it keeps by the same backend,
// and is asked what was hidden in its prompt. Density, answers, perplexity, output error, seconds of attention.
//
//   sale_selectors [--tokens 8k] [--contexts 1] [--seed 1] [--text FILE] [--calibration FILE] [--only NAME ...] --json
//   FILE
//
// bench/selectors/plot.py makes the pictures.
#include <algorithm>
#include <cstdio>
#include <optional>

#include "bench/selectors/compensation.hpp"
#include "bench/selectors/selector.hpp"
#include "cli/command.hpp"
#include "cli/run_options.hpp"
#include "lab/eval.hpp"
#include "lab/quality.hpp"
#include "lab/text.hpp"
#include "lm/workers.hpp"

namespace sale::bench {
namespace {

using namespace sale::cli;

// One way to select, at one setting: a library plan's own, or one of selector.hpp.
struct Way {
  std::string name;
  std::optional<Kind> kind;
  double x = 0;  // 0 and no kind: dense
  AttentionSettings settings;
  bool compensated = false;
};

class SelectedAttention : public lm::Attention {
public:
  SelectedAttention(const lm::Config& config, const Way& way, int64_t tokens, int threads)
      : way_(way), threads_(threads), quality(config, tokens, 8, 1, threads) {}

  void run(const lm::AttentionCall& call) override {
    Problem problem(1, call.q_heads, call.kv_heads, call.q_len, call.k_len, call.head_dim, SALE_BF16);
    const sale_strides kv{0, call.kv_head_stride, call.kv_token_stride};
    problem.scale(call.scale)
        .strides({0, call.q_head_stride, call.q_token_stride}, kv, kv,
                 {0, call.out_head_stride, call.out_token_stride});
    std::vector<float> lse(static_cast<size_t>(call.q_heads * call.q_len));
    const Tensors tensors{call.q, call.k, call.v, call.out, lse.data()};
    const bool dense = !way_.kind && way_.x == 0;
    Options options = way_.settings.options(call.layer);
    if (dense || way_.kind) options.dense();
    const Plan plan(problem, options);
    workspace_.need(plan.workspace().total);
    BlockList blocks(plan);
    Stats stats;
    if (way_.kind)
      choose(call, blocks);
    else if (!dense)
      plan.select(tensors, blocks, workspace_, {}, &stats);
    const double select = stats.select_s + stats.index_s;
    plan.attend(tensors, blocks, workspace_, &stats);
    if (way_.compensated) compensate(call, blocks, lse, threads_);
    if (asking) return;
    select_s += select, attend_s += stats.attend_s;
    kept += stats.kept_blocks, visible += stats.visible_blocks;
    quality.saw(call, blocks);
  }

private:
  // A prompt has tiles enough for all threads, a question heads.
  void choose(const lm::AttentionCall& call, BlockList& blocks) const {
    std::vector<std::vector<std::vector<int32_t>>> lists(static_cast<size_t>(call.q_heads));
    lm::for_each_index(asking ? threads_ : 1, call.q_heads, [&](int64_t h, int) {
      const Head head(call, static_cast<int>(h));
      const auto selector = make_selector(*way_.kind, way_.x, head);
      auto& tiles = lists[static_cast<size_t>(h)];
      tiles.resize(static_cast<size_t>(head.tiles()));
      lm::for_each_index(asking ? 1 : threads_, head.tiles(),
                         [&](int64_t t, int) { tiles[static_cast<size_t>(t)] = selector->keep(t); });
    });
    for (size_t h = 0; h < lists.size(); ++h)
      for (size_t t = 0; t < lists[h].size(); ++t)
        blocks.set_row(0, static_cast<int32_t>(h), static_cast<int64_t>(t), lists[h][t]);
  }

  const Way& way_;
  int threads_;
  Workspace workspace_;

public:
  bool asking = false;  // questions: selected alike, but not counted
  double select_s = 0, attend_s = 0;
  int64_t kept = 0, visible = 0;
  Quality quality;
};

struct Arguments {
  std::string model = default_model, text = default_text, tokens = "8k", calibration, json;
  std::vector<std::string> only;
  int contexts = 1, threads = 0;
  uint64_t seed = 1;
};

// Every way at settings that span densities of some percent to half.
std::vector<Way> make_ways(const LoadedModel& m, const Arguments& a, std::vector<std::unique_ptr<Sparse>>& keep) {
  std::vector<Way> ways{{"dense", {}, 0, {}}};
  const auto settings = [&](const std::string& calibration, const std::string& estimator, double tau) {
    SparseArguments s;
    s.calibration = calibration, s.estimator = estimator, s.tau = tau, s.threads = a.threads;
    keep.push_back(std::make_unique<Sparse>());
    resolve(s, m.identity, *keep.back());
    return keep.back()->settings;
  };
  const std::string calibrated = calibration_for(a.calibration, a.model, "");
  for (double tau : {0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0}) {
    ways.push_back({"SALE INT4, all coordinates", {}, tau, settings("none", "int4", tau)});
    ways.push_back({"SALE INT8, all coordinates", {}, tau, settings("none", "int8", tau)});
    ways.push_back({"SALE INT8, rank of the calibration", {}, tau, settings(calibrated, "", tau)});
    ways.push_back({"exact scores, SALE's rule", Kind::exact, tau, {}});
  }
  ways.push_back({"SALE, calibrated", {}, 1, settings(calibrated, "", -1)});
  const auto others = [&](const char* name, Kind kind, std::initializer_list<double> xs) {
    for (double x : xs) ways.push_back({name, kind, x, {}});
  };
  others("top-k blocks by mass", Kind::top_k, {4, 8, 16, 32, 64});
  others("top-p blocks by mass", Kind::top_p, {0.6, 0.8, 0.9, 0.95, 0.98});
  others("mean-pooled keys", Kind::pooled, {0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.004, 0.001});
  others("antidiagonal sums", Kind::antidiagonal, {0.6, 0.8, 0.9, 0.95, 0.98});
  others("last-queries vertical-slash", Kind::vertical_slash, {0.3, 0.5, 0.7, 0.9});
  others("sink + local", Kind::sink_local, {0});
  // Compensation on the plot: the same, with pseudo-keys for what was dropped.
  for (size_t i = 0, n = ways.size(); i < n; ++i) {
    if (ways[i].name != "SALE INT8, all coordinates" && ways[i].kind != Kind::pooled) continue;
    ways.push_back(ways[i]);
    ways.back().name += ", compensated", ways.back().compensated = true;
  }
  for (Way& w : ways) w.settings.threads = a.threads;
  std::erase_if(ways, [&](const Way& w) {
    const auto named = [&](const std::string& part) { return w.name.find(part) != std::string::npos; };
    return w.name != "dense" && !a.only.empty() && std::none_of(a.only.begin(), a.only.end(), named);
  });
  return ways;
}

struct Row {
  double answers = 0, loss = 0, error = 0, select_s = 0, attend_s = 0;
  int64_t questions = 0, tokens = 0, kept = 0, visible = 0;
};

void add_context(LoadedModel& m, const lm::Exam& exam, lm::KVCache& cache, const Way& way, int threads, Row& to) {
  SelectedAttention attention(m.model.config(), way, static_cast<int64_t>(exam.context.size()), threads);
  const Sitting s = sit(m, exam, cache, attention, true, [&](Sitting&) { attention.asking = true; });
  for (const Sitting::Mark& mark : s.marks) to.answers += mark.score, ++to.questions;
  for (const Sitting::Loss& l : s.losses) to.loss += l.sum, to.tokens += l.count;
  to.kept += attention.kept, to.visible += attention.visible;
  to.select_s += attention.select_s, to.attend_s += attention.attend_s;
  to.error += attention.quality.relative_l1();
}

int run(const Arguments& a) {
  LoadedModel m = load_model(a.model, a.threads);
  const int64_t tokens = parse_count("--tokens", a.tokens, 2048, m.model.config().max_positions);
  const std::string text = read_text(a.text);
  std::vector<std::unique_ptr<Sparse>> keep;
  const std::vector<Way> ways = make_ways(m, a, keep);
  lm::KVCache cache(m.model.config(), tokens);
  Json j = json_head("selectors");
  j["model"] = m.identity.name, j["tokens"] = tokens, j["contexts"] = a.contexts, j["seed"] = a.seed;
  j["text"] = std::filesystem::path(a.text).filename().string();
  fmt::print(
      "| selector | setting | density | answers | perplexity | relative L1 error | select | attend |\n"
      "|---|---|---|---|---|---|---|---|\n");
  for (const Way& way : ways) {
    Row row;
    for (int c = 0; c < a.contexts; ++c) {
      lm::Exam exam = lm::make_exam("book", m.tokenizer, text, tokens, a.seed * 1000 + static_cast<uint64_t>(c));
      // Those that are answered by a single pass: a question costs little then.
      std::erase_if(exam.asked, [](const lm::Asked& q) { return q.task != "multikey"; });
      add_context(m, exam, cache, way, thread_count(a.threads), row);
    }
    const double density = static_cast<double>(row.kept) / static_cast<double>(row.visible);
    const double perplexity = std::exp(row.loss / static_cast<double>(row.tokens)), error = row.error / a.contexts;
    fmt::print("| {} | {} | {:.2f} % | {:.0f} of {} | {:.3f} | {:.2f} % | {:.2f} s | {:.2f} s |\n", way.name,
               way.kind || way.x != 0 ? fmt::format("{}", way.x) : "", 100 * density, row.answers, row.questions,
               perplexity, 100 * error, row.select_s, row.attend_s);
    std::fflush(stdout);
    j["rows"].push_back({{"selector", way.name},
                         {"setting", way.x},
                         {"density", density},
                         {"accuracy", row.answers / static_cast<double>(row.questions)},
                         {"questions", row.questions},
                         {"perplexity", perplexity},
                         {"relative_l1_error", error},
                         {"select_s", way.kind ? Json(nullptr) : Json(row.select_s)},
                         {"attend_s", row.attend_s}});
    if (!a.json.empty()) write_json(a.json, j);
  }
  return good;
}

}  // namespace
}  // namespace sale::bench

int main(int argc, char** argv) {
  CLI::App program{"Block selectors compared under one attention kernel"};
  sale::bench::Arguments a;
  program.add_option("--model", a.model, "model folder")->capture_default_str();
  program.add_option("--text", a.text, "text of the prompts")->capture_default_str();
  program.add_option("--tokens", a.tokens, "of a context")->capture_default_str();
  program.add_option("--contexts", a.contexts, "of twenty questions each")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  program.add_option("--seed", a.seed, "of the contexts")->capture_default_str();
  program.add_option("--threads", a.threads, "0 = one per CPU")->check(CLI::Range(0, 1024));
  program.add_option("--calibration", a.calibration, "default: the one beside the model");
  program.add_option("--only", a.only, "selectors whose name holds one of these; dense always")->take_all();
  program.add_option("--json", a.json, "write the rows there, as they come");
  CLI11_PARSE(program, argc, argv);
  try {
    return sale::bench::run(a);
  } catch (const std::exception& e) {
    fmt::print(stderr, "sale_selectors: {}\n", e.what());
    return 2;
  }
}
