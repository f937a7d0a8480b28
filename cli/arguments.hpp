// Options that several commands have.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "command.hpp"
#include "lab/calibration_prompts.hpp"
#include "lab/model_files.hpp"

namespace sale::cli {

// calibration_default: what --calibration is when not given, in words; null: no such option.
void add_sparse_options(CLI::App& command, SparseArguments& arguments, const char* calibration_default);

// The prompts of calibrate and project.
void add_prompt_options(CLI::App& command, CalibrationArguments& arguments);

// A problem line, or --file.
void add_line_options(CLI::App& command, std::vector<std::string>& words, std::string& file);

}  // namespace sale::cli
