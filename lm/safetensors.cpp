#include "lm/safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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
  DType type;
  std::string_view name;
  int64_t size;
};
constexpr std::array<TypeRow, 7> kTypes{{{DType::f32, "F32", 4},
                                         {DType::f16, "F16", 2},
                                         {DType::bf16, "BF16", 2},
                                         {DType::i8, "I8", 1},
                                         {DType::u8, "U8", 1},
                                         {DType::i32, "I32", 4},
                                         {DType::i64, "I64", 8}}};

DType parse_type(const std::string& name, const std::string& where) {
  for (const TypeRow& row : kTypes)
    if (row.name == name) return row.type;
  fail(where, ": dtype is ", in_quotes(name), "; F32, F16, BF16, I8, U8, I32 and I64 are allowed");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

Tensor parse_tensor(const Json& entry, std::span<const std::byte> data, const std::string& where) {
  const Fields fields(entry, where);
  Tensor tensor;
  tensor.dtype = parse_type(fields.text("dtype"), where);
  const Json& shape = fields.array("shape");
  if (ssize_of(shape) > kMaxRank)
    fail(where, ": shape has ", shape.size(), " dimensions; at most ", kMaxRank, " are allowed");
  int64_t bytes = size_of(tensor.dtype);
  for (const Json& n : shape) {
    tensor.shape.push_back(as_integer(n, where + ": shape", 0, INT64_MAX));
    bytes = checked_mul(bytes, tensor.shape.back(), where + ": shape");
  }
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

std::string_view name_of(DType type) { return kTypes[static_cast<size_t>(type)].name; }
int64_t size_of(DType type) { return kTypes[static_cast<size_t>(type)].size; }
int64_t Tensor::elements() const { return ssize_of(bytes) / size_of(dtype); }

struct SafeTensors::Mapping {
  std::span<const std::byte> bytes;

  explicit Mapping(const std::filesystem::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail(path.string(), ": cannot be opened: ", std::strerror(errno));
    struct stat info{};
    const bool regular = ::fstat(file, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
    void* address = regular ? ::mmap(nullptr, at(info.st_size), PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    ::close(file);
    if (!regular) fail(path.string(), ": not a file with contents");
    if (address == MAP_FAILED) fail(path.string(), ": cannot be mapped: ", std::strerror(errno));
    bytes = {static_cast<const std::byte*>(address), at(info.st_size)};
  }
  ~Mapping() { ::munmap(const_cast<std::byte*>(bytes.data()), bytes.size()); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
};

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
  result.mappings_.push_back(std::make_shared<Mapping>(file));
  result.tensors_ = read_header(result.mappings_.back()->bytes, result.where_);
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
    int64_t bytes = size_of(tensor.dtype);
    for (int64_t n : tensor.shape) bytes = checked_mul(bytes, n, tensor.name);
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
