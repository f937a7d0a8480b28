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

// As transformers reads it: rope_scaling, where there is anything in it, takes the place of the other block, whole.
TEST(Config, TwoRopeBlocks) {
  Json j = config_json();
  j["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5e5}};
  j["rope_scaling"] = Json::object();
  EXPECT_EQ(read(j).rope.type, RopeType::linear);
  EXPECT_EQ(read(j).rope.theta, 5e5);
  j["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 2048}};
  EXPECT_EQ(read(j).rope.type, RopeType::yarn);
  EXPECT_EQ(read(j).rope.factor, 4.0);
  EXPECT_EQ(read(j).rope.theta, 1e6);  // the one at the top
  j.erase("rope_theta");
  EXPECT_EQ(read(j).rope.theta, 10000.0);
}

TEST(Config, YarnReachesFactorTimesTheOriginal) {
  Json j = config_json();
  j.erase("rope_parameters");
  j["max_position_embeddings"] = 512;
  j["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  EXPECT_EQ(read(j).max_positions, 2048);
  j["rope_scaling"].erase("original_max_position_embeddings");
  EXPECT_EQ(read(j).max_positions, 2048);
  j["max_position_embeddings"] = 4096;  // written out already
  j["rope_scaling"]["original_max_position_embeddings"] = 1024;
  EXPECT_EQ(read(j).max_positions, 4096);
  j["original_max_position_embeddings"] = 2048;  // at the top it counts more
  EXPECT_EQ(read(j).rope.original_positions, 2048);
  EXPECT_EQ(read(j).max_positions, 8192);
}

TEST(Config, Families) {
  Json j = config_json();
  j["model_type"] = "qwen3";
  j.erase("head_dim");
  Config c = read(j);
  EXPECT_EQ(c.head_dim, 128);  // whatever hidden_size / heads is
  EXPECT_TRUE(c.qk_norm);
  EXPECT_FALSE(c.qkv_bias);
  j["attention_bias"] = true;
  EXPECT_TRUE(read(j).qkv_bias && read(j).out_bias);
  j = config_json();
  j["model_type"] = "mistral";
  j["sliding_window"] = nullptr;
  c = read(j);
  EXPECT_FALSE(c.qk_norm || c.qkv_bias);
  EXPECT_EQ(c.head_dim, 128);
}

TEST(Config, SlidingWindows) {
  Json j = config_json();
  const auto refused = [&](const char* words) { expect_error([&] { read(j); }, {"sliding_window", words, "131072"}); };
  j["model_type"] = "mistral";
  refused("4096");  // what the family has where the file says nothing
  j["sliding_window"] = 131071;
  refused("131071");
  for (const Json& all : {Json(), Json(131072), Json(1 << 20)}) {
    j["sliding_window"] = all;
    EXPECT_EQ(read(j).max_positions, 131072);
  }
  for (const char* qwen : {"qwen2", "qwen3"}) {
    j = config_json();
    j["model_type"] = qwen;
    j["sliding_window"] = 1024;
    EXPECT_EQ(read(j).layers, 8);  // not in use
    j["use_sliding_window"] = true;
    EXPECT_EQ(read(j).layers, 8);  // from layer 28 on
    j["max_window_layers"] = 7;
    refused("1024");
    j["layer_types"] = Json::array({"full_attention", "sliding_attention"});
    refused("1024");
    j["layer_types"] = Json::array({"full_attention"});
    EXPECT_EQ(read(j).layers, 8);
    j["layer_types"] = Json::array({"full_attention", "sliding_attention"});
    j["sliding_window"] = 131072;
    EXPECT_EQ(read(j).layers, 8);
  }
}

TEST(Config, EndsOfGenerationConfig) {
  const Scratch scratch;
  scratch.write("config.json", config_json().dump());
  scratch.write("generation_config.json", R"({"eos_token_id": [1, 7], "bos_token_id": 0})");
  EXPECT_EQ(read_config(scratch.path()).eos, (std::vector<int32_t>{1, 7}));
  scratch.write("generation_config.json", R"({"eos_token_id": 4096})");
  expect_error([&] { read_config(scratch.path()); }, {"generation_config.json", "eos_token_id", "4095"});
}

TEST(Config, LfsPointers) {
  const Scratch scratch;
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n";
  expect_error([&] { read_config(scratch.write("config.json", pointer)); }, {"config.json", "Git LFS pointer"});
}

struct Wrong {
  const char* field;
  Json value;
  std::vector<std::string> words;
};

TEST(Config, EveryWrongFieldIsNamed) {
  const std::vector<Wrong> cases = {
      {"model_type", "gemma2", {"model_type", "gemma2", "llama, qwen2, qwen3 and mistral"}},
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
      {"layer_types", {"full_attention", "sliding_attention"}, {"layer_types", "sliding_attention"}},
      {"layer_types", {"full_attention", "linear_attention"}, {"layer_types", "linear_attention"}},
      {"partial_rotary_factor", 0.5, {"partial_rotary_factor"}},
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
