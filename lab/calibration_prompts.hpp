// The prompts that projections and thresholds are made from.
#pragma once

#include <string>
#include <vector>

#include "lab/answers.hpp"
#include "lab/model_files.hpp"
#include "lab/refuse.hpp"

namespace sale::lab {

struct CalibrationArguments {
  std::string model = default_model, tokens = "16k", out, json;
  std::vector<std::string> texts;
  int windows = 1, needles = 0, json_prompts = 1;
  int threads = 0;
  std::string backend;
  uint64_t seed = 1;
  bool quiet = false;
};

// The words that make the same prompts again, for the file's provenance.
std::string prompt_words(const CalibrationArguments& arguments);

struct CalibrationPrompt {
  std::string name;  // "moby_dick.txt from token 0"
  std::vector<int32_t> tokens;
  std::vector<int64_t> asking = {};  // tokens from which answers are read
};
// Windows of each text, evenly spread; then the built prompts, their questions and answers put after them.
std::vector<CalibrationPrompt> make_prompts(const CalibrationArguments& arguments, const LoadedModel& model);

// What both commands say of their work in --json: model, prompts and the command line that makes the file again.
Json calibration_json(const std::string& command, const Calibration& c);

// Runs one prompt through the model, from an empty cache; `name` is what the progress line says.
void run_prompt(LoadedModel& model, const std::vector<int32_t>& tokens, lm::KVCache& cache, lm::Attention& attention,
                const std::string& name, bool quiet);

}  // namespace sale::lab
