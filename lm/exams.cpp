#include "lm/exams.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "lm/error.hpp"

namespace sale::lm {
namespace {

constexpr int64_t kQuestionRoom = 320;  // the longest question and its answer
constexpr int kKeys = 20, kManyKeys = 4, kValues = 4, kGroup = 4, kChains = 8;

template <class T>
void shuffle(std::vector<T>& items, Random& random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[at(random.below(static_cast<int64_t>(i)))]);
}

// "A, B, C, and D"
std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += (i == 0 ? "" : i + 1 < names.size() ? ", " : ", and ") + names[i];
  return text;
}

// Facts on their way into a text, and the questions about them.
class Maker {
public:
  Maker(const Tokenizer& tokenizer, Random& random) : tokenizer_(tokenizer), random_(random) {}

  // Somewhere in part i of n equal parts.
  size_t fact(const std::string& text, int64_t i, int64_t n) {
    pieces_.push_back(
        {tokenizer_.encode(text, false), (static_cast<double>(i) + random_.fraction()) / static_cast<double>(n)});
    return pieces_.size() - 1;
  }
  void ask(const char* task, const std::string& question, std::vector<std::string> answers, bool exact,
           const std::vector<size_t>& facts) {
    double depth = 0;
    for (size_t f : facts) depth += pieces_[f].depth / static_cast<double>(facts.size());
    asked_.push_back({task, tokenizer_.encode(question, false), std::move(answers), exact, depth});
  }
  Exam finish(std::string_view text, int64_t tokens) {
    Hidden hidden = hide(tokenizer_, text, tokens - kQuestionRoom, pieces_, random_);
    return {std::move(hidden.context), std::move(asked_), std::move(hidden.places)};
  }
  std::string key() { return fresh_key(random_, used_); }

private:
  const Tokenizer& tokenizer_;
  Random& random_;
  std::vector<Piece> pieces_;
  std::vector<Asked> asked_;
  std::set<std::string> used_;
};

struct Number {
  std::string key, value;
  size_t fact;
};

Number hide_number(Maker& make, Random& random, int64_t i, int64_t n) {
  Number it{make.key(), random.digits(7), 0};
  it.fact = make.fact(joined({" The special magic number for ", it.key, " is ", it.value, "."}), i, n);
  return it;
}
void ask_number(Maker& make, const char* task, const Number& it) {
  make.ask(task,
           joined({" What is the special magic number for ", it.key, "? The special magic number for ", it.key, " is"}),
           {joined({" ", it.value, "."})}, true, {it.fact});
}

Exam alone(const Tokenizer& tokenizer, std::string_view text, int64_t tokens, Random& random) {
  Maker make(tokenizer, random);
  ask_number(make, "single", hide_number(make, random, 0, 1));
  const std::string key = random.digits(5);
  const size_t fact = make.fact(joined({" The pass key is ", key, ". Remember it. ", key, " is the pass key."}), 0, 1);
  make.ask("passkey", " What is the pass key? The pass key is", {joined({" ", key, "."})}, true, {fact});
  return make.finish(text, tokens);
}

void add_many_values(Maker& make, Random& random) {
  for (int k = 0; k < kManyKeys; ++k) {
    const std::string key = make.key();
    std::vector<std::string> values;
    std::vector<size_t> facts;
    for (int v = 0; v < kValues; ++v) {
      values.push_back(random.digits(7));
      facts.push_back(
          make.fact(joined({" One of the special magic numbers for ", key, " is: ", values.back(), "."}), v, kValues));
    }
    make.ask("multivalue",
             joined({"\nWhat are all the special magic numbers for ", key,
                     " mentioned in the provided text? The special magic numbers for ", key,
                     " mentioned in the provided text are:"}),
             values, false, facts);
  }
}

// Chain c: a value, then c % 4 variables that take it one from the other.
void add_chains(Maker& make, Random& random) {
  std::set<std::string> names;
  const auto name = [&] {
    for (;;) {
      std::string n;
      for (int i = 0; i < 4; ++i) n += static_cast<char>('A' + random.below(26));
      if (names.insert(n).second) return n;
    }
  };
  for (int c = 0; c < kChains; ++c) {
    const int links = c % 4 + 1;
    const std::string value = random.digits(5);
    std::string last;
    std::vector<size_t> facts;
    for (int j = 0; j < links; ++j) {
      const std::string next = name();
      facts.push_back(
          make.fact(joined({" VAR ", next, " = ", j == 0 ? "" : "VAR ", j == 0 ? value : last, "."}), j, links));
      last = next;
    }
    make.ask("variables", joined({" What is the value of VAR ", last, "? The value of VAR ", last, " is"}),
             {joined({" ", value, "."})}, true, facts);
  }
}

