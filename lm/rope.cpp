#include "lm/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "lm/bf16.hpp"
#include "lm/workers.hpp"

namespace sale::lm {
namespace {

// Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between interpolated.
void scale_llama3(const RopeConfig& config, std::vector<float>& inverse) {
  const auto original = static_cast<double>(config.original_positions);
  for (float& f : inverse) {
    const double wavelength = 2.0 * std::numbers::pi / f;
    if (wavelength < original / config.high_freq_factor) continue;
    double keep = 0.0;
    if (wavelength <= original / config.low_freq_factor)
      keep = (original / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
    f = static_cast<float>((1.0 - keep) * f / config.factor + keep * f);
  }
}

// Index of the frequency that turns `rotations` times within the original context.
double yarn_index(double rotations, double dim, const RopeConfig& config) {
  const auto original = static_cast<double>(config.original_positions);
  return dim * std::log(original / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(config.theta));
}

double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

float yarn_attention_factor(const RopeConfig& config) {
  if (config.attention_factor) return static_cast<float>(*config.attention_factor);
  if (config.mscale != 0.0 && config.mscale_all_dim != 0.0)
    return static_cast<float>(yarn_mscale(config.factor, config.mscale) /
                              yarn_mscale(config.factor, config.mscale_all_dim));
  return static_cast<float>(yarn_mscale(config.factor, 1.0));
}

// YaRN: a ramp over the index, from kept (fast) to divided by the factor (slow).
void scale_yarn(const RopeConfig& config, int head_dim, std::vector<float>& inverse) {
  double low = yarn_index(config.beta_fast, head_dim, config), high = yarn_index(config.beta_slow, head_dim, config);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inverse[i] = static_cast<float>(inverse[i] / config.factor * ramp + inverse[i] * (1.0 - ramp));
  }
}

}  // namespace

Rope make_rope(const RopeConfig& config, int head_dim) {
  Rope rope;
  for (int i = 0; i < head_dim; i += 2)  // in float, as the models were trained
    rope.inverse_frequencies.push_back(
        1.0f / std::pow(static_cast<float>(config.theta), static_cast<float>(i) / static_cast<float>(head_dim)));
  for (size_t i = 0; i < config.divisors.size(); ++i) rope.inverse_frequencies[i] /= config.divisors[i];
  switch (config.type) {
    case RopeType::plain: break;
    case RopeType::linear:
      for (float& f : rope.inverse_frequencies) f = static_cast<float>(f / config.factor);
      break;
    case RopeType::llama3: scale_llama3(config, rope.inverse_frequencies); break;
    case RopeType::yarn:
      scale_yarn(config, head_dim, rope.inverse_frequencies);
      rope.attention_factor = yarn_attention_factor(config);
      break;
  }
  return rope;
}

RopeTable rope_table(const Rope& rope, int64_t first, int64_t count, int threads) {
  const int64_t half = ssize_of(rope.inverse_frequencies), tile = 1024;
  RopeTable table{Buffer<float>(checked_mul(count, half, "rope table")),
                  Buffer<float>(checked_mul(count, half, "rope table"))};
  for_each_index(threads, (count + tile - 1) / tile, [&](int64_t index, int) {
    for (int64_t row = index * tile; row < std::min(count, (index + 1) * tile); ++row)
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(first + row) * rope.inverse_frequencies[at(i)];
        table.cosines.data()[row * half + i] = std::cos(angle) * rope.attention_factor;
        table.sines.data()[row * half + i] = std::sin(angle) * rope.attention_factor;
      }
  });
  return table;
}

void rotate_head(const float* x, const float* cosines, const float* sines, int64_t half, uint16_t* out) {
  for (int64_t i = 0; i < half; ++i) out[i] = to_bf16(x[i] * cosines[i] - x[i + half] * sines[i]);
  for (int64_t i = 0; i < half; ++i) out[i + half] = to_bf16(x[i + half] * cosines[i] + x[i] * sines[i]);
}

}  // namespace sale::lm
