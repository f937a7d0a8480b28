// Code points of UTF-8 text, and Unicode's normal forms (ICU's).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sale::lm {

// Decodes the code point at `position` (moved past it). -1, and position unmoved, where the bytes are not UTF-8.
int32_t next_code_point(std::string_view text, size_t& position);

// Byte offset of the first bytes that are not UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

// Unicode's White_Space.
bool is_space(int32_t code_point);

enum class NormalForm { c, d, kc, kd };
// The text, which must be valid UTF-8, in that form.
std::string normalized(std::string_view text, NormalForm form);

}  // namespace sale::lm
