#include "arguments.hpp"

#include <fmt/format.h>

#include "case/case.hpp"

namespace sale::cli {

void add_sparse_options(CLI::App& command, SparseArguments& a, const char* calibration_default) {
  command.add_option("--backend", a.backend, "backend to use; see sale info (default: the fastest usable one)");
  command.add_option("--threads", a.threads, "threads; 0 = one per CPU")->check(CLI::Range(0, 1024));
  command.add_option("--tau", a.tau, "threshold for every head, instead of the calibration's; 0 = dense")
      ->check(CLI::Range(0.0, 1e6));
  command.add_option("--estimator", a.estimator,
                     "int8, int4, fp4, fp8, int8:RANK, fp4:RANK or fp8:RANK; a rank must be the calibration's");
  command
      .add_option("--compute", a.compute, "products of attention: exact, int8 (CPUs, sm80), fp8 (GPUs) or f16 (sm80)")
      ->check(CLI::IsMember({"exact", "int8", "fp8", "f16"}))
      ->capture_default_str();
  command.add_flag("--compensate", a.compensate, "mean keys and values stand in for dropped blocks");
  if (calibration_default != nullptr)
    command.add_option("--calibration", a.calibration,
                       fmt::format("calibration file, or none (default: {})", calibration_default));
}

void add_prompt_options(CLI::App& command, CalibrationArguments& a) {
  command.add_option("--model", a.model, "folder with config.json, tokenizer.json and safetensors")
      ->capture_default_str();
  command.add_option("--data,--text", a.texts, "text to take windows from, may be repeated; none: built prompts alone")
      ->take_all();
  command.add_option("--tokens", a.tokens, "length of each prompt")->capture_default_str();
  command.add_option("--windows", a.windows, "windows of each text, evenly spread; 0: it only serves --needles")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command.add_option("--needles", a.needles, "prompts with numbers hidden in the first text")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command.add_option("--json-prompts", a.json_prompts, "prompts of JSON key-value pairs")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command.add_option("--backend", a.backend, "backend to use; see sale info");
  command.add_option("--threads", a.threads, "threads; 0 = one per CPU")->check(CLI::Range(0, 1024));
  command.add_option("--seed", a.seed, "of the built prompts and the sampled rows")->capture_default_str();
  command.add_option("--json", a.json, "write the result there");
  command.add_flag("--quiet", a.quiet, "no progress on stderr");
}

void add_line_options(CLI::App& command, std::vector<std::string>& words, std::string& file) {
  command.add_option("problem", words, "problem line: words key=value, see below");
  command.add_option("--file", file, "file of problem lines; # starts a comment");
  command.footer("Problem lines are made of these words:\n" + sale_case::grammar() + "\n");
}

}  // namespace sale::cli
