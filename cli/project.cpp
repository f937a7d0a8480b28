// sale project: projections for a reduced estimate, offline, once per model.
#include "arguments.hpp"
#include "lab/feeder.hpp"
#include "lab/text.hpp"

namespace sale::cli {
namespace {

struct Arguments : CalibrationArguments {
  std::string estimator = "int8";
  int rank = 64;
  double tau = 0.004;
};

int run(Arguments& a, const std::string& command_line) {
  LoadedModel m = load_model(a.model, a.threads);
  const lm::Config& config = m.model.config();
  const bool fp8 = a.estimator == "fp8";
  const int step = fp8 ? 4 : 16, most = fp8 ? 60 : config.head_dim - 1;
  // Rank 64, the usual one, is all coordinates of heads of 64: three quarters are taken there.
  if (a.rank == config.head_dim && a.rank >= 2 * step) {
    a.rank = config.head_dim * 3 / 4 / step * step;
    fmt::print(stderr, "sale: --rank {} is all coordinates of this model's heads; projecting to {}\n", config.head_dim,
               a.rank);
  }
  if (a.rank < step || a.rank % step != 0 || a.rank > most || a.rank >= config.head_dim)
    refuse("--rank: {} is not a multiple of {} from {} to {}, below the model's head dimension, {}", a.rank, step, step,
           most, config.head_dim);
  const std::vector<CalibrationPrompt> prompts = make_prompts(a, m);
  const sale_model model = m.identity.c();
  sale_calibrator_options o = calibrator_options(a, model, static_cast<int64_t>(prompts.size()));
  o.format = parse_estimator("--estimator", a.estimator).format, o.rank = a.rank;
  o.command = command_line.c_str();
  o.note = "Projections only: one threshold for every head. sale calibrate --calibration finds thresholds for them.";
  Calibrator calibrator(o);
  show_prompts(a, m, prompts, calibrator);

  Calibration c = calibrator.result();
  c.thresholds.assign(c.thresholds.size(), static_cast<float>(a.tau));
  fmt::print("{:<8} {:>28}\n", "layer", "energy of scores left out");
  const sale_calibrator_findings found = calibrator.findings();
  Json left_out = Json::array();
  for (int layer = 0; layer < config.layers; ++layer) {
    fmt::print("{:<8} {:>26.3f} %\n", layer, 100 * found.left_out[layer]);
    left_out.push_back(found.left_out[layer]);
  }
  write_calibration(a.out, c);
  fmt::print("written: {}\n", a.out);
  if (!a.json.empty()) {
    Json j = calibration_json("project", c);
    j["written"] = a.out, j["energy_left_out_of_layers"] = left_out;
    write_json(a.json, j);
  }
  return good;
}

}  // namespace

void add_project(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("project", "Compute the projections of a reduced estimate from calibration text");
  auto a = std::make_shared<Arguments>();
  add_prompt_options(*command, *a);
  command->add_option("--estimator", a->estimator, "format of the codes, int8, fp4 or fp8")
      ->check(CLI::IsMember({"int8", "fp4", "fp8"}))
      ->capture_default_str();
  command
      ->add_option("--rank", a->rank,
                   "coordinates kept, below the head dimension: a multiple of 16; fp8: of 4, up to 60")
      ->capture_default_str();
  command->add_option("--tau", a->tau, "threshold written for every head")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command->add_option("--out", a->out, "calibration file to write; projections beside it as .tensors")->required();
  command->callback([a, &action] {
    action = [a] {
      return run(*a, fmt::format("sale project {} --estimator {} --rank {}", prompt_words(*a), a->estimator, a->rank));
    };
  });
}

}  // namespace sale::cli
