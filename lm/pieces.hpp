// What is done to a text before byte-pair merging: normalizers rewrite it, pre-tokenizers cut it into words. The kinds
// of tokenizer.json (Hugging Face's tokenizers) that are supported; any other is refused by name.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lm/json.hpp"
#include "lm/splitter.hpp"
#include "lm/unicode.hpp"

namespace sale::lm {

// Every `what`, which is not empty, replaced.
std::string replaced(std::string_view text, const std::string& what, const std::string& with);

// NFC, NFD, NFKC, NFKD, Prepend, Replace, and sequences of these.
class Normalizer {
public:
  Normalizer() = default;
  explicit Normalizer(const Fields& fields) { read(fields); }
  bool empty() const { return steps_.empty(); }
  std::string operator()(std::string_view text) const;

private:
  enum class Kind { form, prepend, replace, replace_matches };
  struct Step {
    Kind kind;
    NormalForm form = NormalForm::c;
    std::string what, with;           // replace; prepend: with
    std::optional<Splitter> pattern;  // replace_matches
  };
  void read(const Fields& fields);
  std::vector<Step> steps_;
};

// ByteLevel, Digits, Metaspace, Split, and sequences of these.
class PreTokenizer {
public:
  PreTokenizer() = default;
  explicit PreTokenizer(const Fields& fields) { read(fields); }
  // Whether words are bytes (ByteLevel) or characters (the others).
  bool byte_level() const { return byte_level_; }

  // Cuts texts into words, one text after another. What it returns lives as long as the cutter and the text do.
  class Cutter {
  public:
    explicit Cutter(const PreTokenizer& pre);
    // at_start: nothing of the whole input stands before this text.
    const std::vector<std::string_view>& cut(std::string_view text, bool at_start);

  private:
    const PreTokenizer& pre_;
    std::vector<std::optional<Splitter::Run>> runs_;  // by step
    std::deque<std::string> made_;                    // words that are not part of the text
    std::vector<std::string_view> words_, next_;
  };

private:
  enum class Kind { split, prefix_space, metaspace };
  enum class Behavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };
  enum class Prepend { always, first, never };
  struct Step {
    Kind kind;
    std::optional<Splitter> splitter = {};  // split; metaspace when it cuts
    Behavior behavior = Behavior::isolated;
    bool invert = false;
    std::string replacement = {};  // metaspace
    Prepend prepend = Prepend::always;
  };
  void read(const Fields& fields, int depth = 0);
  void read_split(const Fields& fields);
  void read_metaspace(const Fields& fields);
  static void arrange(const Step& step, Splitter::Run& run, std::string_view text, std::vector<std::string_view>& out);
  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace sale::lm
