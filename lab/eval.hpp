// sale eval: exams of many lengths, taken dense and by every calibration given; kept as they come, shown as tables.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lab/answers.hpp"
#include "lm/exams.hpp"

namespace sale::lab {

// One exam taken by one side. A line of results.jsonl.
struct Sitting {
  std::string exam, side;  // "book"; "dense" or a calibration's name
  int64_t tokens = 0;      // as asked for
  int context = 0;         // number of the context, from 0
  double prefill_s = 0, attention_s = 0, index_s = 0, select_s = 0, attend_s = 0;
  double first_token_s = 0;  // prefill and first question
  double density = 1;
  struct Mark {
    std::string task;
    double depth, score;  // 0 .. 1
  };
  std::vector<Mark> marks;
  // Of the text's own tokens, in eighths of the context: sum of -log p, and how many.
  struct Loss {
    double sum = 0;
    int64_t count = 0;
  };
  std::array<Loss, 8> losses{};

  std::string key() const;
};

struct EvalPlan {
  std::vector<std::string> tasks, exams, sides;  // sides: dense first
  std::vector<int64_t> lengths;
  bool perplexity = false;
};

// eval_run.cpp
// losses: also of the text itself. prefilled: called between the context and the first question.
Sitting sit(LoadedModel& model, const lm::Exam& exam, lm::KVCache& cache, lm::Attention& attention, bool losses,
            const std::function<void(Sitting&)>& prefilled);

using Done = std::map<std::string, Sitting>;  // by key
Json json_of(const Sitting& sitting);
Sitting sitting_of(const Json& json);

// eval_report.cpp
std::string markdown_of(const EvalPlan& plan, const Done& done, const Json& settings);
Json summary_of(const EvalPlan& plan, const Done& done);
// Share of right answers of the needle tasks by length and depth, one side.
std::string heatmap_of(const EvalPlan& plan, const Done& done, const std::string& side);

}  // namespace sale::lab
