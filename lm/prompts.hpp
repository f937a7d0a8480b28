// Long prompts with a known answer, made from a text: hidden numbers, a pass key, a JSON object to look up in.
// The same arguments give the same prompt everywhere (own generator, no standard distributions).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lm/tokenizer.hpp"

namespace sale::lm {

// splitmix64.
class Random {
public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int64_t below(int64_t n);       // uniform in [0, n), n >= 1
  double fraction();              // uniform in [0, 1)
  std::string digits(int count);  // first digit not 0
  std::string hex(int count);

private:
  uint64_t state_;
};

// One hidden fact, where its tokens lie in the context, and how it is asked for.
struct Fact {
  std::string key, answer;  // the answer as the model writes it, up to and with the mark that ends it: " 1234567."
  int64_t begin = 0, end = 0;
  std::vector<int32_t> question;  // to be put after the context
  std::string question_text;
};

// `context` starts with the tokenizer's own first token. Run it once, then for each fact its question: context and
// question together are at most the tokens asked for, less room for the answer.
struct Prompt {
  std::vector<int32_t> context;
  std::vector<Fact> facts;
};

struct PromptSpec {
  int64_t tokens = 4096;            // context, question and answer together
  int facts = 1;                    // needles or JSON questions
  std::vector<double> depths = {};  // 0 (start) to 1 (end), one per fact; empty: evenly spread
  uint64_t seed = 1;
};

// " The special magic number for {key} is {number}." at ends of sentences of the text.
Prompt needle_prompt(const Tokenizer& tokenizer, std::string_view text, const PromptSpec& spec);
// " The pass key is {number}. Remember it. {number} is the pass key."; one fact.
Prompt passkey_prompt(const Tokenizer& tokenizer, std::string_view text, const PromptSpec& spec);
// A JSON object of random 8-digit hexadecimal keys and values that fills the prompt; no text needed.
Prompt json_prompt(const Tokenizer& tokenizer, const PromptSpec& spec);

// ---- parts that other prompts are made of ----

struct Piece {
  std::vector<int32_t> tokens;
  double depth;  // 0 (start) to 1 (end)
};
struct Hidden {
  std::vector<int32_t> context;                     // `tokens` of them, the tokenizer's first token among them
  std::vector<std::pair<int64_t, int64_t>> places;  // [begin, end) of each piece
};
// Pieces at ends of sentences of a stretch of the text.
Hidden hide(const Tokenizer& tokenizer, std::string_view text, int64_t tokens, const std::vector<Piece>& pieces,
            Random& random);
std::string joined(std::initializer_list<std::string_view> parts);   // one after the other
std::string random_word(Random& random);                             // "amber-anchor", one of 400
std::string fresh_key(Random& random, std::set<std::string>& used);  // a city or such a word, not yet used

// Whether what was generated begins with the whole answer.
bool answers(const Fact& fact, std::string_view generated);

}  // namespace sale::lm
