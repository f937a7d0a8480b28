// How a finished calibration is shown: a table on stdout, and a page with threshold and density of every head.
#pragma once

#include <algorithm>
#include <string>

#include "sale/calibration.hpp"

namespace sale::lab {

struct CalibrationFindings {
  const Calibration* calibration = nullptr;
  sale_calibrator_findings found{};  // measured at its thresholds

  size_t count() const { return calibration->thresholds.size(); }  // heads of all layers
  const sale_calibrator_head& head(size_t i) const { return found.heads[i]; }
  double density(size_t i) const {
    return static_cast<double>(head(i).kept_blocks) / static_cast<double>(std::max<int64_t>(head(i).visible_blocks, 1));
  }
};
std::string table_of(const CalibrationFindings& f);
std::string html_of(const CalibrationFindings& f);
// "layer 0 head 2 (12.0 % at the smallest threshold)" of heads that went dense, with commas; "" when none did.
std::string dense_heads(const CalibrationFindings& f);

}  // namespace sale::lab
