// GGUF files: values against PyPI's gguf, the tokenizer in them, and hostile files.
#include "lm/gguf.hpp"

#include <bit>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "lm/gguf_model.hpp"
#include "lm/tokenizer.hpp"
#include "texts.hpp"

namespace sale::lm {
namespace {

TEST(Gguf, EveryTypeIsWhatTheGgufPackageMakesOfIt) {
  const Json expected = Json::parse(slurp(kDataDir / "quantized.json"));
  const Gguf file = Gguf::open(kDataDir / "quantized.gguf");
  ASSERT_EQ(file.tensors().size(), 15u);
  for (const auto& [name, tensor] : file.tensors()) {
    EXPECT_EQ(tensor.type->name, name);
    Fnv hash;
    for (const float value : file.floats(name, {2, 512})) hash.add(std::bit_cast<int32_t>(value));
    EXPECT_EQ(hash.text(), expected.at(name).get<std::string>()) << name;
  }
}

TEST(Gguf, TokenizerOfSentencePieceFields) {
  const Tokenizer tokenizer = Tokenizer::load(kDataDir / "tiny_llama.gguf");
  for (const auto& row : Json::parse(slurp(kDataDir / "tiny_llama.json"))) {
    const auto text = row.at("text").get<std::string>();
    EXPECT_EQ(tokenizer.encode(text), row.at("ids").get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(tokenizer.stripped(tokenizer.decode(tokenizer.encode(text, false))),
              row.at("decoded").get<std::string>());
  }
}

// ---- files made here ----

void put(std::string& to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> (8 * i));
}
void put(std::string& to, std::string_view text) {
  put(to, text.size(), 8);
  to += text;
}

struct Made {
  uint32_t version = 3;
  std::string keys, tensors, data;
  uint64_t key_count = 0, tensor_count = 0;

