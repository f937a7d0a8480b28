#include "lab/eval.hpp"
#include "arguments.hpp"

#include <algorithm>
#include <set>

#include "command.hpp"
#include "lab/progress.hpp"
#include "lab/text.hpp"
#include "run_options.hpp"
#include "src/calibration/journal.hpp"

namespace sale::cli {
namespace {

using calibration::Journal;

constexpr Journal::Words journal_words{"--out", "this program's results",
                                       [](const std::string& message) { refuse("{}", message); }};

struct Arguments {
  std::string model = default_model, text = default_text, out;
  std::vector<std::string> tasks, lengths, calibrations;
  int prompts = 20, contexts = 4;
  uint64_t seed = 1;
  SparseArguments sparse;
  bool quiet = false;
};

// The sides that take the exams: dense, then one per calibration.
struct Sides {
  std::vector<std::string> names{"dense"};
  std::vector<std::unique_ptr<Sparse>> sparse;  // one fewer than names
  AttentionSettings settings(size_t i) const {
    AttentionSettings s = sparse[i == 0 ? 0 : i - 1]->settings;
    if (i == 0) s.dense = true;
    return s;
  }
};

std::unique_ptr<Sides> make_sides(const Arguments& a, const LoadedModel& m) {
  auto sides = std::make_unique<Sides>();
  std::vector<std::string> files = a.calibrations;
  if (files.empty()) files.push_back("");
  for (const std::string& file : files) {
    SparseArguments sparse = a.sparse;
    sparse.calibration = calibration_for(file, a.model, a.sparse.backend);
    sides->sparse.push_back(std::make_unique<Sparse>());
    resolve(sparse, m.identity, *sides->sparse.back());
    const bool named = sparse.calibration != "none";
    std::string name = named ? std::filesystem::path(sparse.calibration).stem().string()
                             : fmt::format("tau-{}", sides->sparse.back()->settings.tau);
    while (std::count(sides->names.begin(), sides->names.end(), name) > 0) name += "'";
    sides->names.push_back(name);
  }
  return sides;
}

EvalPlan make_plan(const Arguments& a, const LoadedModel& m, const Sides& sides) {
  EvalPlan plan;
  plan.sides = sides.names;
  const int64_t positions = m.model.config().max_positions;
  for (const std::string& n : a.lengths) plan.lengths.push_back(parse_count("--lengths", n, 2048, positions));
  for (const char* n : {"4k", "16k"})  // as far as the model goes
    if (a.lengths.empty()) plan.lengths.push_back(parse_tokens("--lengths", "", n, 2048, positions));
  std::sort(plan.lengths.begin(), plan.lengths.end());
  plan.lengths.erase(std::unique(plan.lengths.begin(), plan.lengths.end()), plan.lengths.end());
  const auto wants = [&](std::string_view task) {
    return a.tasks.empty() || std::count(a.tasks.begin(), a.tasks.end(), task) > 0;
  };
  plan.perplexity = wants("perplexity");
  for (const lm::TaskName& t : lm::task_names) {
    if (!wants(t.task)) continue;
    plan.tasks.emplace_back(t.task);
    if (plan.exams.empty() || plan.exams.back() != t.exam) plan.exams.emplace_back(t.exam);
  }
  const bool prose = std::count(plan.exams.begin(), plan.exams.end(), "book") +
                         std::count(plan.exams.begin(), plan.exams.end(), "alone") >
                     0;
  if (plan.perplexity && !prose) plan.exams.emplace_back("alone");
  return plan;
}

// What makes results comparable; of another evaluation's they are not mixed with.
Json settings_of(const Arguments& a, const LoadedModel& m, const Sides& sides) {
  Json j;
  j["model"] = m.identity.name, j["fingerprint"] = fmt::format("{:016x}", m.identity.fingerprint);
  j["text"] = std::filesystem::path(a.text).filename().string();
  j["text_fingerprint"] = fmt::format("{:016x}", Fingerprint().add(read_text(a.text)).value());
  j["seed"] = a.seed, j["backend"] = a.sparse.backend, j["compute"] = a.sparse.compute;
  j["compensate"] = a.sparse.compensate, j["sparse_decode"] = a.sparse.sparse_decode;
  j["sides"] = Json::array();
  for (size_t i = 1; i < sides.names.size(); ++i) {
    const Sparse& s = *sides.sparse[i - 1];
    Fingerprint taus;
    for (int l = 0; l < m.identity.layers; ++l) {
      const std::vector<float> t = s.settings.thresholds(l, m.identity.q_heads);
      taus.add(std::as_bytes(std::span(t)));
    }
    j["sides"].push_back({{"name", sides.names[i]},
                          {"estimator", s.estimator_name(m.identity.head_dim)},
                          {"thresholds", fmt::format("{:016x}", taus.value())}});
  }
  return j;
}

// Contexts an exam gets: until each of its wanted tasks has the questions asked for.
int contexts_of(const Arguments& a, const EvalPlan& plan, const lm::Exam& first) {
  std::map<std::string, int> questions;
  for (const lm::Asked& asked : first.asked) ++questions[asked.task];
  int most = 1;
  for (const auto& [task, n] : questions)
    if (std::count(plan.tasks.begin(), plan.tasks.end(), task) > 0) most = std::max(most, (a.prompts + n - 1) / n);
  return std::min(most, a.contexts);
}

void keep_wanted(lm::Exam& exam, const EvalPlan& plan) {
  std::erase_if(exam.asked, [&](const lm::Asked& asked) {
    return std::count(plan.tasks.begin(), plan.tasks.end(), asked.task) == 0;
  });
}

class Evaluation {
public:
  Evaluation(const Arguments& a, LoadedModel& m, const Sides& sides, const EvalPlan& plan, Journal& journal)
      : a_(a), m_(m), sides_(sides), plan_(plan), journal_(journal), text_(read_text(a.text)) {
    for (const Json& line : journal.lines()) {
      const Sitting s = sitting_of(line);
      done_[s.key()] = s;
    }
  }
  const Done& done() const { return done_; }

