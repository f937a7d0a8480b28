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
std::string with_unicode_spaces(std::string_view pattern, const std::string& where) {
  static constexpr std::string_view spaces =
      R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 'S' && in_class) fail(where, ": \\S within [ ] is not supported");
      if (escaped == 's')
        (out += in_class ? "" : "[").append(spaces) += in_class ? "" : "]";
      else if (escaped == 'S')
        (out += "[^").append(spaces) += "]";
      else
        (out += c) += escaped;
      continue;
    }
    if (c == '[' && !in_class)
      in_class = true;
    else if (c == ']')
      in_class = false;
    out += c;
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
  const std::string text = with_unicode_spaces(pattern, where);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (!code) fail(where, ": the pattern ", in_quotes(pattern), " is refused: ", error_text(error));
  code_ = std::shared_ptr<const void>(code, [code](const void*) { pcre2_code_free(code); });
  pcre2_jit_compile(code,
                    PCRE2_JIT_COMPLETE);  // where there is no JIT, matching is interpreted: slower, the same result
}

void Splitter::split(std::string_view text, const std::function<void(std::string_view)>& word) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const MatchData match(code);
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(match.data);
  size_t done = 0, from = 0;
  while (from < text.size()) {
    const int count = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, match.data, match.context);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) fail("splitting text at byte ", from, ": ", error_text(count));
    const size_t begin = found[0], end = found[1];
    if (end <= begin) {  // an empty match: step over one character
      do ++from;
      while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80);
      continue;
    }
    if (begin > done) word(text.substr(done, begin - done));
    word(text.substr(begin, end - begin));
    done = from = end;
  }
  if (done < text.size()) word(text.substr(done));
}

}  // namespace sale::lm
