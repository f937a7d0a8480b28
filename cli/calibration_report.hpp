// How a finished calibration is shown: a table on stdout, and a page with threshold and density of every head.
#pragma once

#include <string>

#include "sweep.hpp"

namespace sale::cli {

struct CalibrationFindings {
  const Calibration* calibration = nullptr;
  Points points;                                         // measured at its thresholds
  int prompts = 1;                                       // they are of
  std::string goal;                                      // "budget 0.05 for the whole model"
  double seconds = 0, dense_seconds = 0, per_block = 0;  // attention by the cost model; 0 without one
};
std::string table_of(const CalibrationFindings& f);
std::string html_of(const CalibrationFindings& f);
// "layer 0 head 2 (12.0 % at the smallest threshold)" of heads that went dense, with commas; "" when none did.
std::string dense_heads(const CalibrationFindings& f);

}  // namespace sale::cli
