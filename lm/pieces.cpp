#include "lm/pieces.hpp"

#include <cctype>

#include "lm/error.hpp"

namespace sale::lm {
namespace {

constexpr size_t kMaxSteps = 32;
constexpr int kMaxDepth = 4;
constexpr size_t kMaxReplacement = 64;

// A pattern that stands for itself.
std::string literal(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = static_cast<unsigned char>(c) >= 0x80 || std::isalnum(static_cast<unsigned char>(c)) != 0;
    (out += plain ? "" : "\\") += c;
  }
  return out;
}

std::string pattern_of(const Fields& pattern) {
  return pattern.find("String") ? literal(pattern.text("String")) : pattern.text("Regex");
}

std::string short_text(const Fields& fields, std::string_view name, std::string otherwise, bool may_be_empty) {
  std::string text = fields.text_or(name, std::move(otherwise));
  if (text.size() > kMaxReplacement || (text.empty() && !may_be_empty))
    fail(fields.where(), ": ", name, " has ", text.size(), " bytes; ", may_be_empty ? 0 : 1, " to ", kMaxReplacement,
         " are allowed");
  return text;
}

}  // namespace

std::string replaced(std::string_view text, const std::string& what, const std::string& with) {
  std::string out;
  size_t done = 0;
  for (size_t found = text.find(what); found != std::string_view::npos; found = text.find(what, done)) {
    (out += text.substr(done, found - done)) += with;
    done = found + what.size();
  }
  return out += text.substr(done);
}

void Normalizer::read(const Fields& fields) {
  if (steps_.size() >= kMaxSteps) fail(fields.where(), ": more than ", kMaxSteps, " normalizers");
  const std::string type = fields.text("type");
  Step step{Kind::form, NormalForm::c, "", "", {}};
  if (type == "Sequence") {
    const Json& parts = fields.array("normalizers");
    if (parts.size() > kMaxSteps) fail(fields.where(), ": more than ", kMaxSteps, " normalizers");
    for (const Json& part : parts) {
      const Fields inner(part, fields.where());
      if (inner.text("type") == "Sequence") fail(fields.where(), ": a Sequence within a Sequence is not supported");
      read(inner);
    }
    return;
  }
  if (type == "Prepend") {
    step.kind = Kind::prepend;
    step.with = short_text(fields, "prepend", "", true);
  } else if (type == "Replace") {
    const Fields pattern = fields.object("pattern");
    step.kind = pattern.find("String") ? Kind::replace : Kind::replace_matches;
    if (step.kind == Kind::replace)
      step.what = short_text(pattern, "String", "", false);
    else
      step.pattern.emplace(pattern.text("Regex"), fields.where());
    step.with = short_text(fields, "content", "", true);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    step.form = type == "NFC"    ? NormalForm::c
                : type == "NFD"  ? NormalForm::d
                : type == "NFKC" ? NormalForm::kc
                                 : NormalForm::kd;
  } else {
    fail(fields.where(), ": type is ", in_quotes(type),
         "; NFC, NFD, NFKC, NFKD, Prepend, Replace and Sequence are supported");
  }
  steps_.push_back(std::move(step));
}

std::string Normalizer::operator()(std::string_view given) const {
  std::string text(given);
  for (const Step& step : steps_) {
    if (text.empty()) break;
    switch (step.kind) {
      case Kind::form: text = normalized(text, step.form); break;
      case Kind::prepend: text.insert(0, step.with); break;
      case Kind::replace: text = replaced(text, step.what, step.with); break;
      case Kind::replace_matches: {
        std::string out;
        step.pattern->split(
            text, [&](std::string_view part, bool matched) { out += matched ? step.with : std::string(part); });
        text = std::move(out);
      }
    }
    // Every replacement may grow the text: as far as encode() itself allows, no further.
    if (text.size() > static_cast<size_t>(INT32_MAX)) fail("normalized text of ", text.size(), " bytes is too long");
  }
  return text;
}

void PreTokenizer::read(const Fields& fields, int depth) {
  if (depth > kMaxDepth || steps_.size() >= kMaxSteps) fail(fields.where(), ": too many pre-tokenizers");
  const std::string type = fields.text("type");
  if (byte_level_) fail(fields.where(), ": ", in_quotes(type), " after ByteLevel is not supported");
  if (type == "Sequence") {
    for (const Json& part : fields.array("pretokenizers")) read({part, fields.where()}, depth + 1);
  } else if (type == "ByteLevel") {
    if (fields.boolean_or("add_prefix_space", true)) steps_.push_back({.kind = Kind::prefix_space});
    if (fields.boolean_or("use_regex", true))
      steps_.push_back({.kind = Kind::split, .splitter = Splitter(kGpt2Pattern, fields.where())});
    byte_level_ = true;
  } else if (type == "Digits") {
    const bool single = fields.boolean_or("individual_digits", false);
    steps_.push_back({.kind = Kind::split, .splitter = Splitter(single ? "\\p{N}" : "\\p{N}+", fields.where())});
  } else if (type == "Split") {
    read_split(fields);
  } else if (type == "Metaspace") {
    read_metaspace(fields);
  } else {
    fail(fields.where(), ": type is ", in_quotes(type),
         "; ByteLevel, Digits, Metaspace, Split and Sequence are supported");
  }
}

