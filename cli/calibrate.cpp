// sale calibrate: a threshold for every layer and head, and a calibration file that holds them.
//
//   --budget   one error budget for the whole model, spent where it saves most time (allocation.hpp)
//   --error    every head at most this error
//   --time     attention's time at most this share of the dense one, the error where it does least harm
//   --paper    the paper's procedure: halving from 0.008 while the L1 error per token passes a limit
//
// What was chosen is measured again at exactly those thresholds before it is written. Every prompt's figures are kept
// in OUT.progress until the end, so that an interrupted run goes on.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "allocation.hpp"
#include "calibration_prompts.hpp"
#include "calibration_report.hpp"
#include "journal.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace sale::cli {
namespace {

struct Arguments : CalibrationArguments {
  std::string calibration, estimator = "int8";
  std::vector<double> budgets, errors, times;
  double paper = 0;  // theta
  int rows = 48;
};

struct Goal {
  std::string words;
  double limit;  // for the file
  std::vector<float> thresholds;
};

class Work {
public:
  Work(const Arguments& a, LoadedModel& m, const Sparse& sparse, std::vector<CalibrationPrompt> prompts)
      : a_(a), m_(m), settings_(sparse.settings), prompts_(std::move(prompts)), cache_(m.model.config(), longest()) {}

  // What is asked for, from as many passes over the prompts as that takes; and what those thresholds do.
  std::vector<Goal> goals(Journal& journal) {
    done_ = 0;
    if (a_.paper > 0) return {by_halving(journal)};
    measured_ = sweep(journal, sweep_tries(heads()), "measuring", true);
    const Allocation allocation(measured_);
    std::vector<Goal> goals;
    for (double x : a_.budgets)
      goals.push_back({fmt::format("budget {} for the whole model", x), x, allocation.within_budget(x)});
    for (double x : a_.errors)
      goals.push_back({fmt::format("error of every head at most {}", x), x, allocation.each_within(x)});
    for (double x : a_.times)
      goals.push_back({fmt::format("attention in {} of the dense time", x), x, allocation.within_time(x)});
    return goals;
  }
  Measured check(Journal& journal, const std::vector<Goal>& goals) {
    Sweep::Tries tries;
    for (const Goal& g : goals) tries.push_back(g.thresholds);
    return sweep(journal, tries, "checking", false);
  }
  const Measured& measured() const { return measured_; }

private:
  size_t heads() const {
    return static_cast<size_t>(m_.model.config().layers) * static_cast<size_t>(m_.model.config().q_heads);
  }
  int64_t longest() const {
    size_t n = 0;
    for (const CalibrationPrompt& p : prompts_) n = std::max(n, p.tokens.size());
    return static_cast<int64_t>(n);
  }
  // The next line of the journal, which one of an interrupted run may have written already.
  template <class Make>
  Json line(Journal& journal, Make&& make) {
    if (done_ == journal.lines().size()) journal.add(make());
    return journal.lines()[done_++];
  }
  std::string name_of(const char* doing, size_t i) const {
    return fmt::format("{} {} of {}: {}", doing, i + 1, prompts_.size(), prompts_[i].name);
  }

  Measured sweep(Journal& journal, const Sweep::Tries& tries, const char* doing, bool cost) {
    Measured sum;
    for (size_t i = 0; i < prompts_.size(); ++i)
      sum.add(measured_of(line(journal, [&] {
        Sweep one(m_.model.config(), settings_, tries, {a_.rows, a_.seed, cost}, cache_.capacity());
        run_prompt(m_, prompts_[i].tokens, cache_, one, name_of(doing, i), a_.quiet);
        return json_of(one.measured());
      })));
    return sum;
  }

  Goal by_halving(Journal& journal) {
    Goal goal{fmt::format("L1 error per token at most {}, as the paper does it", a_.paper), a_.paper,
              std::vector<float>(heads(), Halving::first)};
    for (size_t i = 0; i < prompts_.size(); ++i)
      goal.thresholds = line(journal,
                             [&] {
                               Halving one(m_.model.config(), settings_, a_.paper, goal.thresholds, cache_.capacity());
                               run_prompt(m_, prompts_[i].tokens, cache_, one, name_of("halving", i), a_.quiet);
                               return Json{{"thresholds", one.thresholds()}};
                             })
                            .at("thresholds")
                            .get<std::vector<float>>();
    return goal;
  }

