// The regular expression that cuts text into words before byte-pair merging.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace sale::lm {

// The pattern GPT-2's ByteLevel pre-tokenizer uses when it has no Split before it.
extern const char* const kGpt2Pattern;

class Splitter {
public:
  // A pattern as tokenizer.json spells it. \s and \S are given their Unicode meaning (White_Space), which is not quite
  // PCRE2's. An Error says `where` the pattern came from.
  Splitter(std::string_view pattern, const std::string& where);

  // Calls word(piece) for every match and every stretch between matches, in order: together they are the text, which
  // must be valid UTF-8.
  void split(std::string_view text, const std::function<void(std::string_view)>& word) const;

private:
  std::shared_ptr<const void> code_;
};

}  // namespace sale::lm
