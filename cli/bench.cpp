// sale bench: problem lines x backends, each against dense attention by the same backend in the same process.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "problem_lines.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace sale::cli {

BackendChoice backends_for(const sale_case::Instance& in, const std::string& forced) {
  BackendChoice choice;
  const std::string& only = forced.empty() ? in.c.backend : forced;
  bool known = only.empty();
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string name = sale_backend_name(i);
    if (!only.empty() && only != name) continue;
    known = true;
    std::string why = sale_backend_why_not(i);
    if (why.empty()) why = sale_backend_why_not_problem(i, &in.problem, &in.options);
    if (why.empty())
      choice.usable.push_back(name);
    else
      choice.refused.emplace_back(name, why);
  }
  if (!known) refuse("--backend: '{}' is not a backend; see sale info", only);
  if (choice.usable.empty())
    throw Error(SALE_UNSUPPORTED, fmt::format("{}: {}", choice.refused.front().first, choice.refused.front().second));
  return choice;
}

namespace {

struct Arguments {
  std::vector<std::string> words;
  std::string file, backend, json, baseline;
  int repeats = 5, warm_up = 1;
  bool quiet = false;
};

struct Timing {
  std::vector<double> seconds;
  double median() const {
    std::vector<double> s = seconds;
    std::sort(s.begin(), s.end());
    return s.size() % 2 != 0 ? s[s.size() / 2] : (s[s.size() / 2 - 1] + s[s.size() / 2]) / 2;
  }
  // Half the distance between the quartiles, as a share of the median.
  double noise() const {
    std::vector<double> s = seconds;
    std::sort(s.begin(), s.end());
    return (s[(3 * (s.size() - 1) + 2) / 4] - s[(s.size() - 1) / 4]) / 2 / median();
  }
};

struct Row {
  std::string problem, backend;
  Timing dense, sale;
  Stats stages;  // medians are of the whole; the stages are of the last run
  double flop = 0;
};

Timing measure(const sale_case::Instance& in, CasePlan& plan, const Arguments& a, sale_stats& stats) {
  Timing t;
  for (int i = -a.warm_up; i < a.repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    sale::check(sale_run(plan.get(), in.q.data(), in.k.data(), in.v.data(), in.out.data(), nullptr, nullptr,
                         plan.workspace().data(), plan.workspace().size(), &stats, nullptr));
    if (i >= 0) t.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return t;
}

// Of dense causal attention: two products of 2 d operations for every visible pair.
double dense_flop(const sale_case::Instance& in) {
  double pairs = 0;
  for (const sale_case::Sequence& s : in.sequences)
    for (int64_t i = 0; i < s.q_len; ++i) pairs += static_cast<double>(std::min(s.k_len, i + s.q_offset + 1));
  return 4.0 * in.c.head_dim * in.c.q_heads * pairs;
}

Row bench_one(const sale_case::Instance& in, const std::string& backend, const Arguments& a) {
  Row row;
  row.problem = sale_case::print(in.c), row.backend = backend;
  row.flop = dense_flop(in);
  sale_stats stats{};
  CasePlan dense(in.problem, in.options, backend, true), sparse(in.problem, in.options, backend);
  row.dense = measure(in, dense, a, stats);
  row.sale = measure(in, sparse, a, stats);
  row.stages.index_s = stats.index_s, row.stages.select_s = stats.select_s, row.stages.attend_s = stats.attend_s;
  row.stages.kept_blocks = stats.kept_blocks, row.stages.visible_blocks = stats.visible_blocks;
  return row;
}

std::string milliseconds(double s) {
  return s >= 0.1 ? fmt::format("{:.0f}", 1000 * s) : fmt::format("{:.2f}", 1000 * s);
}

std::string markdown_of(const Row& r, const std::map<std::string, double>& baseline) {
  const double dense = r.dense.median(), sale = r.sale.median(), density = r.stages.density();
  std::string line = fmt::format(
      "| {} | {} | {} | {} ± {:.1f} % | {:.2f} | {:.1f} % | {} / {} / {} | {:.0f} | {:.0f} | {:.0f} |", r.problem,
      r.backend, milliseconds(dense), milliseconds(sale), 100 * r.sale.noise(), dense / sale, 100 * density,
      milliseconds(r.stages.index_s), milliseconds(r.stages.select_s), milliseconds(r.stages.attend_s),
      r.flop / dense * 1e-9, r.flop * density / r.stages.attend_s * 1e-9, r.flop / sale * 1e-9);
  if (baseline.empty()) return line;
  const auto old = baseline.find(r.problem + " on " + r.backend);
  return line + (old == baseline.end() ? " – |" : fmt::format(" {:.2f} |", old->second / sale));
}

// Medians of an earlier --json, by problem and backend.
std::map<std::string, double> read_baseline(const std::string& path) {
  std::map<std::string, double> medians;
  if (path.empty()) return medians;
  try {
    const Json j = Json::parse(read_text(path));
    if (j.at("schema") != json_schema || j.at("command") != "bench")
      refuse("--baseline: {} was not written by sale bench", path);
    for (const Json& row : j.at("rows"))
      medians[row.at("problem").get<std::string>() + " on " + row.at("backend").get<std::string>()] =
          row.at("sale_s").get<double>();
  } catch (const Json::exception&) {
    refuse("--baseline: {} was not written by sale bench", path);
  }
  if (medians.empty()) refuse("--baseline: {} has no rows", path);
  return medians;
}

Json json_row(const Row& r) {
  Json j;
  j["problem"] = r.problem, j["backend"] = r.backend;
  j["dense_s"] = r.dense.median(), j["sale_s"] = r.sale.median(), j["noise"] = r.sale.noise(),
  j["ratio"] = r.dense.median() / r.sale.median();
  j["index_s"] = r.stages.index_s, j["select_s"] = r.stages.select_s, j["attend_s"] = r.stages.attend_s;
  j["density"] = r.stages.density(), j["dense_flop"] = r.flop;
  j["dense_samples_s"] = r.dense.seconds, j["sale_samples_s"] = r.sale.seconds;
  return j;
}

int run(const Arguments& a) {
  const auto baseline = read_baseline(a.baseline);
  Json all = json_head("bench");
  all["repeats"] = a.repeats;
  all["rows"] = Json::array(), all["not_run"] = Json::array();
  fmt::print(
      "| problem | backend | dense ms | SALE ms | ratio | density | index / select / attend ms | dense GFLOP/s | "
      "attend GFLOP/s | dense-equivalent GFLOP/s |{}\n",
      baseline.empty() ? "" : " against baseline |");
  fmt::print("|---|---|---|---|---|---|---|---|---|---|{}\n", baseline.empty() ? "" : "---|");
  for (const std::string& line : lines_of(a.words, a.file)) {
    sale_case::Instance in(sale_case::parse(line));
    const BackendChoice choice = backends_for(in, a.backend);
    for (const std::string& backend : choice.usable) {
      Progress progress(backend + ": " + line, a.quiet);
      const Row row = bench_one(in, backend, a);
      fmt::print("{}\n", markdown_of(row, baseline));
      std::fflush(stdout);
      all["rows"].push_back(json_row(row));
    }
    for (const auto& [name, why] : choice.refused) {
      fmt::print(stderr, "{}: not run: {}\n", name, why);
      all["not_run"].push_back({{"problem", sale_case::print(in.c)}, {"backend", name}, {"why_not", why}});
    }
  }
  if (!a.json.empty()) write_json(a.json, all);
  return good;
}

}  // namespace

void add_bench(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "bench", "Time problem lines on every usable backend, against dense attention by the same backend");
  auto a = std::make_shared<Arguments>();
  add_line_options(*command, a->words, a->file);
  command->add_option("--backend", a->backend, "only this one");
  command->add_option("--repeats", a->repeats, "timed runs; the median is shown")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  command->add_option("--warm-up", a->warm_up, "runs before them")->check(CLI::Range(0, 1000))->capture_default_str();
  command->add_option("--json", a->json, "write every sample there");
  command->add_option("--baseline", a->baseline, "file of an earlier --json to compare with");
  command->add_flag("--quiet", a->quiet, "no progress on stderr");
  command->callback([a, &action] { action = [a] { return run(*a); }; });
}

}  // namespace sale::cli
