// What the user asked for, by environment variables and one JSON file; docs/llamacpp.md has the list. The environment
// wins over the file.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "sale/calibration.hpp"

namespace sale::ggml {

struct Settings {
  float tau = 0.004f;                 // where no calibration fits
  bool tau_over_calibration = false;  // tau was given: for every head, whatever the calibration says
  sale_format format = SALE_INT8;     // of the estimate, where no calibration fits
  sale_compute compute = SALE_COMPUTE_EXACT;
  std::optional<int64_t> dense_below;  // keys; else the calibration's, else the library's
  std::string backend;                 // of SALE; "" = the fastest usable
  int64_t min_rows = 32;               // shorter query blocks stay with ggml
  bool any_keys = false;               // also keys that are no KV cache (ggml's own test has none)
  std::string stats;                   // "", "stderr" or a file to append to
  int64_t audit = 0;                   // rows of each call computed again in double precision
  std::optional<Calibration> calibration;
  std::filesystem::path calibrations;  // a folder of FINGERPRINT.json
  std::filesystem::path calibrate;     // the file to be made from what runs; "": none, or it is there already
  double calibrate_budget = 0.05;
  int64_t calibrate_rank = 64, calibrate_prompts = 1;  // coordinates; prompts of each pass
};

// Throws std::runtime_error or sale::Error with one sentence.
Settings read_settings();

}  // namespace sale::ggml
