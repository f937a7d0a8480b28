// The tensor types of GGUF files: their sizes, and their values as float. Quantised types store blocks of 32 or 256
// weights of a row with one or more scales; values are those of the gguf package, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sale::lm {

struct GgufType {
  uint32_t number;  // in the file
  std::string_view name;
  int64_t block, bytes;                                       // weights and bytes of a block
  void (*widen)(const uint8_t* block, float* out) = nullptr;  // one block; null: known, but not read
};
// Null for a number that ggml does not have.
const GgufType* gguf_type(uint32_t number);
// The names of those with a `widen`, separated by commas.
std::string readable_gguf_types();

// Whole blocks; `out` has block / bytes times as many floats.
void dequantize(const GgufType& type, std::span<const std::byte> bytes, std::span<float> out);

}  // namespace sale::lm
