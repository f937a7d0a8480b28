// The runner's attention shown to a calibrator: dense, prompt after prompt, until it is done.
#pragma once

#include <vector>

#include "lab/adapter.hpp"
#include "lab/calibration_prompts.hpp"
#include "sale/calibrator.hpp"

namespace sale::lab {

// What every calibration of the program asks for; texts and arrays must live until the calibrator is made.
sale_calibrator_options calibrator_options(const CalibrationArguments& a, const sale_model& model, int64_t prompts);

// Runs the prompts through the model, as often as the calibrator's passes need. Those of an interrupted run are not run
// again.
void show_prompts(const CalibrationArguments& a, LoadedModel& model, const std::vector<CalibrationPrompt>& prompts,
                  Calibrator& to);

}  // namespace sale::lab