  const Arguments& a_;
  LoadedModel& m_;
  AttentionSettings settings_;
  std::vector<CalibrationPrompt> prompts_;
  lm::KVCache cache_;
  Measured measured_;
  size_t done_ = 0;
};

// The file's own figures.
void summarize(Calibration& c, const Goal& goal, const Points& points, int prompts) {
  c.thresholds = goal.thresholds;
  c.relative_l1_limit = goal.limit;
  c.density = c.relative_l1 = c.retained_mass = 0;
  int64_t kept = 0, visible = 0;
  const auto n = static_cast<double>(points.size());
  for (const Point& p : points) {
    kept += p.kept, visible += p.visible;
    c.relative_l1 += p.relative / n, c.retained_mass += p.mass / prompts / n;
  }
  c.retained_mass = std::min(1.0, c.retained_mass);
  c.density = static_cast<double>(kept) / static_cast<double>(visible);
}

Json show_and_write(const Arguments& a, Calibration c, const Work& work, const std::vector<Goal>& goals,
                    const Measured& checked) {
  Json results = Json::array();
  for (size_t i = 0; i < goals.size(); ++i) {
    summarize(c, goals[i], checked.tries[i], checked.prompts);
    CalibrationFindings f{&c, checked.tries[i], checked.prompts, goals[i].words};
    if (!work.measured().tries.empty()) {
      const Allocation allocation(work.measured());
      double kept = 0;
      for (const Point& p : f.points) kept += static_cast<double>(p.kept);
      f.seconds = allocation.seconds(kept), f.dense_seconds = allocation.dense_seconds();
      f.per_block = allocation.cost().per_block();
    }
    // The measuring costs the time; several goals are had for the price of one.
    std::filesystem::path out = a.out;
    if (goals.size() > 1)
      out.replace_filename(fmt::format("{}_{}{}", out.stem().string(), i, out.extension().string()));
    write_calibration(out, c);
    std::filesystem::path page = out;
    write_text(page.replace_extension(".html"), html_of(f));
    fmt::print("{}written: {}, {}\n", table_of(f), out.string(), page.string());
    results.push_back({{"goal", f.goal},
                       {"limit", goals[i].limit},
                       {"written", out.string()},
                       {"density", c.density},
                       {"relative_l1_error", c.relative_l1},
                       {"retained_mass", c.retained_mass},
                       {"attention_s", f.seconds},
                       {"dense_attention_s", f.dense_seconds},
                       {"seconds_per_block", f.per_block},
                       {"dense_heads", dense_heads(f)},
                       {"thresholds", c.thresholds}});
  }
  return results;
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
  Calibration c = start_calibration(m.identity, prompts, command_line);
  c.rank = m.identity.head_dim;
  c.format = sparse.settings.format;
  if (sparse.calibration) {
    c.format = sparse.calibration->format, c.rank = sparse.calibration->rank;
    c.q_projections = sparse.calibration->q_projections, c.k_projections = sparse.calibration->k_projections;
    if (c.projected()) c.note = "Projections: " + sparse.calibration->command;
  }
  Json settings{
      {"command", command_line},
      {"model", fmt::format("{:016x}", m.identity.fingerprint)},
      {"backend", a.backend},
      {"projections", fmt::format("{:016x}", Fingerprint().add(std::as_bytes(std::span(c.k_projections))).value())}};
  Journal journal(a.out + ".progress", "--out", settings);
  Work work(a, m, sparse, prompts);
  const std::vector<Goal> goals = work.goals(journal);
  const Measured checked = work.check(journal, goals);
  const Json results = show_and_write(a, std::move(c), work, goals, checked);
  journal.remove();
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
  return words + fmt::format("--rows {}", a.rows);
}

// What was left to be chosen.
void complete(Arguments& a, bool json_prompts_given) {
  const bool goals = !(a.budgets.empty() && a.errors.empty() && a.times.empty());
  if (a.paper > 0 && goals) refuse("--paper: a goal of its own; give it without --budget, --error and --time");
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
  command->add_option("--estimator", a->estimator, "int8, int4 or fp8, without --calibration")
      ->check(CLI::IsMember({"int8", "int4", "fp8"}))
      ->capture_default_str();
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
