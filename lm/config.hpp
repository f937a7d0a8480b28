// config.json of the Llama, Qwen2, Qwen3 and Mistral families, or the same from a GGUF file's fields.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace sale::lm {

enum class RopeType { plain, linear, llama3, yarn };

struct RopeConfig {
  RopeType type = RopeType::plain;
  double theta = 10000.0;
  double factor = 1.0;                                   // linear, llama3, yarn
  int64_t original_positions = 0;                        // llama3, yarn
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  std::optional<double> attention_factor;                // yarn
  double mscale = 0.0, mscale_all_dim = 0.0;             // yarn; 0: not given
  bool truncate = true;                                  // yarn
  std::vector<float> divisors;                           // [head_dim / 2] of each frequency; empty: 1 (GGUF files)
};

struct Config {
  std::string model_type;  // "llama", "qwen2", "qwen3" or "mistral"
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, layers = 0;
  int q_heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_positions = 0;  // with yarn what it stretches to, where that is more than max_position_embeddings
  double rms_norm_eps = 0;
  bool tied_embeddings = false;  // unless the weights have a head of their own
  bool qkv_bias = false, out_bias = false;
  bool qk_norm = false;  // RMSNorm over each head of q and k before RoPE
  std::optional<int32_t> bos;
  std::vector<int32_t> eos;
  RopeConfig rope;
};

// The file, or the config.json of a folder, or a GGUF file. Numbers are range-checked; what is not supported is refused
// by name. Fields mean what they mean to transformers, its defaults included.
Config read_config(const std::filesystem::path& path);

}  // namespace sale::lm