  void run() {
    lm::KVCache cache(m_.model.config(), plan_.lengths.back());
    for (int64_t tokens : plan_.lengths)
      for (const std::string& exam : plan_.exams) {
        const int contexts = contexts_of(a_, plan_, make(exam, tokens, 0));
        for (int c = 0; c < contexts; ++c) one(exam, tokens, c, contexts, cache);
      }
  }

private:
  lm::Exam make(const std::string& exam, int64_t tokens, int context) const {
    return lm::make_exam(exam, m_.tokenizer, text_, tokens, a_.seed * 1000 + static_cast<uint64_t>(context));
  }

  void one(const std::string& name, int64_t tokens, int context, int contexts, lm::KVCache& cache) {
    lm::Exam exam = make(name, tokens, context);
    keep_wanted(exam, plan_);
    for (size_t side = 0; side < sides_.names.size(); ++side) {
      Sitting about;
      about.exam = name, about.side = sides_.names[side], about.tokens = tokens, about.context = context;
      if (done_.contains(about.key())) continue;
      const Progress progress(fmt::format("{}, {} tokens, context {} of {}, {}", name, tokens_name(tokens), context + 1,
                                          contexts, about.side),
                              a_.quiet);
      const bool prose = name == "book" || name == "alone";
      const AttentionSettings settings = sides_.settings(side);
      SaleAttention attention(m_.model.config(), settings, cache.capacity());
      Sitting s = sit(m_, exam, cache, attention, plan_.perplexity && prose, [&](Sitting& to) {
        const AttentionTotals& t = attention.totals();
        to.index_s = t.index_s, to.select_s = t.select_s, to.attend_s = t.attend_s;
        to.density = settings.dense ? 1 : t.density();
      });
      s.exam = about.exam, s.side = about.side, s.tokens = about.tokens, s.context = about.context;
      journal_.add(json_of(s));
      done_[s.key()] = std::move(s);
    }
  }

