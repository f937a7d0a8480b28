#include "lm/prompts.hpp"

#include "support.hpp"

namespace sale::lm {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer t = Tokenizer::load(kModelDir);
  return t;
}

std::string book() {
  std::string text;
  for (int i = 0; i < 3000; ++i)
    text += "Sentence " + std::to_string(i) + " of a dull book, with \u201cquotes\u201d and nothing in it. \n";
  return text;
}

std::string fact_text(const Prompt& prompt, const Fact& fact) {
  return tokenizer().decode(std::span(prompt.context).subspan(at(fact.begin), at(fact.end - fact.begin)));
}

TEST(Prompts, NeedlesAreWhereTheySayTheyAre) {
  const PromptSpec spec{.tokens = 2000, .facts = 5, .depths = {0.0, 0.3, 0.31, 0.9, 1.0}, .seed = 3};
  const Prompt prompt = needle_prompt(tokenizer(), book(), spec);
  ASSERT_EQ(prompt.facts.size(), 5u);
  EXPECT_EQ(prompt.context.front(), 0);
  EXPECT_EQ(prompt.facts.front().begin, 1);
  EXPECT_EQ(prompt.facts.back().end, ssize_of(prompt.context));
  for (const Fact& fact : prompt.facts) {
    EXPECT_EQ(fact_text(prompt, fact), " The special magic number for " + fact.key + " is" + fact.answer);
    EXPECT_EQ(tokenizer().decode(fact.question), fact.question_text);
    EXPECT_NE(fact.question_text.find("What is the special magic number for " + fact.key + "?"), std::string::npos);
    EXPECT_LE(ssize_of(prompt.context) + ssize_of(fact.question) + 8, 2000);
    EXPECT_GT(ssize_of(prompt.context) + ssize_of(fact.question), 1900);
  }
  // In the middle, at the end of a sentence.
  const auto before = tokenizer().decode(std::span(prompt.context).first(at(prompt.facts[1].begin)));
  EXPECT_NE(before.find_last_of('.'), std::string::npos);
  EXPECT_GE(before.find_last_of('.') + 3, before.size());
}

TEST(Prompts, SameSeedSamePrompt) {
  const PromptSpec a{.tokens = 1000, .facts = 2, .depths = {}, .seed = 5},
      b{.tokens = 1000, .facts = 2, .depths = {}, .seed = 6};
  EXPECT_EQ(needle_prompt(tokenizer(), book(), a).context, needle_prompt(tokenizer(), book(), a).context);
  EXPECT_NE(needle_prompt(tokenizer(), book(), a).context, needle_prompt(tokenizer(), book(), b).context);
  // The generator itself is fixed: first outputs of splitmix64 from seed 0.
  Random random(0);
  EXPECT_EQ(random.next(), 0xe220a8397b1dcdafu);
  EXPECT_EQ(random.next(), 0x6e789e6aa1b965f4u);
}

TEST(Prompts, JsonIsFilledAndParsesByEye) {
  const Prompt prompt = json_prompt(tokenizer(), {.tokens = 1500, .facts = 3, .depths = {0.0, 0.5, 1.0}, .seed = 9});
  const std::string text = tokenizer().decode(std::span(prompt.context).subspan(1));
  EXPECT_TRUE(text.starts_with("JSON data:\n{\"" + prompt.facts[0].key + "\": \""));
  EXPECT_TRUE(text.ends_with("\"}\n\n"));
  EXPECT_EQ(tokenizer().encode(text), prompt.context);  // the pieces meet where the pre-tokenizer cuts
  for (const Fact& fact : prompt.facts) {
    EXPECT_NE(fact_text(prompt, fact).find("\"" + fact.key + "\": \"" + fact.answer), std::string::npos);
    EXPECT_EQ(fact.question_text, "Key: \"" + fact.key + "\"\nValue: \"");
    EXPECT_LE(ssize_of(prompt.context) + ssize_of(fact.question) + 8, 1500);
  }
  EXPECT_GT(prompt.context.size(), 1350u);
}

TEST(Prompts, PassKeyAndAnswers) {
  const Prompt prompt = passkey_prompt(tokenizer(), book(), {.tokens = 500});
  const Fact& fact = prompt.facts.at(0);
  EXPECT_NE(fact_text(prompt, fact).find("The pass key is" + fact.answer + " Remember it."), std::string::npos);
  EXPECT_TRUE(answers(fact, fact.answer + " And so on"));
  EXPECT_FALSE(answers(fact, fact.answer.substr(0, 4)));
}

TEST(Prompts, WrongArguments) {
  const auto make = [](const PromptSpec& spec) { needle_prompt(tokenizer(), "Short. ", spec); };
  expect_error([&] { make({.tokens = 10}); }, {"10 tokens"});
  expect_error([&] { make({.tokens = 1000, .facts = 0}); }, {"0 facts"});
  expect_error([&] { make({.tokens = 1000, .facts = 2, .depths = {0.5}}); }, {"1 depths"});
  expect_error([&] { make({.tokens = 1000, .facts = 1, .depths = {1.5}}); }, {"1.5"});
  expect_error([&] { make({.tokens = 1000, .facts = 250}); }, {"no room"});
  expect_error([&] { make({.tokens = 1000}); }, {"too short"});
  expect_error([&] { make({.tokens = INT64_MAX}); }, {"prompt"});
  expect_error([&] { json_prompt(tokenizer(), {.tokens = 100, .facts = 90}); }, {"pairs"});
}

}  // namespace
}  // namespace sale::lm
