// Reader of .safetensors files (one, or shards named by an index), memory-mapped, and a small writer.
//
// The files are not trusted: every number in the header is checked before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lm/mapping.hpp"
#include "lm/weights.hpp"

namespace sale::lm {

// All of the format's. Only f32, f16 and bf16 are read as numbers; the others may be in a file, unused.
enum class DType {
  f32,
  f16,
  bf16,
  i8,
  u8,
  i32,
  i64,
  boolean,
  i16,
  u16,
  u32,
  u64,
  f64,
  c64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f6_e2m3,
  f6_e3m2,
  f4
};
std::string_view name_of(DType type);
int64_t bits_of(DType type);

struct Tensor {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // inside the mapping; may lie at any alignment
  int64_t elements() const;          // the product of the shape
};

class SafeTensors final : public Weights {
public:
  // A .safetensors file, a model.safetensors.index.json, or a folder that holds model.safetensors or the index.
  static SafeTensors open(const std::filesystem::path& path);

  bool contains(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }
  const Tensor& get(std::string_view name) const;
  std::vector<std::string> names() const;
  // A floating tensor of exactly this shape as float; anything else is an Error that says what was found.
  std::vector<float> floats(std::string_view name, const std::vector<int64_t>& shape) const override;

private:
  using Tensors = std::map<std::string, Tensor, std::less<>>;
  static SafeTensors open_file(const std::filesystem::path& file);
  static SafeTensors open_index(const std::filesystem::path& index);
  static Tensors read_header(std::span<const std::byte> file, const std::string& where);

  std::string where_;
  std::vector<std::shared_ptr<const Mapping>> mappings_;
  Tensors tensors_;
};

struct NamedTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors);

}  // namespace sale::lm
