// One exam by one side.
#include <algorithm>

#include "lab/eval.hpp"

namespace sale::lab {
namespace {

bool is_made(const lm::Exam& exam, int64_t token) {
  return std::any_of(exam.made.begin(), exam.made.end(),
                     [&](const auto& m) { return token >= m.first && token < m.second; });
}

// Next tokens to be scored: those of the text that follow the text.
std::vector<int32_t> targets_of(const lm::Exam& exam) {
  std::vector<int32_t> targets(exam.context.size(), -1);
  for (size_t i = 0; i + 1 < targets.size(); ++i)
    if (!is_made(exam, static_cast<int64_t>(i)) && !is_made(exam, static_cast<int64_t>(i + 1)))
      targets[i] = exam.context[i + 1];
  return targets;
}

void add_losses(const std::vector<int32_t>& targets, const std::vector<float>& log_probs, Sitting& to) {
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] < 0) continue;
    Sitting::Loss& l = to.losses[i * to.losses.size() / targets.size()];
    l.sum -= static_cast<double>(log_probs[i]);
    ++l.count;
  }
}

// Whether each token of the answer is the most likely one after those before it: what greedy decoding would write.
double exact_score(LoadedModel& m, const lm::Asked& asked, lm::KVCache& cache, lm::Attention& attention) {
  const std::vector<int32_t> answer = m.tokenizer.encode(asked.answers.front(), false);
  std::vector<int32_t> ids = asked.question;
  ids.insert(ids.end(), answer.begin(), answer.end() - 1);
  lm::ForwardOptions options;
  options.logits = lm::Logits::all;
  const lm::ForwardResult result = m.model.forward(ids, cache, attention, options);
  const auto vocab = static_cast<std::ptrdiff_t>(result.logits.size() / ids.size());
  for (size_t i = 0; i < answer.size(); ++i) {
    const auto row = result.logits.begin() + static_cast<std::ptrdiff_t>(asked.question.size() - 1 + i) * vocab;
    const auto likeliest = static_cast<int32_t>(std::max_element(row, row + vocab) - row);
    // A token may hold the rest of the answer and what comes after it: '"' and a line's end.
    const std::string rest = m.tokenizer.decode(std::span(answer).subspan(i));
    if (m.tokenizer.bytes_of(likeliest).starts_with(rest)) return 1;
    if (likeliest != answer[i]) return 0;
  }
  return 1;
}

// The share of the answers that stand somewhere in what is generated.
double found_score(LoadedModel& m, const lm::Asked& asked, lm::KVCache& cache, lm::Attention& attention) {
  lm::GenerateOptions options;
  options.max_tokens = 16;
  for (const std::string& a : asked.answers)
    options.max_tokens += static_cast<int64_t>(m.tokenizer.encode(", " + a, false).size()) + 2;
  const lm::Generated made = generate_greedy(m.model, asked.question, cache, attention, options);
  const std::string text = m.tokenizer.decode(made.ids);
  const auto found = std::count_if(asked.answers.begin(), asked.answers.end(),
                                   [&](const std::string& a) { return text.find(a) != std::string::npos; });
  return static_cast<double>(found) / static_cast<double>(asked.answers.size());
}

}  // namespace

std::string Sitting::key() const { return fmt::format("{} {} {} {}", exam, tokens, context, side); }

Json json_of(const Sitting& s) {
  Json marks = Json::array(), losses = Json::array();
  for (const Sitting::Mark& m : s.marks) marks.push_back({m.task, m.depth, m.score});
  for (const Sitting::Loss& l : s.losses) losses.push_back({l.sum, l.count});
  return {{"exam", s.exam},           {"side", s.side},
          {"tokens", s.tokens},       {"context", s.context},
          {"prefill_s", s.prefill_s}, {"attention_s", s.attention_s},
          {"index_s", s.index_s},     {"select_s", s.select_s},
          {"attend_s", s.attend_s},   {"first_token_s", s.first_token_s},
          {"density", s.density},     {"marks", marks},
          {"losses", losses}};
}

Sitting sitting_of(const Json& j) {
  Sitting s;
  j.at("exam").get_to(s.exam), j.at("side").get_to(s.side), j.at("tokens").get_to(s.tokens);
  j.at("context").get_to(s.context), j.at("prefill_s").get_to(s.prefill_s), j.at("attention_s").get_to(s.attention_s);
  j.at("index_s").get_to(s.index_s), j.at("select_s").get_to(s.select_s), j.at("attend_s").get_to(s.attend_s);
  j.at("first_token_s").get_to(s.first_token_s), j.at("density").get_to(s.density);
  for (const Json& m : j.at("marks")) s.marks.push_back({m.at(0), m.at(1), m.at(2)});
  for (size_t i = 0; i < s.losses.size(); ++i) {
    const Json& l = j.at("losses").at(i);
    s.losses[i] = {l.at(0), l.at(1)};
  }
  return s;
}

Sitting sit(LoadedModel& m, const lm::Exam& exam, lm::KVCache& cache, lm::Attention& attention, bool losses,
            const std::function<void(Sitting&)>& prefilled) {
  cache.truncate(0);
  Sitting s;
  lm::ForwardOptions options;
  options.logits = lm::Logits::none;
  std::vector<int32_t> targets;
  if (losses) {
    targets = targets_of(exam);
    options.logits = lm::Logits::targets, options.targets = targets;
  }
  const lm::ForwardResult result = m.model.forward(exam.context, cache, attention, options);
  if (losses) add_losses(targets, result.log_probs, s);
  s.prefill_s = result.seconds, s.attention_s = result.attention_seconds;
  prefilled(s);
  const auto length = static_cast<int64_t>(exam.context.size());
  for (const lm::Asked& asked : exam.asked) {
    double score = 0;
    const double seconds = seconds_of(false, [&] {
      score = asked.exact ? exact_score(m, asked, cache, attention) : found_score(m, asked, cache, attention);
    });
    if (s.marks.empty()) s.first_token_s = s.prefill_s + seconds;
    s.marks.push_back({asked.task, asked.depth, score});
    cache.truncate(length);
    attention.truncate(length);
  }
  return s;
}

}  // namespace sale::lab
