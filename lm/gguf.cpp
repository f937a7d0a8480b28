#include "lm/gguf.hpp"

#include <bit>
#include <cstring>
#include <fstream>

#include "lm/weights.hpp"

namespace sale::lm {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr int64_t kMaxDimensions = 4;
constexpr int64_t kMaxName = 256;
constexpr int64_t kMaxKeys = 65'536, kMaxTensors = 65'536;
constexpr int64_t kMaxArray = 1 << 22, kMaxValues = 1 << 24;  // of one array; of all metadata
constexpr int64_t kMaxText = 16'000'000;

enum ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };
constexpr int64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr uint32_t kTypes = 13;

// What is read next, and how much there is.
class Cursor {
public:
  Cursor(std::span<const std::byte> bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}
  int64_t position() const { return position_; }
  int64_t left() const { return ssize_of(bytes_) - position_; }

  uint64_t number(int64_t size, const std::string& what) {
    const auto* from = take(size, what);
    uint64_t value = 0;
    for (int64_t i = 0; i < size; ++i) value |= std::to_integer<uint64_t>(from[i]) << (8 * i);
    return value;
  }
  // At most `most`, and so many that `each` bytes of every one can still follow.
  int64_t count(int64_t each, int64_t most, const std::string& what) {
    const uint64_t value = number(8, what);
    const int64_t allowed = std::min(most, left() / each);
    if (value > static_cast<uint64_t>(allowed))
      fail(where_, ": ", what, " is ", value, "; at most ", allowed, " are allowed here");
    return static_cast<int64_t>(value);
  }
  std::string string(int64_t most, const std::string& what) {
    const int64_t length = count(1, most, what + ": length");
    const auto* from = take(length, what);
    return {reinterpret_cast<const char*>(from), at(length)};
  }

private:
  const std::byte* take(int64_t size, const std::string& what) {
    if (size > left())
      fail(where_, ": cut short: ", what, " needs ", size, " bytes at ", position_, "; ", left(), " are left");
    position_ += size;
    return bytes_.data() + position_ - size;
  }
  std::span<const std::byte> bytes_;
  std::string where_;
  int64_t position_ = 0;
};

Json scalar(Cursor& from, uint32_t type, const std::string& what) {
  if (type == text) return from.string(kMaxText, what);
  const uint64_t bits = from.number(kSizes[type], what);
  switch (type) {
    case i8: return static_cast<int8_t>(bits);
    case i16: return static_cast<int16_t>(bits);
    case i32: return static_cast<int32_t>(bits);
    case i64: return static_cast<int64_t>(bits);
    case f32: return std::bit_cast<float>(static_cast<uint32_t>(bits));
    case f64: return std::bit_cast<double>(bits);
    case boolean: return bits != 0;
    default: return bits;
  }
}

Json value(Cursor& from, int64_t& values, const std::string& what) {
  const auto check = [&](uint64_t type) {
    if (type >= kTypes) fail(what, ": value type is ", type, "; 0 to ", kTypes - 1, " are allowed");
    return static_cast<uint32_t>(type);
  };
  const uint32_t type = check(from.number(4, what + ": type"));
  if (type != array) return scalar(from, type, what);
  const uint32_t of = check(from.number(4, what + ": type of the array"));
  if (of == array) fail(what, ": an array of arrays is not supported");
  const int64_t count = from.count(of == text ? 8 : kSizes[of], kMaxArray, what + ": number of elements");
  if ((values += count) > kMaxValues) fail(what, ": more than ", kMaxValues, " values in the metadata");
  Json list = Json::array();
  list.get_ref<Json::array_t&>().reserve(at(count));
  for (int64_t i = 0; i < count; ++i) list.push_back(scalar(from, of, what));
  return list;
}

// Name, shape and type; the bytes are found when the start of the data is known.
struct Described {
  std::string name;
  GgufTensor tensor;
  int64_t bytes;
  uint64_t offset;
};

