// sale run: one prompt through a model.
#include <cstdlib>

#include "arguments.hpp"
#include "command.hpp"
#include "lab/answers.hpp"
#include "lab/text.hpp"
#include "run_options.hpp"

namespace sale::cli {

namespace {
constexpr int guard_rows = 32;  // of an audit that nobody gave a size
}

std::string calibration_for(const std::string& given, const std::filesystem::path& model, const std::string& backend) {
  if (!given.empty()) return given;
  std::error_code error;
  const std::string name = format_of(backend) == SALE_FP8 ? "calibration-fp8.json" : "calibration.json";
  auto beside = model / name;
  if (std::filesystem::is_regular_file(model, error))
    beside = std::filesystem::path(model).replace_extension("." + name);
  if (std::filesystem::exists(beside, error)) return beside.string();
  if (const char* shelf = std::getenv("SALE_CALIBRATIONS"); shelf != nullptr && *shelf != 0) {
    const auto kept = std::filesystem::path(shelf) / fmt::format("{:016x}{}.json", identify(model).fingerprint,
                                                                 format_of(backend) == SALE_FP8 ? "-fp8" : "");
    if (std::filesystem::exists(kept, error)) return kept.string();
  }
  fmt::print(stderr,
             "sale: {} has no calibration: one threshold serves all heads, and answers from long prompts can suffer. "
             "`sale calibrate --model {} --data TEXT --out {}` makes one\n",
             model.string(), model.string(), beside.string());
  return "none";
}

namespace {
std::string prompt_name(const PromptArguments& a) {
  if (a.prompt_files.empty()) return "a question";
  std::string names;
  for (const std::string& file : a.prompt_files) {
    if (!names.empty()) names += ", ";
    names += file == "-" ? "standard input" : std::filesystem::path(file).filename().string();
  }
  return names;
}
}  // namespace

void describe(Findings& f, const RunArguments& a, const LoadedModel& m, const Sparse& sparse, const Task& task) {
  f.model = m.identity.name;
  f.task = &task;
  f.config = &m.model.config();
  f.threads = thread_count(a.sparse.threads);
  f.estimator = sparse.estimator_name(m.identity.head_dim);
  f.calibration = sparse.calibration ? std::filesystem::path(a.sparse.calibration).filename().string() : "none";
  f.thresholds = sparse.calibration && !sparse.settings.tau_over_calibration
                     ? "thresholds calibrated"
                     : fmt::format("threshold {}", sparse.settings.tau);
  if (!a.prompt.built())
    f.prompt = prompt_name(a.prompt);
  else if (a.prompt.build == "json")
    f.prompt = "JSON key-value pairs";
  else
    f.prompt =
        fmt::format("{} with {} hidden", std::filesystem::path(a.prompt.text).filename().string(),
                    a.prompt.build == "passkey" ? "a pass key" : fmt::format("{} needles", task.questions.size()));
}

void add_run_options(CLI::App& command, RunArguments& a) {
  command.add_option("--model", a.model, "folder with config.json, tokenizer.json and safetensors, or a GGUF file")
      ->capture_default_str();
  command.add_option("--tokens", a.prompt.tokens,
                     "length of the prompt, 16 .. the model's positions (default: 64k, or the positions if fewer; with "
                     "--prompt-file the "
                     "whole of it)");
  command
      .add_option("--prompt-file", a.prompt.prompt_files,
                  "text to prefill instead of a built prompt, may be repeated; - is standard input; --tokens cuts it")
      ->take_all();
  command.add_option("--question", a.prompt.questions, "text to put after --prompt-file's, may be repeated")
      ->take_all();
  command.add_flag(
      "--chat", a.prompt.chat,
      "the model's chat template around prompt and question; answers are printed as they come, to their end");
  command.add_option("--text", a.prompt.text, "book the built prompt hides its facts in")->capture_default_str();
  command.add_option("--facts", a.prompt.facts, "facts hidden and asked for")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command.add_option("--seed", a.prompt.seed, "of the built prompt")->capture_default_str();
  command.add_option("--chunk", a.chunk, "prefill in chunks of this many tokens; 0 = whole")->capture_default_str();
  command.add_option("--new-tokens", a.prompt.new_tokens, "most tokens of an answer (default: 24; with --chat 512)");
  command.add_flag("--sparse-decode", a.sparse.sparse_decode,
                   "answers are generated sparsely too, not only prefilled: the stricter test");
  command
      .add_option("--audit", a.audit,
                  "rows of every head and layer whose exact attention is computed besides, to show the error while "
                  "running; 0 = none")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  command
      .add_option("--guard", a.guard,
                  "a head whose audited relative L1 error passes this runs again at an eighth of its threshold, then "
                  "dense; implies --audit 32")
      ->check(CLI::Range(0.0, 1e6));
  command.add_flag("--quiet", a.quiet, "no progress on stderr");
  command.add_option("--json", a.json, "write the result there");
  add_sparse_options(command, a.sparse, "calibration.json in the model's folder, if there is one");
}

int run_and_report(RunArguments& a, const std::string& title) {
  for (const std::string& file : a.prompt.prompt_files)  // before the model is loaded
    if (file != "-") static_cast<void>(read_text(file));
  LoadedModel m = load_model(a.model, a.sparse.threads);
  a.sparse.calibration = calibration_for(a.sparse.calibration, a.model, a.sparse.backend);
  Sparse sparse;
  resolve(a.sparse, m.identity, sparse);
  sparse.settings.guard = a.guard;
  sparse.settings.audit = a.guard > 0 && a.audit == 0 ? guard_rows : a.audit,
  sparse.settings.audit_seed = a.prompt.seed;
  const Task task = make_task(a.prompt, m, a.model);
  lm::KVCache cache(m.model.config(), task.capacity());
  const lm::Config& config = m.model.config();
  const auto tokens = static_cast<int64_t>(task.context.size());

  Quality quality(config, tokens, 16, a.prompt.seed, thread_count(a.sparse.threads));
  Pictures pictures(config, tokens, 256);
  Finders finders(config);
  Watchers watchers;
  if (a.measure) watchers.add(&quality), watchers.add(&pictures);

  Findings f;
  f.title = title;
  describe(f, a, m, sparse, task);
  SessionOptions options;
  options.chunk = parse_count("--chunk", a.chunk, 0, config.max_positions);
  options.quiet = a.quiet;
  if (a.compare) {
    AttentionSettings dense = sparse.settings;
    dense.dense = true;
    options.label = "dense";
    f.dense = run_task(m, task, cache, dense, options);
  }
  options.label = "SALE";
  if (task.whole_answers)
    options.stream = [](std::string_view part) {
      std::fwrite(part.data(), 1, part.size(), stdout);
      std::fflush(stdout);
    };
  const bool announce = task.whole_answers && task.questions.size() > 1;
  options.before_question = [&](const Question& q) {
    if (announce) fmt::print("{}> {}\n", &q == task.questions.data() ? "" : "\n\n", q.text);
    if (a.measure) finders.look_for(q.fact ? q.fact->begin : 0, q.fact ? q.fact->end : 0);
  };
  if (a.measure) {
    options.prefill_watcher = &watchers;
    options.question_watcher = &finders;
    f.quality = &quality, f.pictures = &pictures, f.finders = &finders;
  }
  f.sale = run_task(m, task, cache, sparse.settings, options);

  fmt::print("{}{}{}", task.whole_answers ? "\n" : "", table_of(f), lines_of(f.sale.guard));
  if (!a.report.empty()) {
    write_report(a.report, f);
    fmt::print("\nreport: {}\n", (std::filesystem::path(a.report) / "report.html").string());
  }
  if (!a.json.empty()) write_json(a.json, json_of(f));
  return a.answers_decide && (!f.sale.all_right() || (f.dense && !f.dense->all_right())) ? check_failed : good;
}

void add_run(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("run", "Prefill a long prompt through a model with SALE and answer questions about it");
  auto a = std::make_shared<RunArguments>();
  a->prompt.text = default_text;
  add_run_options(*command, *a);
  command->add_option("--build", a->prompt.build, "prompt to build: needles, passkey or json")
      ->check(CLI::IsMember({"needles", "passkey", "json"}))
      ->capture_default_str();
  command->add_flag("--compare", a->compare, "also dense, the same kernels with every block kept");
  command->add_flag("--measure", a->measure, "error and retained mass on sampled rows, against double precision");
  command->add_option("--report", a->report, "folder for report.html and report.json (implies --measure)");
  command->callback([a, &action] {
    action = [a] {
      a->measure = a->measure || !a->report.empty();
      return run_and_report(*a, "run");
    };
  });
}

}  // namespace sale::cli
