#include "lm/exams.hpp"

#include <algorithm>

#include "support.hpp"

namespace sale::lm {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer t = Tokenizer::load(kModelDir);
  return t;
}

std::string book_text() {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "Sentence " + std::to_string(i) + " of a dull book, with nothing in it.\n";
  return text;
}

class ExamOf : public testing::TestWithParam<std::string_view> {};

// Every exam fits its length, holds what is asked for, and is the same for the same seed only.
TEST_P(ExamOf, HoldsItsAnswers) {
  constexpr int64_t tokens = 4096;
  const Exam exam = make_exam(GetParam(), tokenizer(), book_text(), tokens, 5);
  EXPECT_EQ(exam.context.front(), 0);
  EXPECT_GT(ssize_of(exam.context), tokens * 3 / 4);
  const std::string text = tokenizer().decode(exam.context);
  ASSERT_FALSE(exam.asked.empty());
  for (const Asked& asked : exam.asked) {
    EXPECT_LE(ssize_of(exam.context) + ssize_of(asked.question) + 24, tokens) << asked.task;
    EXPECT_GE(asked.depth, 0);
    EXPECT_LE(asked.depth, 1);
    for (const std::string& answer : asked.answers) {
      const std::string found = asked.task == "variables" ? answer.substr(1, 5) : answer;
      EXPECT_NE(text.find(found), std::string::npos) << asked.task << ": " << answer;
    }
    EXPECT_TRUE(!asked.exact || asked.answers.size() == 1);
    const auto known = [&](const TaskName& t) { return t.task == asked.task && t.exam == GetParam(); };
    EXPECT_TRUE(std::any_of(std::begin(task_names), std::end(task_names), known)) << asked.task;
  }
  EXPECT_EQ(make_exam(GetParam(), tokenizer(), book_text(), tokens, 5).context, exam.context);
  EXPECT_NE(make_exam(GetParam(), tokenizer(), book_text(), tokens, 6).context, exam.context);
}
INSTANTIATE_TEST_SUITE_P(Exams, ExamOf, testing::ValuesIn(exam_names));

TEST(Exams, CountedWordsAreTheMostFrequent) {
  for (const std::string_view name : {"common", "frequent"}) {
    const Exam exam = make_exam(name, tokenizer(), "", 8192, 2);
    const std::string text = tokenizer().decode(exam.context);
    const auto times = [&](const std::string& word) {
      int n = 0;
      for (size_t at = text.find(' ' + word); at != std::string::npos; at = text.find(' ' + word, at + 1)) ++n;
      return n;
    };
    const Asked& asked = exam.asked.front();
    for (const std::string& word : asked.answers) EXPECT_GE(times(word), 3) << name << ' ' << word;
    if (name == "frequent") {
      EXPECT_GT(times(asked.answers[0]), times(asked.answers[2]));
    }
  }
}

TEST(Exams, BadInput) {
  EXPECT_THROW(make_exam("oral", tokenizer(), book_text(), 4096, 1), Error);
  EXPECT_THROW(make_exam("book", tokenizer(), book_text(), 1000, 1), Error);
  EXPECT_THROW(make_exam("book", tokenizer(), "Too short.", 4096, 1), Error);
}

}  // namespace
}  // namespace sale::lm
