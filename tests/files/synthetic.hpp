// Attention that is the same numbers in every language: what a test in C++ calibrates on,
// python/tests/test_calibrator.py does too. Keys of 64 neighbours share one of eight topics, and so do the queries
// beside them.
#pragma once

#include <cstdint>
#include <vector>

namespace synthetic {

constexpr int32_t layers = 2, q_heads = 4, kv_heads = 2, head_dim = 32;

inline uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// In [-1, 1), a multiple of 2^-15.
inline float noise(uint32_t seed, uint32_t i) {
  return static_cast<float>(static_cast<int32_t>(mixed(mixed(seed) + i) >> 16) - 32768) / 32768.0f;
}

inline float topic(uint32_t seed, uint32_t token, uint32_t coordinate) {
  return (mixed(seed * 77 + token / 64 % 8 * 1009 + coordinate) & 1) != 0 ? 1.0f : -1.0f;
}

// [heads, tokens, head_dim] of one tensor, 0: q, 1: k, 2: v.
inline std::vector<float> tensor(uint32_t prompt, uint32_t layer, uint32_t which, int64_t tokens) {
  const uint32_t heads = which == 0 ? q_heads : kv_heads, group = which == 0 ? q_heads / kv_heads : 1;
  const uint32_t seed = (prompt * 64 + layer) * 4 + which;
  std::vector<float> x;
  for (uint32_t h = 0; h < heads; ++h)
    for (uint32_t t = 0; t < static_cast<uint32_t>(tokens); ++t)
      for (uint32_t c = 0; c < head_dim; ++c) {
        const uint32_t i = (h * static_cast<uint32_t>(tokens) + t) * head_dim + c;
        // Heads differ in how much they care for the topic.
        const float care = which == 2 ? 0 : static_cast<float>(h / group + layer + 1) * 0.5f;
        x.push_back(noise(seed, i) + care * topic(h / group, t, c));
      }
  return x;
}

}  // namespace synthetic
