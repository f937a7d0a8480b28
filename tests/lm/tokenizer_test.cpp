#include "lm/tokenizer.hpp"

#include <nlohmann/json.hpp>

#include "support.hpp"

namespace sale::lm {
namespace {

using Json = nlohmann::json;

const Json& reference() {
  static const Json json = Json::parse(slurp(kDataDir / "tokens.json"));
  return json;
}

Json tokenizer_json() { return Json::parse(slurp(kModelDir / "tokenizer.json")); }

Tokenizer load(const Json& json) {
  const Scratch scratch;
  return Tokenizer::load(scratch.write("tokenizer.json", json.dump()));
}

TEST(Tokenizer, IdsMatchTransformers) {
  const Tokenizer tokenizer = Tokenizer::load(kModelDir);
  ASSERT_GE(reference()["rows"].size(), 20u);
  for (const auto& row : reference()["rows"]) {
    const auto text = row["text"].get<std::string>();
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text), ids) << text;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false)), text);
  }
}

TEST(Tokenizer, PublishedPatternsCutAsTheTokenizersPackageDoes) {
  for (const char* name : {"llama3", "qwen2"}) {
    const Splitter splitter(reference()[name].get<std::string>(), name);
    for (const auto& row : reference()["rows"]) {
      std::vector<std::string> words;
      splitter.split(row["text"].get<std::string>(), [&](std::string_view word, bool) { words.emplace_back(word); });
      EXPECT_EQ(words, row[name].get<std::vector<std::string>>()) << name << ": " << row["text"];
    }
  }
}

