#include "lm/safetensors.hpp"

#include <array>
#include <cstring>
#include <fstream>

#include "lm/bf16.hpp"
#include "lm/json.hpp"

namespace sale::lm {
namespace {

constexpr int64_t kMaxHeader = 100'000'000;
constexpr int64_t kMaxIndex = 64'000'000;
constexpr int64_t kMaxRank = 8;
constexpr size_t kMaxShards = 4096;

struct TypeRow {
  std::string_view name;
  int64_t bits;
};
// In the order of DType.
constexpr TypeRow kTypes[] = {{"F32", 32},    {"F16", 16},    {"BF16", 16},   {"I8", 8},      {"U8", 8},
                              {"I32", 32},    {"I64", 64},    {"BOOL", 8},    {"I16", 16},    {"U16", 16},
                              {"U32", 32},    {"U64", 64},    {"F64", 64},    {"C64", 64},    {"F8_E4M3", 8},
                              {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}};

DType parse_type(const std::string& name, const std::string& where) {
  std::string names;
  for (size_t i = 0; i < std::size(kTypes); ++i) {
    if (kTypes[i].name == name) return static_cast<DType>(i);
    names.append(i ? ", " : "") += kTypes[i].name;
  }
  fail(where, ": dtype is ", in_quotes(name), "; ", names, " are allowed");
}

int64_t bytes_needed(DType type, const std::vector<int64_t>& shape, const std::string& where) {
  int64_t bits = bits_of(type);
  for (const int64_t n : shape) bits = checked_mul(bits, n, where + ": shape");
  if (bits % 8 != 0) fail(where, ": shape ", shape_text(shape), " of ", name_of(type), " is no whole number of bytes");
  return bits / 8;
}

Tensor parse_tensor(const Json& entry, std::span<const std::byte> data, const std::string& where) {
  const Fields fields(entry, where);
  Tensor tensor;
  tensor.dtype = parse_type(fields.text("dtype"), where);
  const Json& shape = fields.array("shape");
  if (ssize_of(shape) > kMaxRank)
    fail(where, ": shape has ", shape.size(), " dimensions; at most ", kMaxRank, " are allowed");
  for (const Json& n : shape) tensor.shape.push_back(as_integer(n, where + ": shape", 0, INT64_MAX));
  const int64_t bytes = bytes_needed(tensor.dtype, tensor.shape, where);
  const Json& offsets = fields.array("data_offsets");
  if (offsets.size() != 2) fail(where, ": data_offsets has ", offsets.size(), " numbers; 2 are expected");
  const int64_t end = as_integer(offsets[1], where + ": data_offsets end", 0, ssize_of(data));
  const int64_t begin = as_integer(offsets[0], where + ": data_offsets begin", 0, end);
  if (end - begin != bytes)
    fail(where, ": data_offsets hold ", end - begin, " bytes; shape ", shape_text(tensor.shape), " of ",
         name_of(tensor.dtype), " needs ", bytes);
  tensor.bytes = data.subspan(at(begin), at(bytes));
  return tensor;
}

template <class Bits, float (*widen)(Bits)>
void widen_all(std::span<const std::byte> bytes, std::vector<float>& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
    out[i] = widen(bits);
  }
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

std::string_view name_of(DType type) { return kTypes[static_cast<size_t>(type)].name; }
int64_t bits_of(DType type) { return kTypes[static_cast<size_t>(type)].bits; }
int64_t Tensor::elements() const { return ssize_of(bytes) * 8 / bits_of(dtype); }

// File: 8 bytes header length, little endian | JSON header | data, to which the offsets are relative.
SafeTensors::Tensors SafeTensors::read_header(std::span<const std::byte> file, const std::string& where) {
  if (file.size() < 8) fail(where, ": ", file.size(), " bytes; a safetensors file has at least 8");
  uint64_t length = 0;
  for (size_t i = 0; i < 8; ++i) length |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  const auto most = static_cast<uint64_t>(std::min<int64_t>(kMaxHeader, ssize_of(file) - 8));
  if (length < 2 || length > most)
    fail(where, ": header length is ", length, "; 2 to ", most, " are allowed in this file");
  const auto* text = reinterpret_cast<const char*>(file.data()) + 8;
  if (*text != '{') fail(where, ": the header does not start with '{'");
  const Json header = parse_json({text, length}, where);
  const Fields fields(header, where);
  Tensors tensors;
  for (const auto& [name, entry] : header.items())
    if (name != "__metadata__")
      tensors.emplace(name, parse_tensor(entry, file.subspan(8 + length), where + ": tensor " + in_quotes(name)));
  return tensors;
}

SafeTensors SafeTensors::open_file(const std::filesystem::path& file) {
  SafeTensors result;
  result.where_ = file.string();
  result.mappings_.push_back(std::make_shared<const Mapping>(file));
  result.tensors_ = read_header(result.mappings_.back()->bytes(), result.where_);
  return result;
}

SafeTensors SafeTensors::open_index(const std::filesystem::path& index) {
  const Json json = read_json(index, kMaxIndex);
  const Json& map = Fields(json, index.string()).need("weight_map");
  if (!map.is_object()) fail(index.string(), ": weight_map is not an object");
  SafeTensors result;
  result.where_ = index.string();
  std::map<std::string, SafeTensors> shards;
  for (const auto& [name, shard] : map.items()) {
    const std::string where = index.string() + ": weight_map " + in_quotes(name);
    const std::string file = shard.is_string() ? shard.get<std::string>() : "";
    // The name comes from outside: it may only point into the same folder.
    if (file.empty() || file.find('/') != std::string::npos || file.find('\0') != std::string::npos ||
        !file.ends_with(".safetensors"))
      fail(where, " is ", in_quotes(shard.dump()), "; the name of a .safetensors file in the same folder is allowed");
    if (!shards.contains(file)) {
      if (shards.size() == kMaxShards) fail(where, ": more than ", kMaxShards, " shards");
      shards.emplace(file, open_file(index.parent_path() / file));
      result.mappings_.push_back(shards.at(file).mappings_.front());
    }
    result.tensors_.emplace(name, shards.at(file).get(name));
  }
  return result;
}

SafeTensors SafeTensors::open(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (fs::is_directory(path)) {
    const fs::path single = path / "model.safetensors", index = path / "model.safetensors.index.json";
    if (fs::exists(single)) return open_file(single);
    if (fs::exists(index)) return open_index(index);
    fail(path.string(), ": holds neither model.safetensors nor model.safetensors.index.json");
  }
  return path.extension() == ".json" ? open_index(path) : open_file(path);
}

const Tensor& SafeTensors::get(std::string_view name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) fail(where_, ": there is no tensor ", in_quotes(name));
  return it->second;
}

std::vector<std::string> SafeTensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

std::vector<float> SafeTensors::floats(std::string_view name, const std::vector<int64_t>& shape) const {
  const Tensor& tensor = get(name);
  if (tensor.shape != shape)
    fail(where_, ": tensor ", in_quotes(name), " has shape ", shape_text(tensor.shape), "; ", shape_text(shape),
         " is expected");
  std::vector<float> out(at(tensor.elements()));
  switch (tensor.dtype) {
    case DType::f32:
      if (!out.empty()) std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
      break;
    case DType::f16: widen_all<uint16_t, from_f16>(tensor.bytes, out); break;
    case DType::bf16: widen_all<uint16_t, from_bf16>(tensor.bytes, out); break;
    default:
      fail(where_, ": tensor ", in_quotes(name), " is ", name_of(tensor.dtype), "; F32, F16 or BF16 is expected");
  }
  return out;
}

void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors) {
  Json header = Json::object();
  int64_t offset = 0;
  for (const NamedTensor& tensor : tensors) {
    const int64_t bytes = bytes_needed(tensor.dtype, tensor.shape, tensor.name);
    if (bytes != ssize_of(tensor.bytes))
      fail(path.string(), ": tensor ", in_quotes(tensor.name), " has ", tensor.bytes.size(), " bytes; its shape needs ",
           bytes);
    if (header.contains(tensor.name)) fail(path.string(), ": tensor ", in_quotes(tensor.name), " is given twice");
    header[tensor.name] = {
        {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset = checked_add(offset, bytes, tensor.name);
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data starts at a multiple of 8
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (size_t i = 0; i < 8; ++i) file.put(static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i)));
  file << text;
  for (const NamedTensor& tensor : tensors)
    file.write(reinterpret_cast<const char*>(tensor.bytes.data()), static_cast<std::streamsize>(tensor.bytes.size()));
  file.close();
  if (!file) fail(path.string(), ": cannot be written");
}

}  // namespace sale::lm
