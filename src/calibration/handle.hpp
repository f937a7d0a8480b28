// What a sale_calibration* points to.
#pragma once

#include <vector>

#include "calibration/contents.hpp"

struct sale_calibration {
  explicit sale_calibration(sale::calibration::Contents c);
  sale_calibration(const sale_calibration&) = delete;
  sale_calibration& operator=(const sale_calibration&) = delete;

  const sale::calibration::Contents contents;
  std::vector<sale_calibration_text> texts;  // contents.prompts as the C side has them
};