  void text(std::string_view key, std::string_view value) {
    put(keys, key), put(keys, 8, 4), put(keys, value);
    ++key_count;
  }
  void number(std::string_view key, uint64_t value, uint32_t type = 4, int bytes = 4) {
    put(keys, key), put(keys, type, 4), put(keys, value, bytes);
    ++key_count;
  }
  void tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type, uint64_t offset) {
    put(tensors, name), put(tensors, dimensions.size(), 4);
    for (const uint64_t n : dimensions) put(tensors, n, 8);
    put(tensors, type, 4), put(tensors, offset, 8);
    ++tensor_count;
  }
  std::string bytes() const {
    std::string out = "GGUF";
    put(out, version, 4), put(out, tensor_count, 8), put(out, key_count, 8);
    out += keys + tensors;
    out.resize((out.size() + 31) / 32 * 32);
    return out + data;
  }
};

TEST(Gguf, HostileFiles) {
  const std::string floats(64, '\0');
  const auto one = [&](const std::vector<uint64_t>& dimensions, uint32_t type, uint64_t offset) {
    Made m;
    m.data = floats;
    m.tensor("t", dimensions, type, offset);
    return m.bytes();
  };
  const auto keyed = [](const std::function<void(Made&)>& add) {
    Made m;
    add(m);
    return m.bytes();
  };
  const uint64_t huge = UINT64_MAX;
  struct Case {
    std::string bytes;
    std::vector<std::string> words;
  };
  std::string counted = "GGUF";
  put(counted, 3, 4), put(counted, huge, 8), put(counted, 0, 8);
  const std::vector<Case> cases = {
      {"GGU", {"GGUF"}},
      {"GGUF", {"cut short", "version"}},
      {keyed([](Made& m) { m.version = 1; }), {"version is 1", "2 and 3"}},
      {keyed([](Made& m) { m.version = 0x03000000; }), {"version", "little endian"}},
      {counted, {"tensor count is 18446744073709551615"}},
      {keyed([&](Made& m) { m.key_count = huge; }), {"key count"}},
      {keyed([&](Made& m) { put(m.keys, huge, 8), put(m.keys, 0, 8), m.key_count = 1; }), {"key: length"}},
      {keyed([](Made& m) { m.number("k", 1, 13); }), {"'k'", "value type is 13"}},
      {keyed([](Made& m) { m.number("k", 9, 9), put(m.keys, 0, 8); }), {"'k'", "array of arrays"}},
      {keyed([&](Made& m) { m.number("k", 4, 9), put(m.keys, huge, 8); }), {"'k'", "number of elements"}},
      {keyed([&](Made& m) { m.number("k", 8, 9), put(m.keys, 1, 8), put(m.keys, huge, 8); }), {"'k'", "length"}},
      {keyed([](Made& m) { m.number("k", 1), m.number("k", 2); }), {"'k'", "twice"}},
      {keyed([](Made& m) { m.number("general.alignment", 0); }), {"general.alignment"}},
      {keyed([](Made& m) { m.text("general.alignment", "x"); }), {"general.alignment"}},
      {one({16}, 99, 0), {"'t'", "type 99", "Q4_K"}},
      {one({}, 0, 0), {"'t'", "0 dimensions"}},
      {one({1, 1, 1, 1, 1}, 0, 0), {"'t'", "5 dimensions"}},
      {one({0}, 0, 0), {"'t'", "dimension 0 is 0"}},
      {one({huge}, 0, 0), {"'t'", "dimension 0"}},
      {one({1ull << 62, 4}, 0, 0), {"'t'", "64 bits"}},
      {one({1ull << 62}, 0, 0), {"'t'", "64 bits"}},
      {one({1ull << 40}, 0, 0), {"'t'", "64 bytes of data", "cut short"}},
      {one({17}, 0, 0), {"'t'", "68 bytes", "64"}},
      {one({16}, 0, 32), {"'t'", "64 bytes at 32"}},
      {one({1}, 0, 1), {"'t'", "offset is 1", "32"}},
      {one({1}, 0, huge - 31), {"'t'", "at 18446744073709551584"}},
      {one({16}, 2, 0), {"'t'", "rows of 16", "multiple of 32"}},
  };
  const Scratch scratch;
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    const auto path = scratch.write("bad.gguf", cases[i].bytes);
    expect_error([&] { Gguf::open(path); }, cases[i].words);
  }
  const auto pointer = scratch.write("lfs.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  expect_error([&] { read_config(pointer); }, {"lfs.gguf", "Git LFS pointer"});
}

TEST(Gguf, EveryCutOfAGoodFileIsRefused) {
  const Scratch scratch;
  const std::string good = slurp(kDataDir / "quantized.gguf");
  for (size_t n = 0; n < good.size(); n += n < 1200 ? 1 : 487) {
    const auto path = scratch.write("cut.gguf", good.substr(0, n));
    EXPECT_THROW(Gguf::open(path), Error) << n;
  }
}

// The good model with one field or tensor changed.
TEST(Gguf, WhatTheRunnerDoesNotHaveIsRefusedByName) {
  const auto config_with = [](const std::function<void(Made&)>& add) {
    Made m;
    m.data = std::string(4096, '\0');
    m.text("general.architecture", "llama");
    m.number("llama.block_count", 1), m.number("llama.embedding_length", 32), m.number("llama.feed_forward_length", 64);
    m.number("llama.attention.head_count", 4), m.number("llama.context_length", 512);
    m.number("llama.attention.layer_norm_rms_epsilon", 0x3727c5ac, 6);
    m.tensor("token_embd.weight", {32, 8}, 0, 0);
    add(m);
    const Scratch scratch;
    return read_config(scratch.write("x.gguf", m.bytes()));
  };
  const Config config = config_with([](Made&) {});
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.vocab_size, 8);
  EXPECT_TRUE(config.tied_embeddings);
  const auto halves = config_with([](Made& m) {
    m.data.replace(2048, 16, std::string("\0\0\x80\x3f\0\0\0\x40\0\0\x80\x40\0\0\0\x41", 16));
    m.tensor("rope_freqs.weight", {4}, 0, 2048);
  });
  EXPECT_EQ(halves.rope.divisors, (std::vector<float>{1, 2, 4, 8}));
  const auto refused = [&](const std::function<void(Made&)>& add, const std::vector<std::string>& words) {
    SCOPED_TRACE(words[0]);
    expect_error([&] { config_with(add); }, words);
  };
  refused([](Made& m) { m.number("llama.logit_scale", 1); }, {"llama.logit_scale", "not known"});
  refused([](Made& m) { m.number("llama.expert_count", 8); }, {"llama.expert_count", "'8'"});
  refused([](Made& m) { m.number("llama.rope.dimension_count", 4); }, {"llama.rope.dimension_count", "'4'"});
  refused([](Made& m) { m.number("llama.attention.sliding_window", 511); }, {"sliding_window", "512"});
  refused([](Made& m) { m.text("llama.rope.scaling.type", "longrope"); }, {"llama.rope.scaling.type", "longrope"});
  refused([](Made& m) { m.tensor("blk.1.attn_q.weight", {32, 32}, 0, 0); }, {"blk.1.attn_q.weight"});
  refused([](Made& m) { m.tensor("blk.0.attn_q_norm.weight", {8}, 0, 0); }, {"attn_q_norm"});
  refused([](Made& m) { m.tensor("blk.0.ffn_gate_inp.weight", {8}, 0, 0); }, {"ffn_gate_inp"});
  refused([](Made& m) { m.tensor("rope_freqs.weight", {4}, 0, 2048); }, {"rope_freqs.weight", "0"});
  EXPECT_EQ(config_with([](Made& m) { m.number("llama.attention.sliding_window", 512); }).max_positions, 512);
}