TEST(Tokenizer, SplitterKeepsEveryByte) {
  const std::string text = "abc 12\n\n x";
  for (const char* pattern : {"b", "[0-9]*", "x*?", "z", " ?", "(?=c)"}) {
    std::string joined;
    Splitter(pattern, "test").split(text, [&](std::string_view word, bool) {
      EXPECT_FALSE(word.empty());
      joined += word;
    });
    EXPECT_EQ(joined, text) << pattern;
  }
  expect_error([] { Splitter("(", "here"); }, {"here", "refused"});
  expect_error([] { Splitter(std::string(20'000, 'a'), "here"); }, {"at most"});
  // Exponential backtracking ends in an error, not in a hang.
  expect_error([] { Splitter("(a+)+$", "here").split(std::string(64, 'a') + "b", [](std::string_view, bool) {}); },
               {"splitting text"});
}

TEST(Tokenizer, LongRunsTakeLinearTimeAndStack) {
  const Tokenizer tokenizer = Tokenizer::load(kModelDir);
  for (const char* piece : {" ", "a", "\n", "!", "\u00e9", "ab ", "\t \n"}) {
    std::string text;
    while (text.size() < 2'000'000) text += piece;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false)), text);
  }
}

TEST(Tokenizer, MergesInOldSpellingAndIgnoreMerges) {
  Json old = tokenizer_json();
  for (auto& merge : old["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  const std::string text = "The special magic number for Lisbon is 7301946.";
  EXPECT_EQ(load(old).encode(text), Tokenizer::load(kModelDir).encode(text));
  // Without merges only whole words of the vocabulary are found, and only with ignore_merges.
  old["model"]["merges"] = Json::array();
  EXPECT_EQ(load(old).encode(" the", false).size(), 4u);
  old["model"]["ignore_merges"] = true;
  EXPECT_EQ(load(old).encode(" the", false).size(), 1u);
}

TEST(Tokenizer, AddedTokens) {
  Json j = tokenizer_json();
  const auto add = [&](const char* content, int id) {
    j["added_tokens"].push_back({{"id", id}, {"content", content}, {"special", true}});
  };
  add("<|x|>", 5000);  // a hole up to here
  add("<|x|>y", 5001);
  const Tokenizer tokenizer = load(j);
  EXPECT_EQ(tokenizer.encode("a<|x|>y<|x|>", false),
            (std::vector<int32_t>{tokenizer.encode("a", false)[0], 5001, 5000}));
  EXPECT_EQ(tokenizer.id_of_added("<|x|>"), 5000);
  EXPECT_EQ(tokenizer.id_of_added("<|z|>"), std::nullopt);
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{5001}), "<|x|>y");
  for (int32_t id : {-1, 4500, 5002, INT32_MAX, INT32_MIN})
    expect_error([&] { tokenizer.decode(std::vector<int32_t>{id}); }, {std::to_string(id), "not in the vocabulary"});
}

TEST(Tokenizer, TextMustBeUtf8) {
  const Tokenizer tokenizer = Tokenizer::load(kModelDir);
  for (const char* bad :
       {"ab\xff", "\x80", "\xc0\xaf", "\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80"})
    expect_error([&] { tokenizer.encode(bad); }, {"not UTF-8 at byte"});
}

TEST(Tokenizer, SpacesOfUnicodeInPatterns) {
  const auto cut = [](const char* pattern, std::string_view text) {
    std::vector<std::string> parts;
    Splitter(pattern, "test").split(text, [&](std::string_view part, bool matched) {
      parts.push_back((matched ? "+" : "-") + std::string(part));
    });
    return parts;
  };
  using Parts = std::vector<std::string>;
  EXPECT_EQ(cut("\\s", "a\u3000b\u180ec"), (Parts{"-a", "+\u3000", "-b\u180ec"}));
  EXPECT_EQ(cut("[\\S]+", "ab\u2003c"), (Parts{"+ab", "-\u2003", "+c"}));
  EXPECT_EQ(cut("[^\\s]+", "ab\u0085c"), (Parts{"+ab", "-\u0085", "+c"}));
  EXPECT_EQ(cut("x*", "abxc"), (Parts{"-a", "-b", "+x", "-c"}));  // an empty match cuts too
}

TEST(Tokenizer, NormalFormC) {
  Json j = tokenizer_json();
  j["normalizer"] = {{"type", "NFC"}};
  const Tokenizer tokenizer = load(j), plain = Tokenizer::load(kModelDir);
  EXPECT_EQ(tokenizer.encode("cafe\u0301 \u212b"), plain.encode("caf\u00e9 \u00c5"));
  // Bengali and Hindi that is in normal form C already, although its letters can be parts of compositions.
  for (const char* text :
       {"\u0986\u099c \u09b8\u0995\u09be\u09b2\u09c7", "\u092c\u0921\u093c\u093e", "na\u00efve \uac00 \U0001f600"})
    EXPECT_EQ(tokenizer.encode(text), plain.encode(text));
  EXPECT_EQ(tokenizer.encode("\u0958"), plain.encode("\u0915\u093c"));  // excluded from composition
  EXPECT_EQ(normalized("a\u0323\u0307", NormalForm::d), "a\u0323\u0307");
  EXPECT_EQ(normalized("a\u0307\u0323", NormalForm::d), "a\u0323\u0307");
  EXPECT_EQ(normalized("\ufb01\u2460", NormalForm::kc), "fi1");
  EXPECT_EQ(normalized("\u1e9b\u0323", NormalForm::kd), "s\u0323\u0307");
}

TEST(Tokenizer, HostileFiles) {
  struct Case {
    std::function<void(Json&)> change;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {[](Json& j) { j.erase("model"); }, {"model", "missing"}},
      {[](Json& j) { j["model"]["type"] = "Unigram"; }, {"Unigram"}},
      {[](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, {"continuing_subword_prefix"}},
      {[](Json& j) { j["model"]["vocab"] = Json::array(); }, {"vocab"}},
      {[](Json& j) { j["model"]["vocab"]["!"] = -1; }, {"vocab '!'", "-1"}},
      {[](Json& j) { j["model"]["vocab"]["!"] = 4000000000u; }, {"vocab '!'"}},
      {[](Json& j) { j["model"]["vocab"]["!"] = 1.5; }, {"vocab '!'"}},
      {[](Json& j) { j["model"]["vocab"]["!"] = 4; }, {"already taken"}},
      {[](Json& j) { j["model"]["vocab"].erase("t"); }, {"merge", "'t'", "not in the vocabulary"}},
      {[](Json& j) { j["model"]["vocab"][std::string(5000, 'a')] = 4096; }, {"5000 bytes"}},
      {[](Json& j) { j["model"]["vocab"][""] = 4096; }, {"0 bytes"}},
      {[](Json& j) { j["model"]["merges"].push_back({"q", "zzzz"}); }, {"merge", "'zzzz'", "not in the vocabulary"}},
      {[](Json& j) { j["model"]["merges"].push_back({"q", "#"}); }, {"merge", "'q#'"}},
      {[](Json& j) { j["model"]["merges"].push_back("a b c"); }, {"merge", "a b c"}},
      {[](Json& j) { j["model"]["merges"].push_back("ab"); }, {"merge"}},
      {[](Json& j) { j["model"]["merges"].push_back(7); }, {"merge", "'7'"}},
      {[](Json& j) { j["model"]["merges"] = 1; }, {"merges"}},
      {[](Json& j) { j["added_tokens"][0]["id"] = -1; }, {"id", "-1"}},
      {[](Json& j) { j["added_tokens"][0]["id"] = 99; }, {"begin_of_text", "99"}},
      {[](Json& j) { j["added_tokens"][0]["content"] = ""; }, {"0 bytes"}},
      {[](Json& j) { j["added_tokens"][0]["single_word"] = true; }, {"single_word"}},
      {[](Json& j) { j["added_tokens"].push_back({{"id", 2000000}, {"content", "<far>"}}); },
       {"added_tokens", "2000000"}},
      {[](Json& j) { j["added_tokens"] = "x"; }, {"added_tokens", "array"}},
      {[](Json& j) { j["normalizer"] = {{"type", "Lowercase"}}; }, {"normalizer", "Lowercase"}},
      {[](Json& j) { j["pre_tokenizer"] = nullptr; }, {"pre_tokenizer"}},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"].erase(1); }, {"decoder", "pre_tokenizer"}},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = Json::object(); }, {"Regex", "missing"}},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("; }, {"refused"}},
      {[](Json& j) { j["post_processor"]["type"] = "BertProcessing"; }, {"BertProcessing"}},
      {[](Json& j) { j["post_processor"]["special_tokens"] = Json::object(); }, {"begin_of_text", "missing"}},
      {[](Json& j) { j["post_processor"]["special_tokens"]["<|begin_of_text|>"]["ids"] = {1 << 30}; }, {"ids"}},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    Json j = tokenizer_json();
    cases[i].change(j);
    expect_error([&] { load(j); }, cases[i].words);
  }
}

}  // namespace
}  // namespace sale::lm
