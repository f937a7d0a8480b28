// Rotary position embedding: frequencies of each scaling type, and tables of cosines and sines.
#pragma once

#include <cstdint>
#include <vector>

#include "lm/buffer.hpp"
#include "lm/config.hpp"

namespace sale::lm {

struct Rope {
  std::vector<float> inverse_frequencies;  // [head_dim / 2]
  float attention_factor = 1.0f;           // multiplies cosines and sines (yarn)
};
Rope make_rope(const RopeConfig& config, int head_dim);

// Cosines and sines of positions [first, first + count), each [count][head_dim / 2], times the attention factor.
struct RopeTable {
  Buffer<float> cosines, sines;
};
RopeTable rope_table(const Rope& rope, int64_t first, int64_t count, int threads);

// Turns one head of one token: the pair (x[i], x[i + half]) by angle i, as transformers does. bf16 out.
void rotate_head(const float* x, const float* cosines, const float* sines, int64_t half, uint16_t* out);

}  // namespace sale::lm
