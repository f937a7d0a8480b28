// Contexts with many questions, after the tasks of RULER (arXiv 2404.06654), key-value retrieval and pass keys: every
// question of an exam is asked from the same cache, so that one prefill serves all of them. The same arguments give
// the same exam everywhere.
//
//   exam      context                                  tasks
//   alone     a text with one number and one pass key  single, passkey
//   book      a text with some fifty facts             multikey, multivalue, multiquery, variables
//   pairs     a JSON object                            keyvalue
//   common    a numbered list of words                 common: the ten that stand there ten times as often
//   frequent  coded words                              frequent: the three most frequent
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lm/prompts.hpp"
#include "lm/tokenizer.hpp"

namespace sale::lm {

struct Asked {
  std::string task;
  std::vector<int32_t> question;     // put after the context
  std::vector<std::string> answers;  // exact: one, and what follows is that text, token by token; else each of them
  bool exact = true;                 // stands somewhere in what is generated, in any order
  double depth = 0;                  // of what is asked for in the context, 0 .. 1; of several, their mean
};

struct Exam {
  std::vector<int32_t> context;
  std::vector<Asked> asked;
  // Where the context is not the text itself; the whole of it when there is no text.
  std::vector<std::pair<int64_t, int64_t>> made;
};

inline constexpr std::string_view exam_names[] = {"alone", "book", "pairs", "common", "frequent"};
struct TaskName {
  std::string_view task, exam;
};
inline constexpr TaskName task_names[] = {{"single", "alone"},    {"passkey", "alone"},   {"multikey", "book"},
                                          {"multivalue", "book"}, {"multiquery", "book"}, {"variables", "book"},
                                          {"keyvalue", "pairs"},  {"common", "common"},   {"frequent", "frequent"}};

// Context, question and answer together are at most `tokens`, 2048 or more. text: for alone and book.
Exam make_exam(std::string_view name, const Tokenizer& tokenizer, std::string_view text, int64_t tokens, uint64_t seed);

}  // namespace sale::lm
