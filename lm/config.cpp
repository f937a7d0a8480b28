#include "lm/config.hpp"

#include "lm/json.hpp"

namespace sale::lm {
namespace {

constexpr int64_t kMaxFile = 1'000'000;
constexpr int64_t kMaxPositions = int64_t{1} << 26;

void refuse_if(bool present, const Fields& fields, std::string_view what) {
  if (present) fail(fields.where(), ": ", what, " is not supported");
}

void read_yarn(const Fields& from, RopeConfig& rope) {
  rope.beta_fast = from.number_or("beta_fast", 1e-3, 1e6, 32.0);
  rope.beta_slow = from.number_or("beta_slow", 1e-3, 1e6, 1.0);
  if (from.find("attention_factor")) rope.attention_factor = from.number("attention_factor", 1e-3, 1e3);
  rope.mscale = from.number_or("mscale", 0.0, 1e3, 0.0);
  rope.mscale_all_dim = from.number_or("mscale_all_dim", 0.0, 1e3, 0.0);
  rope.truncate = from.boolean_or("truncate", true);
}

// transformers writes "rope_parameters" since version 5, "rope_scaling" beside a top-level "rope_theta" before.
RopeConfig read_rope(const Fields& top, int64_t max_positions) {
  RopeConfig rope;
  rope.theta = top.number_or("rope_theta", 1.0001, 1e15, 10000.0);
  const std::string_view name = top.find("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.find(name)) return rope;
  const Fields from = top.object(name);
  rope.theta = from.number_or("rope_theta", 1.0001, 1e15, rope.theta);
  refuse_if(from.number_or("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0, from, "partial_rotary_factor other than 1");
  const std::string type = from.text_or("rope_type", from.text_or("type", "default"));
  if (type == "default") return rope;
  if (type == "linear")
    rope.type = RopeType::linear;
  else if (type == "llama3")
    rope.type = RopeType::llama3;
  else if (type == "yarn")
    rope.type = RopeType::yarn;
  else
    fail(from.where(), ": rope_type is ", in_quotes(type), "; default, linear, llama3 and yarn are supported");
  rope.factor = from.number("factor", 1.0, 1e6);
  if (rope.type == RopeType::linear) return rope;
  const std::string_view original = "original_max_position_embeddings";
  if (rope.type == RopeType::yarn) {
    rope.original_positions =
        from.integer_or(original, 1, kMaxPositions, top.integer_or(original, 1, kMaxPositions, max_positions));
    read_yarn(from, rope);
    return rope;
  }
  rope.original_positions = from.integer(original, 1, kMaxPositions);
  rope.low_freq_factor = from.number("low_freq_factor", 1e-3, 1e6);
  rope.high_freq_factor = from.number("high_freq_factor", 1e-3, 1e6);
  if (rope.high_freq_factor <= rope.low_freq_factor)
    fail(from.where(), ": high_freq_factor is ", rope.high_freq_factor, "; more than low_freq_factor (",
         rope.low_freq_factor, ") is allowed");
  return rope;
}

void read_heads(const Fields& top, Config& config) {
  config.q_heads = static_cast<int>(top.integer("num_attention_heads", 1, 1024));
  config.kv_heads = static_cast<int>(top.integer_or("num_key_value_heads", 1, config.q_heads, config.q_heads));
  if (config.q_heads % config.kv_heads != 0)
    fail(top.where(), ": num_key_value_heads is ", config.kv_heads, "; a divisor of num_attention_heads (",
         config.q_heads, ") is allowed");
  if (!top.find("head_dim") && config.hidden_size % config.q_heads != 0)
    fail(top.where(), ": hidden_size is ", config.hidden_size,
         "; without head_dim, a multiple of num_attention_heads (", config.q_heads, ") is allowed");
  config.head_dim = static_cast<int>(top.integer_or("head_dim", 2, 1024, config.hidden_size / config.q_heads));
  if (config.head_dim % 2 != 0 || config.head_dim < 2 || config.head_dim > 1024)
    fail(top.where(), ": head_dim is ", config.head_dim, "; an even number from 2 to 1024 is allowed");
}

void read_special(const Fields& top, Config& config) {
  if (const Json* bos = top.find("bos_token_id"))
    config.bos = static_cast<int32_t>(as_integer(*bos, top.where() + ": bos_token_id", 0, config.vocab_size - 1));
  const auto add_eos = [&](const Json& id) {
    config.eos.push_back(
        static_cast<int32_t>(as_integer(id, top.where() + ": eos_token_id", 0, config.vocab_size - 1)));
  };
  const Json* eos = top.find("eos_token_id");
  if (!eos) return;
  if (!eos->is_array()) return add_eos(*eos);
  if (eos->size() > 64) fail(top.where(), ": eos_token_id has ", eos->size(), " ids; at most 64 are allowed");
  for (const Json& id : *eos) add_eos(id);
}

void refuse_unsupported(const Fields& top) {
  refuse_if(top.boolean_or("use_sliding_window", false), top, "sliding-window attention (use_sliding_window)");
  refuse_if(top.find("quantization_config") != nullptr, top, "a quantised model (quantization_config)");
  refuse_if(top.boolean_or("mlp_bias", false), top, "mlp_bias");
  const std::string act = top.text_or("hidden_act", "silu");
  if (act != "silu") fail(top.where(), ": hidden_act is ", in_quotes(act), "; silu is supported");
  if (!top.find("layer_types")) return;
  for (const Json& type : top.array("layer_types"))
    if (!type.is_string() || type.get_ref<const std::string&>() != "full_attention")
      fail(top.where(), ": layer_types holds ", in_quotes(type.dump()), "; full_attention is supported");
}

}  // namespace

Config read_config(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "config.json" : path;
  const Json json = read_json(file, kMaxFile);
  const Fields top(json, file.string());
  Config config;
  config.model_type = top.text("model_type");
  if (config.model_type != "llama" && config.model_type != "qwen2")
    fail(top.where(), ": model_type is ", in_quotes(config.model_type), "; llama and qwen2 are supported");
  refuse_unsupported(top);
  config.vocab_size = top.integer("vocab_size", 1, 1 << 22);
  config.hidden_size = top.integer("hidden_size", 1, 1 << 17);
  config.intermediate_size = top.integer("intermediate_size", 1, 1 << 20);
  config.layers = top.integer("num_hidden_layers", 1, 1024);
  config.max_positions = top.integer("max_position_embeddings", 1, kMaxPositions);
  config.rms_norm_eps = top.number("rms_norm_eps", 1e-12, 0.1);
  const bool llama_bias = config.model_type == "llama" && top.boolean_or("attention_bias", false);
  config.qkv_bias = config.model_type == "qwen2" || llama_bias;
  config.out_bias = llama_bias;
  config.tied_embeddings = top.boolean_or("tie_word_embeddings", false);
  read_heads(top, config);
  read_special(top, config);
  config.rope = read_rope(top, config.max_positions);
  return config;
}

}  // namespace sale::lm
