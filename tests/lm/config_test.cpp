#include "lm/config.hpp"

#include <nlohmann/json.hpp>

#include "support.hpp"

namespace sale::lm {
namespace {

using Json = nlohmann::json;

Json config_json() { return Json::parse(slurp(kModelDir / "config.json")); }

Config read(const Json& json) {
  const Scratch scratch;
  return read_config(scratch.write("config.json", json.dump()));
}

TEST(Config, BundledModel) {
  const Config c = read_config(kModelDir);
  EXPECT_EQ(c.model_type, "llama");
  EXPECT_EQ(c.vocab_size, 4096);
  EXPECT_EQ(c.hidden_size, 448);
  EXPECT_EQ(c.layers, 8);
  EXPECT_EQ(c.q_heads, 4);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.max_positions, 131072);
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.rope.type, RopeType::plain);
  EXPECT_TRUE(c.tied_embeddings);
  EXPECT_EQ(c.bos, 0);
  EXPECT_EQ(c.eos, std::vector<int32_t>{1});
}

TEST(Config, OlderSpellingsAndDefaults) {
  Json j = config_json();
  j.erase("rope_parameters");
  j.erase("head_dim");
  j.erase("num_key_value_heads");
  j["rope_theta"] = 500000.0;
  j["eos_token_id"] = {1, 2};
  j["rope_scaling"] = {{"type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const Config c = read(j);
  EXPECT_EQ(c.rope.theta, 500000.0);
  EXPECT_EQ(c.rope.type, RopeType::llama3);
  EXPECT_EQ(c.rope.original_positions, 8192);
  EXPECT_EQ(c.head_dim, 112);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.eos.size(), 2u);
  EXPECT_FALSE(c.qkv_bias);
}

TEST(Config, Qwen2HasBiases) {
  const Config c = read_config(kDataDir / "tiny_qwen2");
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.out_bias);
  EXPECT_FALSE(c.bos.has_value());
  EXPECT_EQ(c.rope.type, RopeType::yarn);
}

struct Wrong {
  const char* field;
  Json value;
  std::vector<std::string> words;
};

TEST(Config, EveryWrongFieldIsNamed) {
  const std::vector<Wrong> cases = {
      {"model_type", "gemma2", {"model_type", "gemma2", "llama and qwen2"}},
      {"model_type", 7, {"model_type", "string"}},
      {"vocab_size", 0, {"vocab_size", "'0'"}},
      {"vocab_size", -5, {"vocab_size", "-5"}},
      {"vocab_size", 4096.5, {"vocab_size", "whole number"}},
      {"vocab_size", 18446744073709551615u, {"vocab_size"}},
      {"hidden_size", "448", {"hidden_size"}},
      {"hidden_size", nullptr, {"hidden_size", "missing"}},
      {"num_hidden_layers", 1000000000, {"num_hidden_layers", "1 to 1024"}},
      {"num_attention_heads", 0, {"num_attention_heads"}},
      {"num_key_value_heads", 3, {"num_key_value_heads", "divisor"}},
      {"num_key_value_heads", 8, {"num_key_value_heads"}},
      {"head_dim", 127, {"head_dim", "even"}},
      {"head_dim", 1 << 20, {"head_dim"}},
      {"rms_norm_eps", -1e-5, {"rms_norm_eps"}},
      {"rms_norm_eps", "nan", {"rms_norm_eps"}},
      {"max_position_embeddings", int64_t{1} << 40, {"max_position_embeddings"}},
      {"eos_token_id", 4096, {"eos_token_id", "4095"}},
      {"bos_token_id", -1, {"bos_token_id"}},
      {"use_sliding_window", true, {"sliding"}},
      {"layer_types", {"full_attention", "sliding_attention"}, {"layer_types", "sliding_attention"}},
      {"quantization_config", Json::object(), {"quantization_config"}},
      {"hidden_act", "gelu", {"hidden_act", "gelu"}},
      {"mlp_bias", true, {"mlp_bias"}},
      {"tie_word_embeddings", 1, {"tie_word_embeddings", "true or false"}},
      {"rope_parameters", 3, {"rope_parameters"}},
      {"rope_parameters", {{"rope_type", "longrope"}}, {"rope_type", "longrope"}},
      {"rope_parameters", {{"rope_type", "linear"}, {"factor", 0.0}}, {"factor"}},
      {"rope_parameters", {{"rope_type", "yarn"}}, {"factor", "missing"}},
      {"rope_parameters", {{"rope_theta", -1.0}}, {"rope_theta"}},
      {"rope_parameters", {{"partial_rotary_factor", 0.5}}, {"partial_rotary_factor"}},
      {"rope_parameters",
       {{"rope_type", "llama3"},
        {"factor", 8},
        {"low_freq_factor", 4},
        {"high_freq_factor", 4},
        {"original_max_position_embeddings", 8192}},
       {"high_freq_factor"}},
  };
  for (const Wrong& wrong : cases) {
    Json j = config_json();
    j[wrong.field] = wrong.value;
    SCOPED_TRACE(std::string(wrong.field) + " = " + wrong.value.dump());
    expect_error([&] { read(j); }, wrong.words);
  }
}

TEST(Config, HostileJson) {
  const Scratch scratch;
  const auto read_text = [&](const std::string& text) { read_config(scratch.write("config.json", text)); };
  expect_error([&] { read_text(""); }, {"config.json", "not valid JSON"});
  expect_error([&] { read_text("[1]"); }, {"object"});
  expect_error([&] { read_text("{} {}"); }, {"not valid JSON"});
  expect_error([&] { read_text("{\"a\": 1, \"a\": 2}"); }, {"'a'", "twice"});
  expect_error([&] { read_text("{\"a\xff\": 1}"); }, {"not valid JSON"});
  expect_error([&] { read_text(std::string(100'000, '[')); }, {"nested"});
  expect_error([&] { read_text(std::string(2'000'000, ' ')); }, {"bytes", "at most"});
  expect_error([&] { read_config(scratch.path() / "absent"); }, {"absent", "no such file"});
}

}  // namespace
}  // namespace sale::lm
