// One long prompt, prefilled dense or sparse, and questions asked after it, each from the same cache.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lab/adapter.hpp"
#include "lab/model_files.hpp"
#include "lm/prompts.hpp"

namespace sale::lab {

struct Question {
  std::string text;
  std::vector<int32_t> ids;
  std::optional<lm::Fact> fact;  // with the expected answer, when there is one
};

struct Task {
  std::vector<int32_t> context;
  std::vector<Question> questions;
  int64_t new_tokens = 24;
  bool whole_answers = false;  // else a free answer ends with its line
  // KV cache: the context, the longest question, its answer.
  int64_t capacity() const;
};

struct PromptArguments {
  std::string tokens;  // "": the whole prompt; of a built one `usual`, or the model's positions if they are fewer
  std::string usual = "64k";
  std::string text = "", build = "needles", new_tokens;  // "": 24, or 512 with chat
  std::vector<std::string> prompt_files;                 // one after the other; "-": standard input
  std::vector<std::string> questions;
  bool chat = false;  // the model's chat template is put around prompt and question
  bool built() const { return prompt_files.empty() && !(chat && !questions.empty()); }
  int facts = 5;
  uint64_t seed = 1;
};
// The files' text, cut when `tokens` says so, with free questions; or a built prompt of that length with known answers.
// model: where its chat template is.
Task make_task(const PromptArguments& arguments, const LoadedModel& loaded, const std::filesystem::path& model);

struct Answer {
  std::string text;
  std::optional<bool> right;  // when the expected answer is known
};

// What one way of running the task gave.
struct Outcome {
  double prefill_s = 0, attention_s = 0, questions_s = 0;
  AttentionTotals totals;  // of the prefill
  std::string backend;
  std::vector<GuardStep> guard;  // of prefill and questions
  std::vector<Answer> answers;
  bool all_right() const;
};

struct SessionOptions {
  int64_t chunk = 0;
  bool quiet = false;
  std::string label;                    // "dense", "SALE": for the progress line
  Watcher* prefill_watcher = nullptr;   // sees the context
  Watcher* question_watcher = nullptr;  // sees the questions
  std::function<void(const Question&)> before_question = {};
  std::function<void(std::string_view)> stream = {};  // what is generated, as it is
};
// The cache is emptied first.
Outcome run_task(LoadedModel& model, const Task& task, lm::KVCache& cache, const AttentionSettings& settings,
                 const SessionOptions& options);

}  // namespace sale::lab
