// Every kind of tokenizer against PyPI's tokenizers: 12,000 texts each (data/make_tokenizers.py).
#include "lm/tokenizer.hpp"
#include "texts.hpp"

namespace sale::lm {
namespace {

const Json& data() {
  static const Json json = Json::parse(slurp(kDataDir / "tokenizers.json"));
  return json;
}
const Texts& texts() {
  static const Texts made(data());
  return made;
}

// As built() in make_tokenizers.py.
Json tokenizer_json(const std::string& name) {
  Json json = data().at("kinds").at(name);
  Json changes = json.at("model");
  const Json& base = data().at("models").at(changes.at("base").get<std::string>());
  const auto left_out = [&](const std::string& token) {
    for (const auto& c : changes.value("without", Json::array()))
      if (token.find(c.get<std::string>()) != std::string::npos) return true;
    return false;
  };
  Json model = {{"type", "BPE"}, {"vocab", Json::object()}, {"merges", Json::array()}};
  for (const auto& [token, id] : base.at("vocab").items())
    model["vocab"][left_out(token) ? "\u2060" + token : token] = id;
  for (const auto& merge : base.at("merges"))
    if (!left_out(merge[0].get<std::string>() + merge[1].get<std::string>())) model["merges"].push_back(merge);
  for (const auto& [key, value] : changes.items())
    if (key != "base" && key != "without") model[key] = value;
  json["model"] = model;
  return json;
}

class Kinds : public ::testing::TestWithParam<std::string> {};

TEST_P(Kinds, IdsAndTextsAreThoseOfTheTokenizersPackage) {
  ASSERT_GE(texts().count(), 10'000u);
  const Tokenizer tokenizer = Tokenizer::parse(tokenizer_json(GetParam()), GetParam());
  EXPECT_EQ(hashes_of_ids(texts(), [&](const std::string& text) { return tokenizer.encode(text); }),
            data().at("ids").at(GetParam()).get<std::vector<std::string>>());
  if (!data().at("decoded").contains(GetParam())) return;
  std::vector<std::string> decoded;
  for (size_t first = 0; first < texts().count(); first += 100) {
    Fnv hash;
    for (size_t i = first; i < first + 100; ++i) {
      hash.add(tokenizer.stripped(tokenizer.decode(tokenizer.encode(texts()[i]))));
      hash.add(static_cast<unsigned char>(0));
    }
    decoded.push_back(hash.text());
  }
  EXPECT_EQ(decoded, data().at("decoded").at(GetParam()).get<std::vector<std::string>>());
}

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const auto& [name, kind] : data().at("kinds").items()) out.push_back(name);
  return out;
}
INSTANTIATE_TEST_SUITE_P(Tokenizers, Kinds, ::testing::ValuesIn(names()), [](const auto& one) { return one.param; });

// With ignore_merges a word of the vocabulary is taken whole; tokenizers of byte-level kinds without the four letters
// leave the bytes out.
TEST(Tokenizers, BytesWithoutATokenAreLeftOutOrUnknown) {
  const Tokenizer silent = Tokenizer::parse(tokenizer_json("smollm"), "smollm"),
                  loud = Tokenizer::parse(tokenizer_json("smollm_unknown"), "smollm_unknown");
  EXPECT_EQ(silent.encode(std::string(1, '\0')), std::vector<int32_t>{});
  EXPECT_EQ(loud.encode(std::string(1, '\0')), loud.encode("!"));
}

TEST(Tokenizers, WhatIsNotSupportedIsRefusedByName) {
  struct Case {
    const char* kind;
    std::function<void(Json&)> change;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {"qwen2", [](Json& j) { j["normalizer"]["type"] = "Lowercase"; }, {"normalizer", "Lowercase", "NFKC"}},
      {"llama2", [](Json& j) { j["normalizer"]["normalizers"][0]["type"] = "Sequence"; }, {"normalizer", "Sequence"}},
      {"llama2",
       [](Json& j) { j["normalizer"]["normalizers"][1]["pattern"] = {{"String", ""}}; },
       {"String", "0 bytes"}},
      {"llama2",
       [](Json& j) { j["normalizer"]["normalizers"][0]["prepend"] = std::string(100, 'a'); },
       {"prepend", "100 bytes"}},
      {"metaspace", [](Json& j) { j["normalizer"]["normalizers"][1]["pattern"] = {{"Regex", "("}}; }, {"refused"}},
      {"mistral", [](Json& j) { j["pre_tokenizer"]["prepend_scheme"] = "last"; }, {"prepend_scheme", "last"}},
      {"mistral", [](Json& j) { j["pre_tokenizer"]["replacement"] = ""; }, {"replacement", "0 bytes"}},
      {"deepseek", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Lost"; }, {"behavior", "Lost"}},
      {"deepseek",
       [](Json& j) {
         auto& parts = j["pre_tokenizer"]["pretokenizers"];
         parts.push_back(parts[0]);
       },
       {"Split", "after ByteLevel"}},
      {"deepseek",
       [](Json& j) {
         auto& parts = j["pre_tokenizer"]["pretokenizers"];
         for (int i = 0; i < 40; ++i) parts.insert(parts.begin(), parts[0]);
       },
       {"too many pre-tokenizers"}},
      {"gpt2", [](Json& j) { j["pre_tokenizer"]["type"] = "Whitespace"; }, {"pre_tokenizer", "Whitespace"}},
      {"gpt2", [](Json& j) { j["model"]["byte_fallback"] = true; }, {"byte_fallback", "ByteLevel"}},
      {"gpt2", [](Json& j) { j["model"]["dropout"] = 0.5; }, {"dropout"}},
      {"gpt2", [](Json& j) { j["model"]["unk_token"] = "<none>"; }, {"unk_token", "<none>"}},
      {"gpt2", [](Json& j) { j["pre_tokenizer"] = nullptr; }, {"decoder", "pre_tokenizer"}},
      {"llama2", [](Json& j) { j["decoder"]["decoders"][0]["content"] = "x"; }, {"decoder", "'x'"}},
      {"llama2", [](Json& j) { j["decoder"]["decoders"][3]["stop"] = 1; }, {"decoder", "Strip"}},
      {"llama2", [](Json& j) { j["decoder"]["type"] = "WordPiece"; }, {"decoder", "WordPiece"}},
      {"llama2", [](Json& j) { j["added_tokens"][0]["single_word"] = true; }, {"single_word"}},
  };
  for (const Case& wrong : cases) {
    Json json = tokenizer_json(wrong.kind);
    wrong.change(json);
    SCOPED_TRACE(wrong.words[0]);
    expect_error([&] { Tokenizer::parse(json, "here"); }, wrong.words);
  }
}

}  // namespace
}  // namespace sale::lm
