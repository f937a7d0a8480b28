// A GGUF file as a model: its fields in the forms of config.json and tokenizer.json, its tensors by Hugging Face's
// names.
#pragma once

#include "lm/config.hpp"
#include "lm/gguf.hpp"
#include "lm/weights.hpp"

namespace sale::lm {

// config.json's contents, checked; `where` names the source in messages.
Config parse_config(const Json& json, const std::string& where);

// Architectures llama, qwen2 and qwen3. A field or tensor that these do not have is refused by name.
Config config_of(const Gguf& file);

// tokenizer.json's contents. Models "gpt2" (byte-level BPE, with the pre-tokenizers known by name) and "llama"
// (SentencePiece BPE).
Json tokenizer_of(const Json& metadata, const std::string& where);

class GgufWeights final : public Weights {
public:
  GgufWeights(Gguf file, const Config& config);
  bool contains(std::string_view name) const override;
  std::vector<float> floats(std::string_view name, const std::vector<int64_t>& shape) const override;

private:
  Gguf file_;
  bool paired_;  // rows of q and k lie in pairs (i, i + half), as llama's converter puts them
  int q_heads_, kv_heads_;
};

}  // namespace sale::lm
