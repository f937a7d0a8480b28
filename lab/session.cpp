#include "lab/session.hpp"

#include <algorithm>
#include <chrono>

#include "lab/progress.hpp"
#include "lab/refuse.hpp"
#include "lab/text.hpp"
#include "lm/chat.hpp"

namespace sale::lab {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string prompt_text(const PromptArguments& a) {
  std::string text;
  for (const std::string& file : a.prompt_files) {
    if (!text.empty() && text.back() != '\n') text += '\n';
    text += read_text(file);
  }
  return text;
}

constexpr int64_t end_room = 2;  // the cache's spare token, and one of an answer

Task file_task(const PromptArguments& a, const LoadedModel& m, const std::filesystem::path& model, int64_t answer) {
  Task task;
  std::string text = prompt_text(a);
  const std::string names =
      a.prompt_files.empty() ? "the prompt" : fmt::format("{}", fmt::join(a.prompt_files, " and "));
  std::vector<std::string> questions = a.questions;
  std::optional<lm::Chat> chat;
  if (a.chat) {
    chat = lm::Chat::load(model);
    if (questions.empty()) questions.emplace_back();  // the text is the question
    if (!text.empty() && !a.questions.empty()) text += "\n\n";
  }
  size_t longest = 0;
  for (const std::string& q : questions) {
    const std::string asked = chat ? chat->ask("", q).second : q;
    task.questions.push_back({q, m.tokenizer.encode(asked, false), std::nullopt});
    longest = std::max(longest, task.questions.back().ids.size());
  }
  if (chat)
    task.context = m.tokenizer.encode(chat->ask(text, "").first, false);
  else
    task.context = m.tokenizer.encode(text);
  const int64_t positions = m.model.config().max_positions, asked = static_cast<int64_t>(longest);
  const auto whole = static_cast<int64_t>(task.context.size());
  // Nothing is cut unless somebody said where.
  if (a.tokens.empty() && whole + asked + end_room > positions)
    refuse(
        "--prompt-file: {} has {} tokens and the longest question {}; the model's {} positions are fewer. --tokens "
        "cuts the prompt",
        names, whole, asked, positions);
  if (a.tokens.empty()) return task;
  const int64_t tokens = parse_count("--tokens", a.tokens, 16, positions),
                room = std::min(tokens, positions - answer - 1) - asked;
  if (room < 1) refuse("--tokens: {} leaves no room for the questions ({} tokens)", tokens, asked);
  if (whole > room) task.context.resize(static_cast<size_t>(room));
  return task;
}

Task built_task(const PromptArguments& a, const LoadedModel& m) {
  if (!a.questions.empty()) refuse("--question: only with --prompt-file; a built prompt brings its own");
  if (a.chat) refuse("--chat: only with --prompt-file or --question; a built prompt is no conversation");
  lm::PromptSpec spec;
  spec.tokens = parse_tokens("--tokens", a.tokens, a.usual, 16, m.model.config().max_positions);
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

Answer ask(LoadedModel& m, const Task& task, const Question& question, lm::KVCache& cache, SaleAttention& attention,
           const std::function<void(std::string_view)>& stream) {
  lm::GenerateOptions options;
  options.max_tokens = task.new_tokens;
  std::string text;
  options.on_token = [&](int32_t id) {
    text += m.tokenizer.bytes_of(id);
    if (stream) stream(m.tokenizer.bytes_of(id));
    // A known answer is over at the mark that ends it; a free one at the end of its line.
    return question.fact        ? text.size() < question.fact->answer.size()
           : task.whole_answers ? true
                                : text.find('\n') == std::string::npos;
  };
  generate_greedy(m.model, question.ids, cache, attention, options);
  Answer answer;
  answer.text = task.whole_answers ? text : text.substr(0, std::min(text.find('\n'), text.size()));
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

Task make_task(const PromptArguments& a, const LoadedModel& m, const std::filesystem::path& model) {
  const int64_t positions = m.model.config().max_positions;
  const bool chat = a.chat && !a.built();
  // What is usual fits into small models too; what somebody asks for is taken literally.
  const int64_t answer = a.new_tokens.empty() ? std::min<int64_t>(chat ? 512 : 24, std::max<int64_t>(1, positions / 4))
                                              : parse_count("--new-tokens", a.new_tokens, 1, positions);
  Task task = a.built() ? built_task(a, m) : file_task(a, m, model, answer);
  task.new_tokens = answer;
  task.whole_answers = chat;
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
  Progress progress(fmt::format("{} questions", o.label), o.quiet || o.stream || task.questions.empty());
  for (size_t i = 0; i < task.questions.size(); ++i) {
    if (o.before_question) o.before_question(task.questions[i]);
    outcome.answers.push_back(ask(m, task, task.questions[i], cache, attention, o.stream));
    cache.truncate(static_cast<int64_t>(task.context.size()));
    attention.truncate(static_cast<int64_t>(task.context.size()));
    progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(task.questions.size()));
  }
  outcome.questions_s = now() - start;
  outcome.backend = attention.backend();
  outcome.guard = attention.guard().steps();
  return outcome;
}

}  // namespace sale::lab
