// Config and weights of a GGUF file; its tokenizer is in gguf_tokenizer.cpp.
#include "lm/gguf_model.hpp"

#include <algorithm>
#include <charconv>
#include <optional>

namespace sale::lm {
namespace {

struct Name {
  std::string_view ours, theirs;
};
constexpr Name kTop[] = {{"model.embed_tokens.weight", "token_embd.weight"},
                         {"model.norm.weight", "output_norm.weight"},
                         {"lm_head.weight", "output.weight"}};
constexpr Name kInLayer[] = {{"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
                             {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
                             {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
                             {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
                             {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
                             {"mlp.down_proj", "ffn_down"}};
constexpr std::string_view kRopeDivisors = "rope_freqs.weight";
constexpr std::string_view kLayers = "model.layers.", kBlocks = "blk.";

// "blk.3.attn_q.weight" -> 3, "attn_q.weight".
std::optional<std::pair<int64_t, std::string_view>> in_block(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  int64_t index = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (error != std::errc() || index < 0 || end == name.data() + name.size() || *end != '.') return std::nullopt;
  return std::pair(index, name.substr(at(end - name.data() + 1)));
}

// Their name of one of ours; empty where there is none.
std::string their_name(std::string_view name) {
  for (const Name& pair : kTop)
    if (name == pair.ours) return std::string(pair.theirs);
  const auto part = in_block(name, kLayers);
  for (const Name& pair : kInLayer) {
    if (!part || !part->second.starts_with(pair.ours)) continue;
    const std::string_view kind = part->second.substr(pair.ours.size());
    if (kind == ".weight" || kind == ".bias")
      return std::string(kBlocks) + std::to_string(part->first) + "." + std::string(pair.theirs) + std::string(kind);
  }
  return "";
}

bool known_tensor(std::string_view name, const Config& config) {
  if (name == kRopeDivisors ||
      std::any_of(std::begin(kTop), std::end(kTop), [&](const Name& n) { return n.theirs == name; }))
    return true;
  const auto part = in_block(name, kBlocks);
  if (!part || part->first >= config.layers) return false;
  const std::string_view what = part->second.substr(0, part->second.rfind('.')),
                         kind = part->second.substr(std::min(what.size() + 1, part->second.size()));
  const bool qkv = what == "attn_q" || what == "attn_k" || what == "attn_v";
  if (kind == "bias") return (qkv && config.qkv_bias) || (what == "attn_output" && config.out_bias);
  if (what == "attn_q_norm" || what == "attn_k_norm") return kind == "weight" && config.qk_norm;
  return kind == "weight" &&
         std::any_of(std::begin(kInLayer), std::end(kInLayer), [&](const Name& n) { return n.theirs == what; });
}

constexpr std::string_view kFields[] = {"context_length",
                                        "embedding_length",
                                        "block_count",
                                        "feed_forward_length",
                                        "vocab_size",
                                        "attention.head_count",
                                        "attention.head_count_kv",
                                        "attention.key_length",
                                        "attention.value_length",
                                        "attention.layer_norm_rms_epsilon",
                                        "attention.sliding_window",
                                        "expert_count",
                                        "expert_used_count",
                                        "rope.dimension_count",
                                        "rope.freq_base",
                                        "rope.scaling.type",
                                        "rope.scaling.factor",
                                        "rope.scaling.original_context_length",
                                        "rope.scaling.finetuned"};

// Fields of the architecture, by their names within it.
class ArchFields {
public:
  ArchFields(const Fields& all, std::string arch) : all_(all), arch_(std::move(arch)) {}
  std::string name(std::string_view field) const { return arch_ + "." + std::string(field); }
  const Json* find(std::string_view field) const { return all_.find(name(field)); }
  int64_t integer(std::string_view field, int64_t least, int64_t most) const {
    return all_.integer(name(field), least, most);
  }
  int64_t integer_or(std::string_view field, int64_t least, int64_t most, int64_t otherwise) const {
    return all_.integer_or(name(field), least, most, otherwise);
  }
  void must_be(std::string_view field, int64_t value) const {
    if (find(field)) integer(field, value, value);
  }
  const Fields& all() const { return all_; }

private:
  const Fields& all_;
  std::string arch_;
};

Json rope_of(const ArchFields& arch) {
  const double theta = arch.all().number_or(arch.name("rope.freq_base"), 1.0001, 1e15, 10000.0);
  const std::string type = arch.all().text_or(arch.name("rope.scaling.type"), "none");
  Json rope = {{"rope_type", "default"}, {"rope_theta", theta}};
  if (type == "none") return rope;
  if (type != "linear" && type != "yarn")
    fail(arch.all().where(), ": ", arch.name("rope.scaling.type"), " is ", in_quotes(type),
         "; none, linear and yarn are supported");
  rope["rope_type"] = type;
  rope["factor"] = arch.all().number(arch.name("rope.scaling.factor"), 1.0, 1e6);
  if (type == "yarn")
    rope["original_max_position_embeddings"] = arch.integer("rope.scaling.original_context_length", 1, 1 << 26);
  return rope;
}

// Ends of an answer that chat models have beside the end of the text.
Json ends_of(const Fields& all) {
  Json ends = Json::array();
  for (const char* field :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    if (const Json* id = all.find(field); id != nullptr) ends.push_back(*id);
  if (!all.find("tokenizer.ggml.tokens")) return ends;
  const Json& tokens = all.array("tokenizer.ggml.tokens");
  for (size_t i = 0; i < tokens.size(); ++i)
    for (const char* end : {"<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"})
      if (tokens[i] == end && ends.size() < 60) ends.push_back(i);
  return ends;
}

}  // namespace

Config config_of(const Gguf& file) {
  const Fields all(file.metadata(), file.where());
  const std::string arch = all.text("general.architecture");
  if (arch != "llama" && arch != "qwen2" && arch != "qwen3")
    fail(file.where(), ": general.architecture is ", in_quotes(arch), "; llama, qwen2 and qwen3 are supported");
  const ArchFields from(all, arch);
  for (const auto& [key, value] : file.metadata().items()) {
    if (!key.starts_with(arch + ".")) continue;
    const std::string_view field = std::string_view(key).substr(arch.size() + 1);
    if (std::find(std::begin(kFields), std::end(kFields), field) == std::end(kFields))
      fail(file.where(), ": the field ", in_quotes(key), " is not known, so it may not be ignored");
  }
  from.must_be("expert_count", 0);
  from.must_be("expert_used_count", 0);
  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end() || embedding->second.shape.size() != 2)
    fail(file.where(), ": there is no tensor 'token_embd.weight' of two dimensions");
  const int64_t hidden = from.integer("embedding_length", 1, 1 << 17),
                heads = from.integer("attention.head_count", 1, 1024);
  Json json = {{"model_type", arch},
               {"vocab_size", embedding->second.shape[0]},
               {"hidden_size", hidden},
               {"intermediate_size", from.integer("feed_forward_length", 1, 1 << 20)},
               {"num_hidden_layers", from.integer("block_count", 1, 1024)},
               {"num_attention_heads", heads},
               {"num_key_value_heads", from.integer_or("attention.head_count_kv", 1, heads, heads)},
               {"max_position_embeddings", from.integer("context_length", 1, 1 << 26)},
               {"rms_norm_eps", all.number(from.name("attention.layer_norm_rms_epsilon"), 1e-12, 0.1)},
               {"rope_parameters", rope_of(from)},
               {"attention_bias", file.contains("blk.0.attn_q.bias")},
               {"tie_word_embeddings", !file.contains("output.weight")},
               {"eos_token_id", ends_of(all)}};
  if (const Json* bos = all.find("tokenizer.ggml.bos_token_id")) json["bos_token_id"] = *bos;
  json["head_dim"] = from.integer_or("attention.key_length", 2, 1024, hidden / heads);
  Config config = parse_config(json, file.where());
  from.must_be("attention.value_length", config.head_dim);
  from.must_be("rope.dimension_count", config.head_dim);
  if (from.find("attention.sliding_window")) from.integer("attention.sliding_window", config.max_positions, INT64_MAX);
  if (file.contains(kRopeDivisors)) {
    if (config.rope.type != RopeType::plain)
      fail(file.where(), ": ", kRopeDivisors, " beside ", from.name("rope.scaling.type"), " is not supported");
    config.rope.divisors = file.floats(kRopeDivisors, {config.head_dim / 2});
    for (const float f : config.rope.divisors)
      if (!(f >= 1e-6f && f <= 1e6f)) fail(file.where(), ": ", kRopeDivisors, " holds ", f, "; 1e-6 to 1e6 is allowed");
  }
  for (const auto& [name, tensor] : file.tensors())
    if (!known_tensor(name, config))
      fail(file.where(), ": tensor ", in_quotes(name), " is not part of a ", arch, " model of ", config.layers,
           " layers");
  return config;
}

GgufWeights::GgufWeights(Gguf file, const Config& config)
    : file_(std::move(file)),
      paired_(config.model_type == "llama"),
      q_heads_(config.q_heads),
      kv_heads_(config.kv_heads) {}

bool GgufWeights::contains(std::string_view name) const { return file_.contains(their_name(name)); }

std::vector<float> GgufWeights::floats(std::string_view name, const std::vector<int64_t>& shape) const {
  std::vector<float> values = file_.floats(their_name(name), shape);
  const bool q = name.find("self_attn.q_proj.") != std::string_view::npos,
             k = name.find("self_attn.k_proj.") != std::string_view::npos;
  if (!paired_ || (!q && !k)) return values;
  // Row 2i + s of a head is row i + s half of Hugging Face's.
  const int64_t rows = shape[0] / (q ? q_heads_ : kv_heads_), width = ssize_of(values) / shape[0];
  std::vector<float> out(values.size());
  for (int64_t row = 0; row < shape[0]; ++row) {
    const int64_t in_head = row % rows, to = row - in_head + in_head / 2 + in_head % 2 * (rows / 2);
    std::copy_n(values.begin() + row * width, width, out.begin() + to * width);
  }
  return out;
}

}  // namespace sale::lm
