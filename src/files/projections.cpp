// The safetensors file of projections: eight bytes of header length (little endian), a JSON header, the data.
// Exactly the tensors expected are accepted, so there is little to get wrong: no other types, no gaps, no overlaps.
#include <bit>
#include <cmath>
#include <cstring>

#include "fields.hpp"

namespace sale::files {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little endian");

std::string tensor_name(int32_t layer, const char* which) {
  return "layer." + std::to_string(layer) + "." + which + "_projection";
}

// Extents are range-checked by the caller (at most 4096 x 65536 x 256 x 256), so this stays far below 2^63.
size_t tensor_floats(const ProjectionShape& s) {
  return static_cast<size_t>(s.kv_heads) * static_cast<size_t>(s.head_dim) * static_cast<size_t>(s.rank);
}

void check_entry(Fields entry, const std::string& where, const ProjectionShape& shape) {
  if (entry.text("dtype", 16) != "F32") refuse(where, " is not F32");
  const Json& extents = entry.need("shape");
  const Json expected = {shape.kv_heads, shape.head_dim, shape.rank};
  if (extents != expected) refuse(where, " has shape ", in_quotes(extents.dump()), "; ", expected.dump(), " is needed");
}

// Appends the tensor at data[begin, begin + size) and refuses what is not a number.
void append(std::string_view data, size_t begin, size_t floats, const std::string& where, std::vector<float>& to) {
  const size_t old = to.size();
  to.resize(old + floats);
  std::memcpy(to.data() + old, data.data() + begin, floats * sizeof(float));
  for (size_t i = old; i < to.size(); ++i)
    if (!(std::fabs(to[i]) <= 1e6f)) refuse(where, " holds ", to[i], " at ", i - old, "; -1e6 to 1e6 are allowed");
}

}  // namespace

void read_projections(std::string_view bytes, const std::string& where, const ProjectionShape& shape,
                      std::vector<float>& q, std::vector<float>& k) {
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof header_bytes)
    refuse(where, ": has ", bytes.size(), " bytes; shorter than a safetensors header");
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > bytes.size() - sizeof header_bytes || header_bytes > max_json_bytes)
    refuse(where, ": header of ", header_bytes, " bytes does not fit");
  const Json header = parse_strict(bytes.substr(sizeof header_bytes, header_bytes), where);
  const std::string_view data = bytes.substr(sizeof header_bytes + header_bytes);
  const size_t floats = tensor_floats(shape), size = floats * sizeof(float),
               tensors = 2 * static_cast<size_t>(shape.layers);
  if (data.size() != size * tensors)
    refuse(where, ": holds ", data.size(), " bytes of data; ", tensors, " tensors of ", size, " bytes are needed");

  // Every tensor stands at a multiple of `size`; no place twice, so all places are used.
  std::vector<bool> taken(tensors);
  Fields fields(header, where);
  for (int32_t layer = 0; layer < shape.layers; ++layer) {
    for (const char* which : {"q", "k"}) {
      const std::string name = tensor_name(layer, which);
      std::string here = where;
      here.append(": ").append(name);
      Fields entry = fields.object(name.c_str());
      check_entry(entry, here, shape);
      const Json& offsets = entry.need("data_offsets");
      if (!offsets.is_array() || offsets.size() != 2) refuse(here, ": data_offsets is not a pair of numbers");
      const auto begin = static_cast<size_t>(
          as_integer(offsets[0], here + ": data_offsets[0]", 0, static_cast<int64_t>(data.size() - size)));
      as_integer(offsets[1], here + ": data_offsets[1]", static_cast<int64_t>(begin + size),
                 static_cast<int64_t>(begin + size));
      if (begin % size != 0 || taken[begin / size]) refuse(here, ": data_offsets overlap another tensor");
      taken[begin / size] = true;
      append(data, begin, floats, here, *which == 'q' ? q : k);
    }
  }
  if (header.contains("__metadata__")) fields.object("__metadata__");
  fields.finish();
}

std::string print_projections(const ProjectionShape& shape, std::span<const float> q, std::span<const float> k) {
  const size_t floats = tensor_floats(shape), size = floats * sizeof(float);
  Json header = Json::object();
  std::string data;
  for (int32_t layer = 0; layer < shape.layers; ++layer) {
    for (const char* which : {"q", "k"}) {
      header[tensor_name(layer, which)] = {{"dtype", "F32"},
                                           {"shape", {shape.kv_heads, shape.head_dim, shape.rank}},
                                           {"data_offsets", {data.size(), data.size() + size}}};
      const float* from = (*which == 'q' ? q : k).data() + static_cast<size_t>(layer) * floats;
      data.append(reinterpret_cast<const char*>(from), size);
    }
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // keeps the data aligned
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data;
}

}  // namespace sale::files
