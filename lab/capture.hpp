// The attention of a whole model as one problem: queries, keys and values of every layer of a prompt, side by side as
// heads. What kernels are judged on, since random tensors have no structure to be sparse in.
#pragma once

#include <cstdint>
#include <vector>

#include "lab/adapter.hpp"
#include "lab/model_files.hpp"

namespace sale::lab {

struct CapturedAttention {
  int32_t q_heads = 0, kv_heads = 0, head_dim = 0;  // layers times the model's
  int64_t tokens = 0;
  float scale = 0;
  std::vector<uint16_t> q, k, v;  // bf16 [heads, tokens, head_dim], layer by layer
};

// Runs the prompt with dense attention by the settings' backend.
CapturedAttention capture(LoadedModel& model, const std::vector<int32_t>& prompt, AttentionSettings settings,
                          bool quiet);

// One problem's options out of all layers': thresholds and projections side by side.
Options captured_options(const AttentionSettings& settings);

}  // namespace sale::lab
