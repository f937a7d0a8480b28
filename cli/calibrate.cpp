// sale calibrate: a threshold for every layer and head, and a calibration file that holds them.
//
//   --budget   one error budget for the whole model, spent where it saves most
//   --error    every head at most this error
//   --time     attention's time at most this share of the dense one, the error where it does least harm
//   --paper    the paper's procedure: halving from 0.008 while the L1 error per token passes a limit
//
// The work is the library's (sale/calibration.h); here the model runs, and what was found is shown. Every prompt's
// figures are kept in OUT.progress until the end, so that an interrupted run goes on.
#include <algorithm>
#include <filesystem>
#include <optional>

#include "arguments.hpp"
#include "lab/calibration_report.hpp"
#include "lab/feeder.hpp"
#include "lab/text.hpp"

namespace sale::cli {
namespace {

struct Arguments : CalibrationArguments {
  std::string calibration, estimator = "int8";
  std::vector<double> budgets, errors, times;
  double paper = 0;  // theta
  int rows = 48;
  bool local_heads = false, smoothing = false, compensate = false;
};

std::vector<sale_goal> goals_of(const Arguments& a) {
  if (a.paper > 0) return {{SALE_GOAL_PAPER, a.paper}};
  std::vector<sale_goal> goals;
  for (double x : a.budgets) goals.push_back({SALE_GOAL_BUDGET, x});
  for (double x : a.errors) goals.push_back({SALE_GOAL_ERROR, x});
  for (double x : a.times) goals.push_back({SALE_GOAL_TIME, x});
  return goals;
}

Json show_and_write(const Arguments& a, const Calibrator& made, size_t goals) {
  Json results = Json::array();
  for (size_t i = 0; i < goals; ++i) {
    const Calibration c = made.result(static_cast<int64_t>(i));
    const CalibrationFindings f{&c, made.findings(static_cast<int64_t>(i))};
    // The measuring costs the time; several goals are had for the price of one.
    std::filesystem::path out = a.out;
    if (goals > 1) out.replace_filename(fmt::format("{}_{}{}", out.stem().string(), i, out.extension().string()));
    write_calibration(out, c);
    std::filesystem::path page = out;
    write_text(page.replace_extension(".html"), html_of(f));
    fmt::print("{}written: {}, {}\n", table_of(f), out.string(), page.string());
    results.push_back({{"goal", f.found.goal},
                       {"limit", c.relative_l1_limit},
                       {"written", out.string()},
                       {"density", c.density},
                       {"relative_l1_error", c.relative_l1},
                       {"retained_mass", c.retained_mass},
                       {"attention_s", f.found.attention_s},
                       {"dense_attention_s", f.found.dense_attention_s},
                       {"seconds_per_block", f.found.seconds_per_block},
                       {"dense_heads", dense_heads(f)},
                       {"thresholds", c.thresholds}});
  }
  return results;
}

int run(const Arguments& a, const std::string& command_line) {
  std::optional<Calibration> given;
  EstimatorName estimator;
  if (a.calibration.empty())
    estimator = parse_estimator("--estimator", a.estimator);
  else
    given = read_calibration(a.calibration);
  LoadedModel m = load_model(a.model, a.threads);
  if (given) check_model(*given, m.identity);
  const std::vector<CalibrationPrompt> prompts = make_prompts(a, m);
  const std::vector<sale_goal> goals = goals_of(a);
  const sale_model model = m.identity.c();
  const std::string progress = a.out + ".progress",
                    note = given && given->projected() ? "Projections: " + given->command : "";
  sale_calibrator_options o = calibrator_options(a, model, static_cast<int64_t>(prompts.size()));
  o.format = estimator.format, o.rank = estimator.rank;
  if (given) {
    o.format = given->format, o.rank = given->rank;
    if (given->projected())
      o.q_projections = given->q_projections.data(), o.k_projections = given->k_projections.data();
  }
  o.goals = goals.data(), o.n_goals = static_cast<int64_t>(goals.size());
  o.rows = a.rows, o.local_heads = a.local_heads ? 1 : 0, o.smoothing = a.smoothing ? 1 : 0;
  o.compensate = a.compensate ? 1 : 0;
  o.progress = progress.c_str(), o.command = command_line.c_str(), o.note = note.c_str();
  Calibrator calibrator(o);
  show_prompts(a, m, prompts, calibrator);
  const Json results = show_and_write(a, calibrator, goals.size());
  calibrator.forget();
  if (!a.json.empty()) {
    Json j = calibration_json("calibrate", read_calibration(results.back().at("written").get<std::string>()));
    j["results"] = results;
    write_json(a.json, j);
  }
  return good;
}

std::string goal_words(const Arguments& a) {
  if (a.paper > 0) return fmt::format("--paper {}", a.paper);
  std::string words;
  for (double x : a.budgets) words += fmt::format("--budget {} ", x);
  for (double x : a.errors) words += fmt::format("--error {} ", x);
  for (double x : a.times) words += fmt::format("--time {} ", x);
  return words + fmt::format("--rows {}{}{}{}", a.rows, a.local_heads ? " --local-heads" : "",
                             a.smoothing ? " --smoothing" : "", a.compensate ? " --compensate" : "");
}

// What was left to be chosen.
void complete(Arguments& a, bool json_prompts_given) {
  const bool goals = !(a.budgets.empty() && a.errors.empty() && a.times.empty());
  if (a.paper > 0 && goals) refuse("--paper: a goal of its own; give it without --budget, --error and --time");
  if (a.paper > 0 && a.compensate) refuse("--compensate: the paper's procedure does not know it");
  if (a.paper > 0 && !json_prompts_given) a.json_prompts = 5;
  if (a.paper == 0 && !goals) a.budgets = {0.05};
}

void add_goals(CLI::App& command, Arguments& a) {
  command
      .add_option(
          "--budget,--limit", a.budgets,
          "relative L1 error allowed to the whole model, root mean square over heads (default: 0.05); goals may "
          "be repeated: OUT_0, OUT_1, ...")
      ->check(CLI::Range(0.0, 1.0))
      ->take_all();
  command.add_option("--error", a.errors, "relative L1 error allowed to every head")
      ->check(CLI::Range(0.0, 1.0))
      ->take_all();
  command.add_option("--time", a.times, "attention's time as a share of the dense one")
      ->check(CLI::Range(0.0, 1.0))
      ->take_all();
  command
      .add_option(
          "--paper", a.paper,
          "the paper's procedure instead: thresholds halved from 0.008 while a head's L1 error per token passes "
          "this; five prompts of key-value pairs unless --json-prompts says otherwise")
      ->check(CLI::Range(1e-9, 1e9));
}

}  // namespace

void add_calibrate(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "calibrate", "Find every head's threshold for an error or a time and write a calibration file");
  auto a = std::make_shared<Arguments>();
  add_prompt_options(*command, *a);
  add_goals(*command, *a);
  command->add_option("--rows", a->rows, "rows sampled per head and prompt")
      ->check(CLI::Range(4, 4096))
      ->capture_default_str();
  command->add_option("--calibration", a->calibration, "take estimator and projections from this file (sale project)");
  command
      ->add_option(
          "--estimator", a->estimator,
          "int8, int4, fp4, fp8, or int8:RANK, fp4:RANK, fp8:RANK with projections made first; without --calibration")
      ->capture_default_str();
  command->add_flag("--local-heads", a->local_heads,
                    "heads that lose no more than the budget by it see sink and local keys alone");
  command->add_flag("--smoothing", a->smoothing,
                    "also the layers' own smoothing vectors (fp8: and scales), which codes in pages need");
  command->add_flag("--compensate", a->compensate, "for attention that is run with --compensate");
  command->add_option("--out", a->out, "calibration file to write; its page goes beside it, as .html")->required();
  command->callback([a, command, &action] {
    action = [a, command] {
      complete(*a, command->count("--json-prompts") > 0);
      const std::string estimator = a->calibration.empty()
                                        ? "--estimator " + a->estimator
                                        : "--calibration " + std::filesystem::path(a->calibration).filename().string();
      return run(*a, fmt::format("sale calibrate {} {} {}", prompt_words(*a), goal_words(*a), estimator));
    };
  });
}

}  // namespace sale::cli
