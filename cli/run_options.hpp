// What sale run and sale demo share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "command.hpp"
#include "lab/session.hpp"

namespace sale::cli {

struct RunArguments {
  std::string model = default_model, chunk = "0", json, report;
  PromptArguments prompt;
  SparseArguments sparse;
  bool compare = false, measure = false, quiet = false;
  int audit = 0;                // rows per head
  double guard = 0;             // audited error that makes a head denser
  bool answers_decide = false;  // a wrong answer to a built prompt makes the exit code 1
};

// `given`, else calibration.json (GPUs: calibration-fp8.json) in the model's folder, or NAME.calibration.json beside
// NAME.gguf, else FINGERPRINT.json (GPUs: FINGERPRINT-fp8.json) in the folder $SALE_CALIBRATIONS, else "none", with a
// line on stderr that says what to run.
std::string calibration_for(const std::string& given, const std::filesystem::path& model, const std::string& backend);
void add_run_options(CLI::App& command, RunArguments& arguments);
int run_and_report(RunArguments& arguments, const std::string& title);

}  // namespace sale::cli
