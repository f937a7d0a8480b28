// Can a text be taken as it is where a tokenizer asks for Unicode normal form C?
#pragma once

#include <cstdint>
#include <string_view>

namespace sale::lm {

// Decodes the code point at `position` (moved past it). -1, and position unmoved, where the bytes are not UTF-8.
int32_t next_code_point(std::string_view text, size_t& position);

// Byte offset of the first bytes that are not UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

// Byte offset of the first code point whose NFC_Quick_Check is No or Maybe (Unicode 14), or npos: before it, NFC
// changes nothing except the order of two combining marks in the wrong order, which is not looked for.
size_t find_nfc_doubt(std::string_view text);

}  // namespace sale::lm