void PreTokenizer::read_split(const Fields& fields) {
  const std::string behavior = fields.text("behavior");
  Step step{.kind = Kind::split, .splitter = Splitter(pattern_of(fields.object("pattern")), fields.where())};
  step.invert = fields.boolean_or("invert", false);
  if (behavior == "Isolated")
    step.behavior = Behavior::isolated;
  else if (behavior == "Removed")
    step.behavior = Behavior::removed;
  else if (behavior == "MergedWithPrevious")
    step.behavior = Behavior::merged_with_previous;
  else if (behavior == "MergedWithNext")
    step.behavior = Behavior::merged_with_next;
  else if (behavior == "Contiguous")
    step.behavior = Behavior::contiguous;
  else
    fail(fields.where(), ": behavior is ", in_quotes(behavior),
         "; Isolated, Removed, MergedWithPrevious, MergedWithNext and Contiguous are allowed");
  steps_.push_back(std::move(step));
}

void PreTokenizer::read_metaspace(const Fields& fields) {
  Step step{.kind = Kind::metaspace};
  step.replacement = short_text(fields, "replacement", "", false);
  // Older files say add_prefix_space instead.
  const std::string scheme =
      fields.text_or("prepend_scheme", fields.boolean_or("add_prefix_space", true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never")
    fail(fields.where(), ": prepend_scheme is ", in_quotes(scheme), "; always, first and never are allowed");
  step.prepend = scheme == "always" ? Prepend::always : scheme == "first" ? Prepend::first : Prepend::never;
  step.behavior = Behavior::merged_with_next;
  if (fields.boolean_or("split", true)) step.splitter.emplace(literal(step.replacement), fields.where());
  steps_.push_back(std::move(step));
}

PreTokenizer::Cutter::Cutter(const PreTokenizer& pre) : pre_(pre) {
  for (const Step& step : pre.steps_) {
    runs_.emplace_back();
    if (step.splitter) runs_.back().emplace(*step.splitter);
  }
}

// Parts that go together are next to each other, so a word is a stretch of the text.
void PreTokenizer::arrange(const Step& step, Splitter::Run& run, std::string_view text,
                           std::vector<std::string_view>& out) {
  bool before = false;  // whether the part before this one matched
  bool open = false;    // whether the last word may still grow
  run.split(text, [&](std::string_view part, bool found) {
    const bool matched = found != step.invert;
    const auto grow = [&] { out.back() = {out.back().data(), out.back().size() + part.size()}; };
    switch (step.behavior) {
      case Behavior::isolated: out.push_back(part); break;
      case Behavior::removed:
        if (!matched) out.push_back(part);
        break;
      case Behavior::contiguous: open&& before == matched ? grow() : out.push_back(part); break;
      case Behavior::merged_with_previous: open&& matched && !before ? grow() : out.push_back(part); break;
      case Behavior::merged_with_next: open&& before && !matched ? grow() : out.push_back(part); break;
    }
    before = matched;
    open = true;
  });
}

const std::vector<std::string_view>& PreTokenizer::Cutter::cut(std::string_view text, bool at_start) {
  words_.assign(text.empty() ? 0 : 1, text);
  for (size_t i = 0; i < pre_.steps_.size(); ++i) {
    const Step& step = pre_.steps_[i];
    next_.clear();
    for (std::string_view word : words_) {
      if (step.kind == Kind::prefix_space && word.front() != ' ') word = made_.emplace_back(1, ' ').append(word);
      if (step.kind == Kind::metaspace) {
        const bool first = at_start && word.data() == text.data();
        std::string made = replaced(word, " ", step.replacement);
        if (!made.starts_with(step.replacement) &&
            (step.prepend == Prepend::always || (step.prepend == Prepend::first && first)))
          made.insert(0, step.replacement);
        word = made_.emplace_back(std::move(made));
      }
      if (runs_[i])
        arrange(step, *runs_[i], word, next_);
      else
        next_.push_back(word);
    }
    std::swap(words_, next_);
  }
  return words_;
}

}  // namespace sale::lm
