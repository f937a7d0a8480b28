// Prompts of the host shown to the library's calibrator: SALE_GGML_CALIBRATE names the file to be made. Every prompt
// whose rows come in one piece (as large as the host's -ub) counts; the calibrator's progress is kept beside the file,
// so that prompts may come from several runs of the program.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "report.hpp"
#include "sale/calibrator.hpp"
#include "settings.hpp"

namespace sale::ggml {

// Attention of one layer over a whole prompt.
struct Shown {
  int32_t layer = 0, layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  uint64_t fingerprint = 0;
  sale_dtype type = SALE_F16;
  int64_t tokens = 0;
  float scale = 0;
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  sale_strides q_strides{}, k_strides{}, v_strides{};
};

// Shared by all contexts; of two at once only one is watched.
class Calibrating {
public:
  // Whether prompts of so many tokens are still wanted. While they are, they run dense.
  bool wants(const Settings& settings, int64_t tokens);
  void saw(const Settings& settings, Report& report, const void* context, const Shown& shown);

private:
  void finish(const Settings& settings, Report& report);
  std::mutex mutex_;
  std::unique_ptr<Calibrator> calibrator_;
  const void* context_ = nullptr;  // whose prompt was begun
  int64_t tokens_ = 0;
  int32_t seen_ = 0;  // layers of it
  bool over_ = false;
};

}  // namespace sale::ggml
