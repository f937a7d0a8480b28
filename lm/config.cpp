#include "lm/config.hpp"

#include <algorithm>
#include <cmath>

#include "lm/gguf_model.hpp"
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

// transformers writes "rope_parameters" since version 5, "rope_scaling" beside a top-level "rope_theta" before. Where a
// file has both, rope_scaling takes the other's place, whole, if there is anything in it.
RopeConfig read_rope(const Fields& top, int64_t max_positions) {
  RopeConfig rope;
  rope.theta = top.number_or("rope_theta", 1.0001, 1e15, 10000.0);
  refuse_if(top.number_or("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0, top, "partial_rotary_factor other than 1");
  const Json* scaling = top.find("rope_scaling");
  const std::string_view name = scaling && !scaling->empty() ? "rope_scaling" : "rope_parameters";
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
  const std::string_view original = "original_max_position_embeddings";  // at the top it counts more
  rope.original_positions =
      top.integer_or(original, 1, kMaxPositions, from.integer_or(original, 1, kMaxPositions, max_positions));
  if (rope.type == RopeType::yarn) {
    read_yarn(from, rope);
    return rope;
  }
  rope.low_freq_factor = from.number("low_freq_factor", 1e-3, 1e6);
  rope.high_freq_factor = from.number("high_freq_factor", 1e-3, 1e6);
  if (rope.high_freq_factor <= rope.low_freq_factor)
    fail(from.where(), ": high_freq_factor is ", rope.high_freq_factor, "; more than low_freq_factor (",
         rope.low_freq_factor, ") is allowed");
  return rope;
}

void read_heads(const Fields& top, Config& config) {
  config.q_heads = static_cast<int>(top.integer("num_attention_heads", 1, 1024));
  const int absent = config.model_type == "mistral" ? 8 : config.model_type == "llama" ? config.q_heads : 32;
  config.kv_heads = top.has("num_key_value_heads") || absent == config.q_heads
                        ? static_cast<int>(top.integer_or("num_key_value_heads", 1, config.q_heads, config.q_heads))
                        : absent;
  if (config.q_heads % config.kv_heads != 0)
    fail(top.where(), ": num_key_value_heads is ", config.kv_heads, "; a divisor of num_attention_heads (",
         config.q_heads, ") is allowed");
  const bool fixed = config.model_type == "qwen3" && !top.has("head_dim");
  if (!fixed && !top.find("head_dim") && config.hidden_size % config.q_heads != 0)
    fail(top.where(), ": hidden_size is ", config.hidden_size,
         "; without head_dim, a multiple of num_attention_heads (", config.q_heads, ") is allowed");
  config.head_dim =
      static_cast<int>(top.integer_or("head_dim", 2, 1024, fixed ? 128 : config.hidden_size / config.q_heads));
  if (config.head_dim % 2 != 0 || config.head_dim < 2 || config.head_dim > 1024)
    fail(top.where(), ": head_dim is ", config.head_dim, "; an even number from 2 to 1024 is allowed");
}

void read_special(const Fields& top, Config& config) {
  const auto id_of = [&](const Json& id, const char* name) {
    return static_cast<int32_t>(as_integer(id, top.where() + ": " + name, 0, config.vocab_size - 1));
  };
  if (const Json* bos = top.find("bos_token_id")) config.bos = id_of(*bos, "bos_token_id");
  const auto add_eos = [&](const Json& json) {
    const int32_t id = id_of(json, "eos_token_id");
    if (std::find(config.eos.begin(), config.eos.end(), id) == config.eos.end()) config.eos.push_back(id);
  };
  const Json* eos = top.find("eos_token_id");
  if (!eos) return;
  if (!eos->is_array()) return add_eos(*eos);
  if (eos->size() > 64) fail(top.where(), ": eos_token_id has ", eos->size(), " ids; at most 64 are allowed");
  for (const Json& id : *eos) add_eos(id);
}

void refuse_unsupported(const Fields& top) {
  refuse_if(top.find("quantization_config") != nullptr, top, "a quantised model (quantization_config)");
  refuse_if(top.boolean_or("mlp_bias", false), top, "mlp_bias");
  const std::string act = top.text_or("hidden_act", "silu");
  if (act != "silu") fail(top.where(), ": hidden_act is ", in_quotes(act), "; silu is supported");
}

// A window as wide as the model's positions hides nothing; any other is refused.
void check_window(const Fields& top, const Config& config) {
  bool slides = config.model_type == "mistral";
  if (config.model_type != "mistral" && top.boolean_or("use_sliding_window", false))
    slides = top.find("layer_types") != nullptr || top.integer_or("max_window_layers", 0, 1 << 20, 28) < config.layers;
  bool full = true;  // what layer_types says, which is not Mistral's to say
  if (top.find("layer_types") && config.model_type != "mistral")
    for (const Json& type : top.array("layer_types")) {
      const std::string name = type.is_string() ? type.get<std::string>() : "";
      if (name != "full_attention" && name != "sliding_attention")
        fail(top.where(), ": layer_types holds ", in_quotes(type.dump()), "; full_attention is supported");
      full = full && name == "full_attention";
    }
  if (top.find("layer_types") && slides && full && config.model_type != "mistral") return;
  if (!full) slides = true;
  if (!slides || (top.has("sliding_window") && !top.find("sliding_window"))) return;
  const int64_t window = top.integer_or("sliding_window", 1, INT64_MAX, 4096);
  if (window < config.max_positions)
    fail(top.where(), ": sliding_window is ", window, full ? "" : " with sliding_attention in layer_types",
         "; sliding windows narrower than the model's ", config.max_positions, " positions are not supported");
}

}  // namespace

Config parse_config(const Json& json, const std::string& where) {
  const Fields top(json, where);
  Config config;
  config.model_type = top.text("model_type");
  const bool qwen3 = config.model_type == "qwen3", llama = config.model_type == "llama";
  if (!llama && !qwen3 && config.model_type != "qwen2" && config.model_type != "mistral")
    fail(top.where(), ": model_type is ", in_quotes(config.model_type),
         "; llama, qwen2, qwen3 and mistral are supported");
  refuse_unsupported(top);
  config.vocab_size = top.integer("vocab_size", 1, 1 << 22);
  config.hidden_size = top.integer("hidden_size", 1, 1 << 17);
  config.intermediate_size = top.integer("intermediate_size", 1, 1 << 20);
  config.layers = top.integer("num_hidden_layers", 1, 1024);
  config.max_positions = top.integer("max_position_embeddings", 1, kMaxPositions);
  config.rms_norm_eps = top.number("rms_norm_eps", 1e-12, 0.1);
  const bool bias = (llama || qwen3) && top.boolean_or("attention_bias", false);
  config.qkv_bias = config.model_type == "qwen2" || bias;
  config.out_bias = bias;
  config.qk_norm = qwen3;
  config.tied_embeddings = top.boolean_or("tie_word_embeddings", false);
  read_heads(top, config);
  read_special(top, config);
  config.rope = read_rope(top, config.max_positions);
  if (config.rope.type == RopeType::yarn) {
    const double stretched = std::round(config.rope.factor * static_cast<double>(config.rope.original_positions));
    config.max_positions =
        std::max(config.max_positions, static_cast<int64_t>(std::min(stretched, static_cast<double>(kMaxPositions))));
  }
  check_window(top, config);
  return config;
}

Config read_config(const std::filesystem::path& path) {
  if (is_gguf(path)) return config_of(Gguf::open(path));
  const bool folder = std::filesystem::is_directory(path);
  const auto file = folder ? path / "config.json" : path, beside = path / "generation_config.json";
  Config config = parse_config(read_json(file, kMaxFile), file.string());
  // Chat models often end their answers with a token that only this file names.
  if (folder && std::filesystem::exists(beside)) {
    const Json json = read_json(beside, kMaxFile);
    read_special(Fields(json, beside.string()), config);
  }
  return config;
}

}  // namespace sale::lm
