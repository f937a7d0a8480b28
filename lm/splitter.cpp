#include "lm/splitter.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "lm/error.hpp"

namespace sale::lm {

const char* const kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

constexpr size_t kMaxPattern = 10'000;
constexpr size_t kJitStack = size_t{16} << 20;

std::string error_text(int code) {
  char text[256] = {};
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof(text));
  return text;
}

// White_Space: PCRE2's \s would add U+180E.
std::string with_unicode_spaces(std::string_view pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    out += pattern[i];
    if (pattern[i] != '\\' || i + 1 == pattern.size()) continue;
    const char escaped = pattern[++i];
    if (escaped == 's' || escaped == 'S')
      (out += escaped == 's' ? 'p' : 'P') += "{White_Space}";
    else
      out += escaped;
  }
  return out;
}

struct MatchData {
  explicit MatchData(const pcre2_code* code)
      : data(pcre2_match_data_create_from_pattern(code, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(size_t{64} << 10, kJitStack, nullptr)) {
    if (!data || !context || !stack) throw std::bad_alloc();
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_match_limit(context, 10'000'000);
  }
  ~MatchData() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  MatchData(const MatchData&) = delete;
  MatchData& operator=(const MatchData&) = delete;
  pcre2_match_data* data;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

}  // namespace

Splitter::Splitter(std::string_view pattern, const std::string& where) {
  if (pattern.size() > kMaxPattern)
    fail(where, ": the pattern has ", pattern.size(), " bytes; at most ", kMaxPattern, " are allowed");
  const std::string text = with_unicode_spaces(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (!code) fail(where, ": the pattern ", in_quotes(pattern), " is refused: ", error_text(error));
  code_ = std::shared_ptr<const void>(code, [code](const void*) { pcre2_code_free(code); });
  pcre2_jit_compile(code,
                    PCRE2_JIT_COMPLETE);  // where there is no JIT, matching is interpreted: slower, the same result
}

Splitter::Run::Run(const Splitter& splitter)
    : code_(splitter.code_), match_(std::make_shared<MatchData>(static_cast<const pcre2_code*>(code_.get()))) {}

void Splitter::Run::split(std::string_view text, const Piece& piece) {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const MatchData& match = *static_cast<const MatchData*>(match_.get());
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(match.data);
  size_t done = 0, from = 0;
  while (from < text.size()) {
    const int count = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, match.data, match.context);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) fail("splitting text at byte ", from, ": ", error_text(count));
    const size_t begin = found[0], end = found[1];
    // An empty match only cuts, and right behind another match not even that: step over one character.
    if (begin > done) piece(text.substr(done, begin - done), false);
    if (end > begin) piece(text.substr(begin, end - begin), true);
    done = from = end;
    if (end > begin) continue;
    do ++from;
    while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80);
  }
  if (done < text.size()) piece(text.substr(done), false);
}

}  // namespace sale::lm
