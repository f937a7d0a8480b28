// The file of tensors: eight bytes of header length (little endian), a JSON header, the data.
// Exactly the tensors expected are accepted, so there is little to get wrong: no other types, no gaps, no overlaps.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "calibration/contents.hpp"
#include "calibration/fields.hpp"

namespace sale::calibration {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little endian");

// One of a layer's tensors.
struct Kind {
  const char* name;
  std::vector<int64_t> shape;
  std::vector<float> Contents::* values;
  double least;  // of its numbers; the most is 1e6
  size_t floats() const {
    // Extents are range-checked by the reader of the JSON (at most 65536 x 256 x 256), so this stays far below 2^63.
    size_t n = 1;
    for (int64_t extent : shape) n *= static_cast<size_t>(extent);
    return n;
  }
};

std::vector<Kind> kinds_of(const Contents& c, bool smoothing, bool scales) {
  std::vector<Kind> kinds;
  if (c.projected()) {
    kinds.push_back({"q_projection", {c.kv_heads, c.head_dim, c.rank}, &Contents::q_projections, -1e6});
    kinds.push_back({"k_projection", {c.kv_heads, c.head_dim, c.rank}, &Contents::k_projections, -1e6});
  }
  if (smoothing) kinds.push_back({"smoothing", {c.kv_heads, c.head_dim}, &Contents::smoothing, -1e6});
  if (scales) kinds.push_back({"scales", {c.kv_heads}, &Contents::scales, 1e-30});
  return kinds;
}

std::string tensor_name(int32_t layer, const char* which) { return "layer." + std::to_string(layer) + "." + which; }

void check_entry(Fields entry, const std::string& where, const Kind& kind) {
  if (entry.text("dtype", 16) != "F32") refuse(where, " is not F32");
  const Json& extents = entry.need("shape");
  const Json expected = kind.shape;
  if (extents != expected) refuse(where, " has shape ", in_quotes(extents.dump()), "; ", expected.dump(), " is needed");
}

// Appends the tensor at the beginning of `data` and refuses what is not a number.
void append(std::string_view data, const Kind& kind, const std::string& where, std::vector<float>& to) {
  const size_t old = to.size();
  to.resize(old + kind.floats());
  std::memcpy(to.data() + old, data.data(), kind.floats() * sizeof(float));
  for (size_t i = old; i < to.size(); ++i)
    if (!(static_cast<double>(to[i]) >= kind.least && to[i] <= 1e6f))
      refuse(where, " holds ", to[i], " at ", i - old, "; ", kind.least, " to 1e6 are allowed");
}

struct Place {
  size_t begin, end;
  std::string name;
};

// Every byte of the data belongs to one tensor.
void check_places(std::vector<Place> places, size_t bytes, const std::string& where) {
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
  size_t at = 0;
  for (const Place& p : places) {
    if (p.begin != at) refuse(where, ": ", p.name, ": data_offsets overlap another tensor, or leave a gap");
    at = p.end;
  }
  if (at != bytes) refuse(where, ": holds ", bytes, " bytes of data; its tensors have ", at);
}

}  // namespace

void add_tensors(Parsed& to, std::string_view bytes, const std::string& where) {
  if (fingerprint(bytes) != to.fingerprint)
    refuse(where, " is not the file this calibration was written with (fingerprint differs)");
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof header_bytes)
    refuse(where, ": has ", bytes.size(), " bytes; shorter than a safetensors header");
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > bytes.size() - sizeof header_bytes || header_bytes > max_json_bytes)
    refuse(where, ": header of ", header_bytes, " bytes does not fit");
  const Json header = parse_strict(bytes.substr(sizeof header_bytes, header_bytes), where);
  const std::string_view data = bytes.substr(sizeof header_bytes + header_bytes);

  Contents& c = to.contents;
  Fields fields(header, where);
  const std::vector<Kind> kinds = kinds_of(c, fields.has("layer.0.smoothing"), fields.has("layer.0.scales"));
  if (!c.projected() && kinds.empty())
    refuse(where, ": has no layer.0.smoothing; with rank head_dim there is nothing else to have a file for");
  size_t needed = 0;
  for (const Kind& k : kinds) needed += k.floats() * sizeof(float) * static_cast<size_t>(c.layers);
  if (data.size() != needed)
    refuse(where, ": holds ", data.size(), " bytes of data; ", kinds.size() * static_cast<size_t>(c.layers),
           " tensors of together ", needed, " bytes are needed");

  std::vector<Place> places;
  for (int32_t layer = 0; layer < c.layers; ++layer)
    for (const Kind& kind : kinds) {
      const std::string name = tensor_name(layer, kind.name);
      std::string here = where;
      here.append(": ").append(name);
      Fields entry = fields.object(name.c_str());
      check_entry(entry, here, kind);
      const Json& offsets = entry.need("data_offsets");
      if (!offsets.is_array() || offsets.size() != 2) refuse(here, ": data_offsets is not a pair of numbers");
      const size_t size = kind.floats() * sizeof(float);
      const auto begin = static_cast<size_t>(
          as_integer(offsets[0], here + ": data_offsets[0]", 0, static_cast<int64_t>(data.size() - size)));
      as_integer(offsets[1], here + ": data_offsets[1]", static_cast<int64_t>(begin + size),
                 static_cast<int64_t>(begin + size));
      places.push_back({begin, begin + size, name});
      append(data.substr(begin), kind, here, c.*kind.values);
    }
  check_places(std::move(places), data.size(), where);
  if (header.contains("__metadata__")) fields.object("__metadata__");
  fields.finish();
  if (!c.scales.empty() && c.smoothing.empty()) refuse(where, ": has scales without smoothing");
}

std::string print_tensors(const Contents& c) {
  Json header = Json::object();
  std::string data;
  const std::vector<Kind> kinds = kinds_of(c, !c.smoothing.empty(), !c.scales.empty());
  for (int32_t layer = 0; layer < c.layers; ++layer)
    for (const Kind& kind : kinds) {
      const size_t size = kind.floats() * sizeof(float);
      header[tensor_name(layer, kind.name)] = {
          {"dtype", "F32"}, {"shape", kind.shape}, {"data_offsets", {data.size(), data.size() + size}}};
      const float* from = (c.*kind.values).data() + static_cast<size_t>(layer) * kind.floats();
      data.append(reinterpret_cast<const char*>(from), size);
    }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // keeps the data aligned
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data;
}

}  // namespace sale::calibration
