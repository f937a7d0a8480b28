// The regular expressions that cut text into words before byte-pair merging.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace sale::lm {

// The pattern GPT-2's ByteLevel pre-tokenizer cuts with.
extern const char* const kGpt2Pattern;

class Splitter {
public:
  // A pattern as tokenizer.json spells it. \s and \S are given their Unicode meaning (White_Space), which is not quite
  // PCRE2's. An Error says `where` the pattern came from.
  Splitter(std::string_view pattern, const std::string& where);

  // Calls piece(part, matched) for every match and every stretch between matches, in order: together they are the text,
  // which must be valid UTF-8. No part is empty.
  using Piece = std::function<void(std::string_view part, bool matched)>;

  // What matching needs, made once for many texts. One thread at a time.
  class Run {
  public:
    explicit Run(const Splitter& splitter);
    void split(std::string_view text, const Piece& piece);

  private:
    std::shared_ptr<const void> code_;
    std::shared_ptr<void> match_;
  };
  void split(std::string_view text, const Piece& piece) const { Run(*this).split(text, piece); }

private:
  std::shared_ptr<const void> code_;
};

}  // namespace sale::lm