Exam book(const Tokenizer& tokenizer, std::string_view text, int64_t tokens, Random& random) {
  Maker make(tokenizer, random);
  std::vector<Number> numbers;
  for (int i = 0; i < kKeys; ++i) numbers.push_back(hide_number(make, random, i, kKeys));
  for (const Number& it : numbers) ask_number(make, "multikey", it);
  shuffle(numbers, random);
  for (size_t g = 0; g + kGroup <= numbers.size(); g += kGroup) {
    std::vector<std::string> keys, values;
    std::vector<size_t> facts;
    for (size_t i = g; i < g + kGroup; ++i)
      keys.push_back(numbers[i].key), values.push_back(numbers[i].value), facts.push_back(numbers[i].fact);
    make.ask("multiquery",
             joined({"\nWhat are the special magic numbers for ", listed(keys),
                     " mentioned in the provided text? The special magic numbers for ", listed(keys),
                     " mentioned in the provided text are:"}),
             values, false, facts);
  }
  add_many_values(make, random);
  add_chains(make, random);
  return make.finish(text, tokens);
}

Exam pairs(const Tokenizer& tokenizer, int64_t tokens, uint64_t seed) {
  PromptSpec spec;
  spec.tokens = tokens;
  spec.facts = kKeys;
  spec.seed = seed;
  Prompt prompt = json_prompt(tokenizer, spec);
  Exam exam;
  const auto size = static_cast<double>(prompt.context.size());
  for (Fact& f : prompt.facts)
    exam.asked.push_back({"keyvalue", std::move(f.question), {f.answer}, true, static_cast<double>(f.begin) / size});
  exam.made.push_back({0, ssize_of(prompt.context)});
  exam.context = std::move(prompt.context);
  return exam;
}

// `counts` words in any order until the context is full; each stands there in proportion to its number.
Exam counted(const Tokenizer& tokenizer, const std::string& task, const std::string& opening, bool numbered,
             const std::vector<std::pair<std::string, double>>& counts, const std::string& question, size_t answers,
             int64_t tokens, Random& random) {
  double whole = 0;
  for (const auto& [word, weight] : counts)
    whole += weight * static_cast<double>(ssize_of(tokenizer.encode(joined({" ", word}), false)));
  const auto start = tokenizer.encode(opening, false);
  const int64_t room = tokens - kQuestionRoom - ssize_of(start) - ssize_of(tokenizer.prefix());
  std::vector<std::string> words;
  // Enough without numbers; with them, what does not fit is left out of all words alike.
  for (const auto& [word, weight] : counts)
    words.insert(words.end(), static_cast<size_t>(std::max(1.0, weight * static_cast<double>(room) / whole)), word);
  shuffle(words, random);
  Exam exam{tokenizer.prefix(), {}, {}};
  exam.context.insert(exam.context.end(), start.begin(), start.end());
  for (size_t i = 0; i < words.size(); ++i) {
    const auto ids = tokenizer.encode(
        numbered ? joined({" ", std::to_string(i + 1), ". ", words[i]}) : joined({" ", words[i]}), false);
    if (ssize_of(exam.context) + ssize_of(ids) > tokens - kQuestionRoom) break;
    exam.context.insert(exam.context.end(), ids.begin(), ids.end());
  }
  Asked asked{task, tokenizer.encode(question, false), {}, false, 0.5};
  for (size_t i = 0; i < answers; ++i) asked.answers.push_back(counts[i].first);
  exam.asked.push_back(std::move(asked));
  exam.made.push_back({0, ssize_of(exam.context)});
  return exam;
}

Exam common(const Tokenizer& tokenizer, int64_t tokens, Random& random) {
  std::set<std::string> used;
  std::vector<std::pair<std::string, double>> counts;
  while (counts.size() < 100) {
    std::string word = random_word(random);
    if (used.insert(word).second) counts.emplace_back(std::move(word), counts.size() < 10 ? 10 : 1);
  }
  return counted(tokenizer, "common",
                 "Below is a numbered list of words. In these words, some appear more often than others. Memorize the "
                 "ones that appear most often.\n",
                 true, counts,
                 "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that "
                 "appear most often in the list are:",
                 10, tokens, random);
}

// The k-th word in proportion to k^-2.
Exam frequent(const Tokenizer& tokenizer, int64_t tokens, Random& random) {
  std::vector<std::pair<std::string, double>> counts;
  for (int k = 1; k <= 40; ++k) {
    std::string word;
    for (int i = 0; i < 6; ++i) word += static_cast<char>('a' + random.below(26));
    counts.emplace_back(std::move(word), std::pow(k, -2.0));
  }
  return counted(tokenizer, "frequent",
                 "Read the following coded text and track the frequency of each coded word. Find the three most "
                 "frequently appeared coded words.",
                 false, counts,
                 "\nQuestion: What are the three most frequently appeared words in the above coded text? Answer: "
                 "According to the coded text above, the three most frequently appeared words are:",
                 3, tokens, random);
}

}  // namespace

Exam make_exam(std::string_view name, const Tokenizer& tokenizer, std::string_view text, int64_t tokens,
               uint64_t seed) {
  if (tokens < 2048) fail("exam of ", tokens, " tokens; at least 2048 are needed");
  Random random(seed);
  if (name == "alone") return alone(tokenizer, text, tokens, random);
  if (name == "book") return book(tokenizer, text, tokens, random);
  if (name == "pairs") return pairs(tokenizer, tokens, seed);
  if (name == "common") return common(tokenizer, tokens, random);
  if (name == "frequent") return frequent(tokenizer, tokens, random);
  fail("there is no exam called '", name, "'");
}

}  // namespace sale::lm