  const Arguments& a_;
  LoadedModel& m_;
  const Sides& sides_;
  const EvalPlan& plan_;
  Journal& journal_;
  std::string text_;
  Done done_;
};

int run(Arguments& a, const std::string& command_line) {
  static_cast<void>(read_text(a.text));  // before the model is loaded
  LoadedModel m = load_model(a.model, a.sparse.threads);
  const auto sides = make_sides(a, m);
  const EvalPlan plan = make_plan(a, m, *sides);
  const std::filesystem::path out = a.out;
  std::error_code error;
  std::filesystem::create_directories(out, error);  // a failure shows when files are written
  Json settings = settings_of(a, m, *sides);
  Journal journal(out / "results.jsonl", journal_words, settings);
  Evaluation evaluation(a, m, *sides, plan, journal);
  evaluation.run();

  Json j = json_head("eval");
  j["again"] = command_line, j["settings"] = settings, j["results"] = summary_of(plan, evaluation.done());
  write_json(out / "eval.json", j);
  settings["command"] = command_line;
  const std::string page = markdown_of(plan, evaluation.done(), settings);
  write_text(out / "eval.md", page);
  for (const std::string& side : plan.sides)
    write_text(out / fmt::format("needles-{}.svg", side), heatmap_of(plan, evaluation.done(), side));
  fmt::print("{}\nwritten: {}\n", page, (out / "eval.md").string());
  return good;
}

std::vector<std::string> all_tasks() {
  std::vector<std::string> names{"perplexity"};
  for (const lm::TaskName& t : lm::task_names) names.emplace_back(t.task);
  return names;
}

std::string words_of(const Arguments& a) {
  std::string words = "sale eval";
  if (!a.tasks.empty()) words += fmt::format(" --tasks {}", fmt::join(a.tasks, " "));
  if (!a.lengths.empty()) words += fmt::format(" --lengths {}", fmt::join(a.lengths, " "));
  words += fmt::format(" --prompts {} --contexts {} --seed {} --text {}", a.prompts, a.contexts, a.seed,
                       std::filesystem::path(a.text).filename().string());
  for (const std::string& c : a.calibrations) words += " --calibration " + std::filesystem::path(c).filename().string();
  if (!a.sparse.backend.empty()) words += " --backend " + a.sparse.backend;
  if (a.sparse.compute != "exact") words += " --compute " + a.sparse.compute;
  if (a.sparse.compensate) words += " --compensate";
  if (a.sparse.tau >= 0) words += fmt::format(" --tau {}", a.sparse.tau);
  return words;
}

}  // namespace

void add_eval(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "eval", "Retrieval tasks and perplexity by length and depth, dense beside SALE; an interrupted run goes on");
  auto a = std::make_shared<Arguments>();
  command->add_option("--model", a->model, "folder with config.json, tokenizer.json and safetensors")
      ->capture_default_str();
  command->add_option("--tasks", a->tasks, fmt::format("of {}; all when not given", fmt::join(all_tasks(), ", ")))
      ->check(CLI::IsMember(all_tasks()));
  command->add_option("--lengths", a->lengths,
                      "of context, question and answer, in tokens (default: 4k 16k, as far as the model goes)");
  command->add_option("--prompts", a->prompts, "questions wanted per task and length")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--contexts", a->contexts, "most contexts of an exam and length; questions share a context")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--text", a->text, "text that facts are hidden in and perplexity is of")->capture_default_str();
  command->add_option("--seed", a->seed, "of everything that is drawn")->capture_default_str();
  command->add_option("--out,--json", a->out, "folder for results.jsonl, eval.json, eval.md and pictures")->required();
  command->add_flag("--quiet", a->quiet, "no progress on stderr");
  add_sparse_options(*command, a->sparse, nullptr);  // one calibration is not enough here
  command
      ->add_option("--calibration", a->calibrations,
                   "calibration file or none, may be repeated: a column each (default: the one beside the model)")
      ->take_all();
  command->callback([a, &action] { action = [a] { return run(*a, words_of(*a)); }; });
}

}  // namespace sale::cli
