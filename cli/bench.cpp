// sale bench: problem lines x backends, each against dense attention by the same backend in the same process.
#include <algorithm>
#include <cmath>
#include <map>

#include "arguments.hpp"
#include "case/random.hpp"
#include "lab/problem_lines.hpp"
#include "lab/progress.hpp"
#include "lab/text.hpp"

namespace sale::cli {

namespace {

struct Arguments {
  std::vector<std::string> words;
  std::string file, backend, json, baseline;
  double lists = 0;  // density of random block lists, instead of selected ones
  int repeats = 5, warm_up = 1;
  bool quiet = false;
};

constexpr int64_t most_bytes = int64_t{48} << 30;  // of a line's tensors: half a million tokens of 32 heads, and more

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
  size_t workspace = 0;  // bytes, of the sparse run
};

// f(stats), `repeats` times. Devices run without statistics, which would make them wait between the stages.
template <class F>
Timing measure(const PlacedCase& at, const Arguments& a, F&& f) {
  Timing t;
  for (int i = -a.warm_up; i < a.repeats; ++i) {
    const double s = seconds_of(at.device(), f);
    if (i >= 0) t.seconds.push_back(s);
  }
  return t;
}
sale_call without_lse(const PlacedCase& at, sale_stats* stats) {
  sale_call call = at.call();
  call.lse = nullptr, call.stats = stats;
  return call;
}

Timing measure_run(const PlacedCase& at, CasePlan& plan, const Arguments& a, sale_stats& stats) {
  const auto run = [&](sale_stats* to) { plan.run(without_lse(at, to)); };
  const Timing t = measure(at, a, [&] { run(at.device() ? nullptr : &stats); });
  if (at.device()) run(&stats);
  return t;
}

// A device's stages each between two events.
void measure_stages(const PlacedCase& at, CasePlan& plan, const Arguments& a, sale_stats& stats) {
  const Blocks blocks = blocks_for(plan);
  const sale_call call = without_lse(at, nullptr);
  const double both = measure(at, a, [&] { plan.select(call, blocks.get()); }).median();
  stats.attend_s = measure(at, a, [&] { plan.attend(call, blocks.get()); }).median();
  stats.index_s = std::min(stats.index_s, both);  // that one by the clock
  stats.select_s = both - stats.index_s;
}

// Random lists: the first and the last blocks of every row, of the others each with this probability.
void fill_lists(const sale_case::Instance& in, const CasePlan& plan, sale_blocks* blocks, double density) {
  sale_case::Random random(in.c.seed);
  const int64_t q_block = sale_plan_q_block(plan.get()), last = (in.c.local + q_block) / SALE_K_BLOCK;
  for (int32_t b = 0; b < in.c.batch; ++b)
    for (int32_t h = 0; h < in.c.q_heads; ++h)
      for (int64_t t = 0; t * q_block < in.sequences[static_cast<size_t>(b)].q_len; ++t) {
        const std::vector<int32_t> all = row_of(blocks, {b, h, t}).kept;  // a new list holds what is visible
        const auto visible = static_cast<int64_t>(all.size());
        if (visible == 0) continue;
        std::vector<int32_t> row;
        for (int64_t i = 0; i < visible; ++i)
          if (i == 0 || i >= visible - last || static_cast<double>(random.below(1 << 20)) < density * (1 << 20))
            row.push_back(all[static_cast<size_t>(i)]);
        sale::check(sale_blocks_set_row(blocks, {b, h, t}, row.data(), static_cast<int64_t>(row.size())));
      }
}

// Of dense causal attention: two products of 2 d operations for every visible pair.
double dense_flop(const sale_case::Instance& in) {
  double pairs = 0;
  for (const sale_case::Sequence& s : in.sequences)
    for (int64_t i = 0; i < s.q_len; ++i) {
      const int64_t end = std::min(s.k_len, i + s.q_offset + 1);
      const int64_t first = in.c.window == 0 ? 0 : std::clamp<int64_t>(i + s.q_offset + 1 - in.c.window, 0, end);
      pairs += static_cast<double>(end - first + (in.c.window_sink ? std::min<int64_t>(in.c.sink, first) : 0));
    }
  return 4.0 * in.c.head_dim * in.c.q_heads * pairs;
}

Row bench_one(sale_case::Instance& in, const std::string& backend, const Arguments& a) {
  Row row;
  const PlacedCase at(in, backend);
  row.problem = sale_case::print(in.c), row.backend = backend;
  row.flop = dense_flop(in);
  sale_stats stats{};
  stats.struct_size = sizeof stats;
  sale_options plain = in.options;
  plain.compute = SALE_COMPUTE_EXACT, plain.compensate = 0;
  CasePlan dense(at.problem(), in.layer, plain, backend, true), sparse(at.problem(), in.layer, in.options, backend);
  row.workspace = sparse.needs().total;
  row.dense = measure_run(at, dense, a, stats);
  if (a.lists > 0) {
    const Blocks blocks = blocks_for(sparse);
    fill_lists(in, sparse, blocks.get(), a.lists);
    const auto attend = [&](sale_stats* to) { sparse.attend(without_lse(at, to), blocks.get()); };
    row.sale = measure(at, a, [&] { attend(nullptr); });
    attend(&stats);
    stats.attend_s = row.sale.median();
  } else {
    row.sale = measure_run(at, sparse, a, stats);
    if (at.device()) measure_stages(at, sparse, a, stats);
  }
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
  j["density"] = r.stages.density(), j["dense_flop"] = r.flop, j["workspace_bytes"] = r.workspace;
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
    sale_case::Instance in(sale_case::parse(line), most_bytes);
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
  command->add_option("--lists", a->lists, "attend to random block lists of this density instead of selected ones")
      ->check(CLI::Range(0.0, 1.0));
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
