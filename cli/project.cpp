// sale project: projections for a reduced estimate, offline, once per model.
#include "calibration_prompts.hpp"
#include "projection.hpp"
#include "text.hpp"

namespace sale::cli {
namespace {

struct Arguments : CalibrationArguments {
  int rank = 64;
  double tau = 0.004;
};

int run(const Arguments& a, const std::string& command_line) {
  LoadedModel m = load_model(a.model, a.threads);
  const lm::Config& config = m.model.config();
  if (a.rank % 16 != 0 || a.rank >= config.head_dim)
    refuse("--rank: {} is not a multiple of 16 below the model's head dimension, {}", a.rank, config.head_dim);
  const std::vector<CalibrationPrompt> prompts = make_prompts(a, m);
  size_t longest = 0;
  for (const CalibrationPrompt& p : prompts) longest = std::max(longest, p.tokens.size());
  lm::KVCache cache(config, static_cast<int64_t>(longest));
  AttentionSettings dense;
  dense.dense = true;
  dense.backend = a.backend, dense.threads = a.threads;
  Covariances covariances(config, dense, cache.capacity(), thread_count(a.threads));
  run_prompts(m, prompts, cache, covariances, a.quiet);

  Calibration c = start_calibration(m.identity, prompts, command_line);
  c.rank = a.rank;
  c.thresholds.assign(static_cast<size_t>(config.layers * config.q_heads), static_cast<float>(a.tau));
  c.note = "Projections only: one threshold for every head. sale calibrate --calibration finds thresholds for them.";
  fmt::print("{:<8} {:>28}\n", "layer", "energy of scores left out");
  Json left_out = Json::array();
  for (int layer = 0; layer < config.layers; ++layer) {
    const double share = covariances.projections(layer, a.rank, c.q_projections, c.k_projections);
    fmt::print("{:<8} {:>26.3f} %\n", layer, 100 * share);
    left_out.push_back(share);
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
  command->add_option("--rank", a->rank, "coordinates kept: a multiple of 16 below the head dimension")
      ->capture_default_str();
  command->add_option("--tau", a->tau, "threshold written for every head")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command->add_option("--out", a->out, "calibration file to write; projections beside it as .safetensors")->required();
  command->callback([a, &action] {
    action = [a] { return run(*a, fmt::format("sale project {} --rank {}", prompt_words(*a), a->rank)); };
  });
}

}  // namespace sale::cli
