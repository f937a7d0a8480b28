#include "lm/unicode.hpp"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>

#include "lm/error.hpp"

namespace sale::lm {

int32_t next_code_point(std::string_view text, size_t& position) {
  const auto byte = [&](size_t i) { return static_cast<int32_t>(static_cast<unsigned char>(text[i])); };
  const int32_t lead = byte(position);
  if (lead < 0x80) {
    ++position;
    return lead;
  }
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() - position < length) return -1;
  int32_t code = lead & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(position + i) & 0xc0) != 0x80) return -1;
    code = (code << 6) | (byte(position + i) & 0x3f);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  if (overlong || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return -1;
  position += length;
  return code;
}

size_t find_invalid_utf8(std::string_view text) {
  for (size_t position = 0; position < text.size();)
    if (next_code_point(text, position) < 0) return position;
  return std::string_view::npos;
}

bool is_space(int32_t code_point) { return u_hasBinaryProperty(code_point, UCHAR_WHITE_SPACE); }

std::string normalized(std::string_view text, NormalForm form) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = form == NormalForm::c    ? icu::Normalizer2::getNFCInstance(status)
                                       : form == NormalForm::d  ? icu::Normalizer2::getNFDInstance(status)
                                       : form == NormalForm::kc ? icu::Normalizer2::getNFKCInstance(status)
                                                                : icu::Normalizer2::getNFKDInstance(status);
  std::string out;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  if (U_SUCCESS(status))
    normalizer->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, nullptr,
                              status);
  if (U_FAILURE(status)) fail("normal form: ICU says ", u_errorName(status));
  return out;
}

}  // namespace sale::lm
