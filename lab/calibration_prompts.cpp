#include "lab/calibration_prompts.hpp"

#include <algorithm>
#include <filesystem>

#include "lab/progress.hpp"
#include "lab/text.hpp"
#include "lm/prompts.hpp"

namespace sale::lab {
namespace {

void add_windows(const CalibrationArguments& a, const std::string& path, const LoadedModel& m, int64_t tokens,
                 std::vector<CalibrationPrompt>& to) {
  const std::string name = std::filesystem::path(path).filename().string();
  const std::vector<int32_t> all = m.tokenizer.encode(read_text(path), false);
  const std::vector<int32_t>& prefix = m.tokenizer.prefix();
  const int64_t need = tokens - static_cast<int64_t>(prefix.size()), spare = static_cast<int64_t>(all.size()) - need;
  if (spare < 0) refuse("--data: {} has {} tokens; --tokens asks for {}", path, all.size(), tokens);
  for (int w = 0; w < a.windows; ++w) {
    const int64_t from = a.windows > 1 ? spare * w / (a.windows - 1) : 0;
    CalibrationPrompt prompt{fmt::format("{} from token {}", name, from), prefix};
    prompt.tokens.insert(prompt.tokens.end(), all.begin() + from, all.begin() + from + need);
    to.push_back(std::move(prompt));
  }
}

// Context, then every question with its answer: the rows where retrieval happens are in the prompt.
CalibrationPrompt joined(std::string name, const lm::Prompt& prompt, const LoadedModel& m) {
  CalibrationPrompt p{std::move(name), prompt.context};
  for (const lm::Fact& fact : prompt.facts) {
    p.tokens.insert(p.tokens.end(), fact.question.begin(), fact.question.end());
    const auto answer = m.tokenizer.encode(fact.answer, false);
    for (size_t i = 0; i < answer.size(); ++i) p.asking.push_back(static_cast<int64_t>(p.tokens.size() + i) - 1);
    p.tokens.insert(p.tokens.end(), answer.begin(), answer.end());
  }
  return p;
}

}  // namespace

std::string prompt_words(const CalibrationArguments& a) {
  std::string words;
  for (const std::string& text : a.texts)
    words += fmt::format("--data {} ", std::filesystem::path(text).filename().string());
  return words + fmt::format("--tokens {} --windows {} --needles {} --json-prompts {} --seed {}", a.tokens, a.windows,
                             a.needles, a.json_prompts, a.seed);
}

std::vector<CalibrationPrompt> make_prompts(const CalibrationArguments& a, const LoadedModel& m) {
  constexpr int facts = 8;
  constexpr int64_t room = 1024;  // for the questions and answers of built prompts
  const int64_t tokens = parse_count("--tokens", a.tokens, 4096, m.model.config().max_positions);
  if (a.texts.empty() && a.needles > 0) refuse("--needles: {}, but there is no --data to hide them in", a.needles);
  if ((a.texts.empty() || a.windows == 0) && a.needles == 0 && a.json_prompts == 0)
    refuse("--json-prompts: 0, and nothing else asked for: nothing to calibrate on");
  std::vector<CalibrationPrompt> prompts;
  for (const std::string& path : a.texts) add_windows(a, path, m, tokens, prompts);
  lm::PromptSpec spec;
  spec.tokens = std::min(tokens, m.model.config().max_positions - room);
  spec.facts = facts;
  for (int i = 0; i < a.needles; ++i) {
    spec.seed = a.seed + static_cast<uint64_t>(i);
    prompts.push_back(joined(std::filesystem::path(a.texts[0]).filename().string() + " with needles",
                             lm::needle_prompt(m.tokenizer, read_text(a.texts[0]), spec), m));
  }
  for (int i = 0; i < a.json_prompts; ++i) {
    spec.seed = a.seed + static_cast<uint64_t>(i);
    prompts.push_back(joined("JSON key-value pairs", lm::json_prompt(m.tokenizer, spec), m));
  }
  return prompts;
}

Json calibration_json(const std::string& command, const Calibration& c) {
  Json j = json_head(command);
  j["model"] = c.model.name, j["fingerprint"] = fmt::format("{:016x}", c.model.fingerprint);
  j["estimator"] = print_estimator(c.format, c.rank, c.model.head_dim);
  j["again"] = c.command;
  j["prompts"] = Json::array();
  for (const auto& p : c.prompts) j["prompts"].push_back({{"text", p.text}, {"tokens", p.tokens}});
  return j;
}

void run_prompt(LoadedModel& m, const std::vector<int32_t>& tokens, lm::KVCache& cache, lm::Attention& attention,
                const std::string& name, bool quiet) {
  cache.truncate(0);
  attention.truncate(0);
  Progress progress(name, quiet);
  lm::ForwardOptions options;
  options.logits = lm::Logits::none;
  options.progress = progress.callback();
  m.model.forward(tokens, cache, attention, options);
}

}  // namespace sale::lab
