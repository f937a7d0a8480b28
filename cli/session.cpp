#include "session.hpp"

#include <algorithm>
#include <chrono>

#include "command.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace sale::cli {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Task file_task(const PromptArguments& a, const LoadedModel& m) {
  Task task;
  task.context = m.tokenizer.encode(read_text(a.prompt_file));
  size_t longest = 0;
  for (const std::string& q : a.questions) {
    task.questions.push_back({q, m.tokenizer.encode(q, false), std::nullopt});
    longest = std::max(longest, task.questions.back().ids.size());
  }
  const int64_t positions = m.model.config().max_positions, asked = static_cast<int64_t>(longest);
  const auto whole = static_cast<int64_t>(task.context.size());
  // Nothing is cut unless somebody said where.
  if (a.tokens.empty() && whole + asked + 2 > positions)
    refuse(
        "--prompt-file: {} has {} tokens and the longest question {}; the model's {} positions are fewer. --tokens "
        "cuts the prompt",
        a.prompt_file, whole, asked, positions);
  if (a.tokens.empty()) return task;
  const int64_t tokens = parse_count("--tokens", a.tokens, 16, positions), room = tokens - asked;
  if (room < 1) refuse("--tokens: {} leaves no room for the questions ({} tokens)", tokens, asked);
  if (whole > room) task.context.resize(static_cast<size_t>(room));
  return task;
}

Task built_task(const PromptArguments& a, const LoadedModel& m) {
  if (!a.questions.empty()) refuse("--question: only with --prompt-file; a built prompt brings its own");
  lm::PromptSpec spec;
  spec.tokens = parse_count("--tokens", a.tokens.empty() ? "64k" : a.tokens, 16, m.model.config().max_positions);
  spec.facts = a.build == "passkey" ? 1 : a.facts;
  spec.seed = a.seed;
  lm::Prompt prompt;
  if (a.build == "json")
    prompt = lm::json_prompt(m.tokenizer, spec);
  else if (a.build == "passkey")
    prompt = lm::passkey_prompt(m.tokenizer, read_text(a.text), spec);
  else
    prompt = lm::needle_prompt(m.tokenizer, read_text(a.text), spec);
  Task task;
  task.context = std::move(prompt.context);
  for (lm::Fact& fact : prompt.facts) {
    std::string text = fact.question_text;
    std::vector<int32_t> ids = fact.question;
    task.questions.push_back({std::move(text), std::move(ids), std::move(fact)});
  }
  return task;
}

Answer ask(LoadedModel& m, const Task& task, const Question& question, lm::KVCache& cache, SaleAttention& attention) {
  lm::GenerateOptions options;
  options.max_tokens = task.new_tokens;
  std::string text;
  options.on_token = [&](int32_t id) {
    text += m.tokenizer.decode({&id, 1});
    // A known answer is over at the mark that ends it; a free one at the end of its line.
    return question.fact ? text.size() < question.fact->answer.size() : text.find('\n') == std::string::npos;
  };
  generate_greedy(m.model, question.ids, cache, attention, options);
  Answer answer;
  answer.text = text.substr(0, std::min(text.find('\n'), text.size()));
  if (question.fact) answer.right = lm::answers(*question.fact, text);
  return answer;
}

}  // namespace

int64_t Task::capacity() const {
  size_t longest = 0;
  for (const Question& q : questions) longest = std::max(longest, q.ids.size());
  return static_cast<int64_t>(context.size() + longest) + new_tokens + 1;
}

bool Outcome::all_right() const {
  return std::all_of(answers.begin(), answers.end(), [](const Answer& a) { return a.right.value_or(true); });
}

Task make_task(const PromptArguments& a, const LoadedModel& m) {
  const int64_t positions = m.model.config().max_positions;
  Task task = a.prompt_file.empty() ? built_task(a, m) : file_task(a, m);
  task.new_tokens = parse_count("--new-tokens", a.new_tokens, 1, positions);
  while (task.capacity() > positions && task.new_tokens > 1) --task.new_tokens;
  return task;
}

Outcome run_task(LoadedModel& m, const Task& task, lm::KVCache& cache, const AttentionSettings& settings,
                 const SessionOptions& o) {
  cache.truncate(0);
  SaleAttention attention(m.model.config(), settings, cache.capacity());
  attention.watch(o.prefill_watcher);
  Outcome outcome;
  {
    Progress progress(
        fmt::format("{} prefill of {} tokens", o.label, grouped(static_cast<int64_t>(task.context.size()))), o.quiet);
    lm::ForwardOptions forward;
    forward.logits = lm::Logits::none;
    forward.chunk = o.chunk;
    forward.progress = progress.callback();
    const lm::ForwardResult result = m.model.forward(task.context, cache, attention, forward);
    const double watched = attention.totals().watch_s;
    outcome.prefill_s = result.seconds - watched;
    outcome.attention_s = result.attention_seconds - watched;
  }
  outcome.totals = attention.totals();
  attention.watch(o.question_watcher);
  const double start = now();
  Progress progress(fmt::format("{} questions", o.label), o.quiet || task.questions.empty());
  for (size_t i = 0; i < task.questions.size(); ++i) {
    if (o.before_question) o.before_question(task.questions[i]);
    outcome.answers.push_back(ask(m, task, task.questions[i], cache, attention));
    cache.truncate(static_cast<int64_t>(task.context.size()));
    attention.truncate(static_cast<int64_t>(task.context.size()));
    progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(task.questions.size()));
  }
  outcome.questions_s = now() - start;
  outcome.backend = attention.backend();
  outcome.guard = attention.guard().steps();
  return outcome;
}

}  // namespace sale::cli
