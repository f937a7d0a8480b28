// Forward pass of Llama, Qwen2, Qwen3 and Mistral models with the attention left to the caller.
//
//   x  ─ RMSNorm ─ QKV ─ RoPE ─▶ q, cache(k, v) ─▶ Attention::run ─▶ a          per layer:
//   x += a O        x += (swish(n G) * n U) D,  n = RMSNorm(x)                  three phases
//
// The first and third phase walk row tiles, one tile a thread at a time, so that a tile's activations stay in cache and
// memory is what x (f32), q and a (bf16) need: (4 hidden + 4 heads x head_dim) bytes a token, beside the KV cache.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "lm/attention.hpp"
#include "lm/buffer.hpp"
#include "lm/config.hpp"
#include "lm/linear.hpp"

namespace sale::lm {

// Keys (after RoPE) and values of every layer, bf16, [kv_head][capacity][head_dim]. Memory is touched as it fills.
class KVCache {
public:
  KVCache(const Config& config, int64_t capacity);
  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  uint16_t* keys(int64_t layer) { return layers_[at(2 * layer)].data(); }
  uint16_t* values(int64_t layer) { return layers_[at(2 * layer + 1)].data(); }
  // Forgets the tokens from n on. Tell the attention too where it remembers keys: Attention::truncate.
  void truncate(int64_t n);

private:
  friend class Model;
  int64_t capacity_ = 0, length_ = 0;
  std::vector<Buffer<uint16_t>> layers_;
};

enum class Logits {
  none,
  last,     // of the last token
  all,      // of every token: [tokens][vocab]
  targets,  // log-probability of a given next token for every token, without keeping the logits
};

struct ForwardOptions {
  Logits logits = Logits::last;
  std::span<const int32_t> targets = {};  // with Logits::targets: one per token; -1 for none (its result is 0)
  int64_t chunk = 0;                      // tokens an attention call may hold; 0: all
  bool decode = false;                    // handed to the attention
  std::function<void(int64_t done, int64_t total)> progress = {};  // after each layer of each chunk
};

struct ForwardResult {
  std::vector<float> logits;     // [vocab] or [tokens][vocab]
  std::vector<float> log_probs;  // [tokens] with Logits::targets
  double seconds = 0, attention_seconds = 0;
};

class Model {
public:
  // A folder with config.json and safetensors, or a GGUF file, whose weights are dequantised.
  static Model load(const std::filesystem::path& path, int threads, Compute compute = Compute::automatic);
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const Config& config() const;
  Compute compute() const;
  int threads() const;

  // Runs the tokens at positions cache.length() on and appends them to the cache. On an exception the cache is as
  // before. One call at a time.
  ForwardResult forward(std::span<const int32_t> tokens, KVCache& cache, Attention& attention,
                        const ForwardOptions& options = {});

private:
  struct State;
  explicit Model(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct GenerateOptions {
  int64_t max_tokens = 64;
  int64_t chunk = 0;                              // of the prompt
  std::vector<int32_t> stop = {};                 // ids that end the text; empty: the model's end-of-text ids
  std::function<bool(int32_t id)> on_token = {};  // false: stop here
  std::function<void(int64_t done, int64_t total)> progress = {};
};
struct Generated {
  std::vector<int32_t> ids;  // without the stop id
  ForwardResult prompt;      // timings of the prompt, and its last logits
  double decode_seconds = 0;
};
// Appends the prompt to the cache and continues with the most likely token each time.
Generated generate_greedy(Model& model, std::span<const int32_t> prompt, KVCache& cache, Attention& attention,
                          const GenerateOptions& options = {});

}  // namespace sale::lm