Described describe(Cursor& from, const std::string& file) {
  Described d;
  d.name = from.string(kMaxName, "tensor name");
  const std::string what = "tensor " + in_quotes(d.name), where = file + ": " + what;
  const uint64_t dimensions = from.number(4, what + ": number of dimensions");
  if (dimensions < 1 || dimensions > kMaxDimensions)
    fail(where, " has ", dimensions, " dimensions; 1 to ", kMaxDimensions, " are allowed");
  int64_t elements = 1, row = 0;
  for (uint64_t i = 0; i < dimensions; ++i) {
    const uint64_t n = from.number(8, what + ": dimension");
    if (n < 1 || n > static_cast<uint64_t>(INT64_MAX))
      fail(where, ": dimension ", i, " is ", n, "; at least 1 is allowed");
    if (i == 0) row = static_cast<int64_t>(n);
    elements = checked_mul(elements, static_cast<int64_t>(n), where + ": shape");
    d.tensor.shape.insert(d.tensor.shape.begin(), static_cast<int64_t>(n));
  }
  const auto type = static_cast<uint32_t>(from.number(4, what + ": type"));
  d.tensor.type = gguf_type(type);
  if (d.tensor.type == nullptr) fail(where, ": type ", type, " is unknown; ", readable_gguf_types(), " are read");
  if (row % d.tensor.type->block != 0)
    fail(where, ": rows of ", row, " weights; ", d.tensor.type->name, " needs a multiple of ", d.tensor.type->block);
  d.bytes = checked_mul(elements / d.tensor.type->block, d.tensor.type->bytes, where + ": shape");
  d.offset = from.number(8, what + ": offset");
  return d;
}

}  // namespace

// File: "GGUF" | version | tensor count | key count | keys and values | tensor descriptions | padding | data, to which
// the offsets are relative.
Gguf Gguf::open(const std::filesystem::path& path) {
  Gguf file;
  file.where_ = path.string();
  file.mapping_ = std::make_shared<Mapping>(path);
  file.metadata_ = Json::object();
  const std::span<const std::byte> bytes = file.mapping_->bytes();
  Cursor from(bytes, file.where_);
  if (bytes.size() < kMagic.size() || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
    fail(file.where_, ": does not begin with GGUF");
  from.number(4, "magic");
  const uint64_t version = from.number(4, "version");
  if (version != 2 && version != 3)
    fail(file.where_, ": version is ", version, "; 2 and 3, little endian, are supported");
  const int64_t tensors = from.count(25, kMaxTensors, "tensor count"), keys = from.count(13, kMaxKeys, "key count");
  int64_t values = 0;
  for (int64_t i = 0; i < keys; ++i) {
    const std::string key = from.string(kMaxName, "key");
    Json found = value(from, values, file.where_ + ": " + in_quotes(key));
    if (!file.metadata_.emplace(key, std::move(found)).second)
      fail(file.where_, ": the key ", in_quotes(key), " appears twice");
  }
  std::vector<Described> described;
  for (int64_t i = 0; i < tensors; ++i) described.push_back(describe(from, file.where_));
  const int64_t alignment = Fields(file.metadata_, file.where_).integer_or("general.alignment", 1, 1 << 20, 32);
  const int64_t start = checked_add(from.position(), alignment - 1, "data") / alignment * alignment;
  const int64_t size = std::max<int64_t>(0, ssize_of(bytes) - start);
  for (Described& d : described) {
    const std::string where = file.where_ + ": tensor " + in_quotes(d.name);
    if (d.offset % static_cast<uint64_t>(alignment) != 0)
      fail(where, ": offset is ", d.offset, "; a multiple of ", alignment, " is allowed");
    if (d.bytes > size || d.offset > static_cast<uint64_t>(size - d.bytes))
      fail(where, ": ", d.bytes, " bytes at ", d.offset, "; the file has ", size, " bytes of data (cut short?)");
    d.tensor.bytes = bytes.subspan(at(start) + d.offset, at(d.bytes));
    if (!file.tensors_.emplace(d.name, std::move(d.tensor)).second) fail(where, " appears twice");
  }
  return file;
}

std::vector<float> Gguf::floats(std::string_view name, const std::vector<int64_t>& shape) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) fail(where_, ": there is no tensor ", in_quotes(name));
  const GgufTensor& tensor = it->second;
  if (tensor.shape != shape)
    fail(where_, ": tensor ", in_quotes(name), " has shape ", shape_text(tensor.shape), "; ", shape_text(shape),
         " is expected");
  if (tensor.type->widen == nullptr)
    fail(where_, ": tensor ", in_quotes(name), " is ", tensor.type->name, "; ", readable_gguf_types(), " are read");
  std::vector<float> out(at(ssize_of(tensor.bytes) / tensor.type->bytes * tensor.type->block));
  dequantize(*tensor.type, tensor.bytes, out);
  return out;
}

bool is_gguf(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;
  char start[4] = {};
  std::ifstream(path, std::ios::binary).read(start, sizeof(start));
  return std::string_view(start, sizeof(start)) == kMagic || path.extension() == ".gguf";
}

}  // namespace sale::lm
