// Reader of GGUF files (llama.cpp's), memory-mapped: versions 2 and 3, little endian.
//
// The files are not trusted: every count, length and offset is checked against what the file has before it is used, and
// nothing is allocated that the file's own size does not justify.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lm/dequantize.hpp"
#include "lm/json.hpp"
#include "lm/mapping.hpp"

namespace sale::lm {

struct GgufTensor {
  const GgufType* type = nullptr;
  std::vector<int64_t> shape;  // rows first, as Hugging Face has it: [out, in]
  std::span<const std::byte> bytes;
};

class Gguf {
public:
  static Gguf open(const std::filesystem::path& path);

  const std::string& where() const { return where_; }
  // "general.architecture" and so on. Arrays are JSON arrays; numbers and texts are JSON's.
  const Json& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }
  // A tensor of exactly this shape as float.
  std::vector<float> floats(std::string_view name, const std::vector<int64_t>& shape) const;

private:
  std::string where_;
  std::shared_ptr<const Mapping> mapping_;
  Json metadata_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

// A file that begins as GGUF files do, or is named so.
bool is_gguf(const std::filesystem::path& path);

}  // namespace sale::lm