TEST(Gguf, TokenizerFieldsAreChecked) {
  const auto with = [](const std::function<void(Json&)>& change) {
    const Scratch scratch;
    const Gguf file = Gguf::open(kDataDir / "tiny_llama.gguf");
    Json fields = file.metadata();
    change(fields);
    return fields;
  };
  const auto refused = [&](const std::function<void(Json&)>& change, const std::vector<std::string>& words) {
    SCOPED_TRACE(words[0]);
    expect_error([&] { Tokenizer::parse(tokenizer_of(with(change), "here"), "here"); }, words);
  };
  refused([](Json& j) { j["tokenizer.ggml.model"] = "bert"; }, {"tokenizer.ggml.model", "bert"});
  refused([](Json& j) { j["tokenizer.ggml.model"] = "gpt2"; }, {"tokenizer.ggml.pre", "missing"});
  refused([](Json& j) { j["tokenizer.ggml.model"] = "gpt2", j["tokenizer.ggml.pre"] = "own"; }, {"'own'", "smollm"});
  refused([](Json& j) { j["tokenizer.ggml.tokens"] = Json::array(); }, {"tokenizer.ggml.tokens", "empty"});
  refused([](Json& j) { j["tokenizer.ggml.tokens"][5] = "<s>"; }, {"tokenizer.ggml.tokens", "<s>", "5"});
  refused([](Json& j) { j["tokenizer.ggml.tokens"][5] = 5; }, {"tokenizer.ggml.tokens", "strings"});
  refused([](Json& j) { j["tokenizer.ggml.scores"].erase(0); }, {"tokenizer.ggml.scores", "entries"});
  refused([](Json& j) { j["tokenizer.ggml.scores"][3] = NAN; }, {"tokenizer.ggml.scores", "entry 3"});
  refused([](Json& j) { j["tokenizer.ggml.token_type"][3] = 9; }, {"tokenizer.ggml.token_type", "'9'"});
  refused([](Json& j) { j["tokenizer.ggml.bos_token_id"] = 100000; }, {"tokenizer.ggml.bos_token_id"});
  refused([](Json& j) { j["tokenizer.ggml.unknown_token_id"] = -1; }, {"tokenizer.ggml.unknown_token_id"});
}

}  // namespace
}  // namespace sale::lm
