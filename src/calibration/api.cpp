// The C functions of calibration files.
#include <algorithm>
#include <memory>

#include "calibration/contents.hpp"
#include "calibration/fields.hpp"
#include "calibration/handle.hpp"
#include "calibration/structs.hpp"

namespace sale::calibration {
namespace {

std::string words(const char* text) { return text == nullptr ? "" : text; }

void copy(const float* from, int64_t count, std::vector<float>& to) {
  if (from != nullptr) to.assign(from, from + count);
}

void check_extent(const char* name, int64_t n, int64_t most) {
  require(n >= 1 && n <= most, "calibration.", name, ": ", n, " is not in 1 .. ", most);
}

// Counts are checked before the arrays are read by them; the rest by whoever reads what is printed.
Contents contents_of(const sale_calibration_data& d) {
  check_extent("layers", d.layers, 4096);
  check_extent("q_heads", d.q_heads, 65536);
  check_extent("kv_heads", d.kv_heads, d.q_heads);
  check_extent("head_dim", d.head_dim, 256);
  check_extent("rank", d.rank, d.head_dim);
  require(*format_name(d.format) != 0, "calibration.format: ", static_cast<int>(d.format),
          " is not SALE_INT4, SALE_FP4, SALE_INT8 or SALE_FP8");
  require(d.thresholds != nullptr, "calibration.thresholds: null; [layers, q_heads] are needed");
  const bool projected = d.rank < d.head_dim;
  require(projected == (d.q_projections != nullptr) && projected == (d.k_projections != nullptr),
          "calibration.q_projections, k_projections: ", projected ? "both are needed for" : "must be null for",
          " rank ", d.rank, " of ", d.head_dim);
  require(d.n_prompts >= 0 && d.n_prompts <= 1000 && (d.n_prompts == 0 || d.prompts != nullptr),
          "calibration.n_prompts: ", d.n_prompts, " is not in 0 .. 1000, or prompts is null");
  Contents c;
  c.library = sale_version(), c.name = words(d.name);
  c.layers = d.layers, c.q_heads = d.q_heads, c.kv_heads = d.kv_heads, c.head_dim = d.head_dim;
  c.fingerprint = d.fingerprint, c.format = d.format, c.rank = d.rank, c.sink = d.sink, c.local = d.local;
  c.dense_below = d.dense_below;
  const int64_t kv = int64_t{d.layers} * d.kv_heads;
  copy(d.thresholds, int64_t{d.layers} * d.q_heads, c.thresholds);
  copy(d.q_projections, kv * d.head_dim * d.rank, c.q_projections);
  copy(d.k_projections, kv * d.head_dim * d.rank, c.k_projections);
  copy(d.smoothing, kv * d.head_dim, c.smoothing);
  copy(d.scales, kv, c.scales);
  require(d.scales == nullptr || d.smoothing != nullptr, "calibration.scales: given without smoothing");
  for (int64_t i = 0; i < d.n_prompts; ++i) c.prompts.push_back({words(d.prompts[i].text), d.prompts[i].tokens});
  c.command = words(d.command), c.date = words(d.date), c.note = words(d.note);
  c.relative_l1_limit = d.relative_l1_limit, c.relative_l1 = d.relative_l1;
  c.retained_mass = d.retained_mass, c.density = d.density;
  return c;
}

const float* pointer(const std::vector<float>& all, int64_t offset = 0) {
  return all.empty() ? nullptr : all.data() + offset;
}

sale_calibration_data data_of(const sale_calibration& handle) {
  const Contents& c = handle.contents;
  sale_calibration_data d{};
  d.library = c.library.c_str(), d.name = c.name.c_str();
  d.layers = c.layers, d.q_heads = c.q_heads, d.kv_heads = c.kv_heads, d.head_dim = c.head_dim;
  d.fingerprint = c.fingerprint, d.format = c.format, d.rank = c.rank, d.sink = c.sink, d.local = c.local;
  d.dense_below = c.dense_below;
  d.thresholds = pointer(c.thresholds), d.q_projections = pointer(c.q_projections);
  d.k_projections = pointer(c.k_projections), d.smoothing = pointer(c.smoothing), d.scales = pointer(c.scales);
  d.prompts = handle.texts.data(), d.n_prompts = static_cast<int64_t>(handle.texts.size());
  d.command = c.command.c_str(), d.date = c.date.c_str(), d.note = c.note.c_str();
  d.relative_l1_limit = c.relative_l1_limit, d.relative_l1 = c.relative_l1;
  d.retained_mass = c.retained_mass, d.density = c.density;
  return d;
}

// The first thing that differs, or "".
std::string difference(const Contents& c, const sale_model& m) {
  const auto differ = [&](const char* what, const auto& theirs, const auto& ours) {
    return theirs == ours ? std::string()
                          : text("calibration: made for a model with ", what, " ", theirs, " ('", c.name,
                                 "'); this one has ", ours);
  };
  if (std::string s = differ("layers", c.layers, m.layers); !s.empty()) return s;
  if (std::string s = differ("q_heads", c.q_heads, m.q_heads); !s.empty()) return s;
  if (std::string s = differ("kv_heads", c.kv_heads, m.kv_heads); !s.empty()) return s;
  if (std::string s = differ("head_dim", c.head_dim, m.head_dim); !s.empty()) return s;
  return m.fingerprint == 0 ? "" : differ("fingerprint", hex64(c.fingerprint), hex64(m.fingerprint));
}

}  // namespace
}  // namespace sale::calibration

sale_calibration::sale_calibration(sale::calibration::Contents c) : contents(std::move(c)) {
  for (const auto& t : contents.prompts) texts.push_back({t.text.c_str(), t.tokens});
}

using namespace sale::calibration;
using sale::guarded;
using sale::require;

uint64_t sale_fingerprint(uint64_t hash, const void* bytes, size_t count) {
  const auto* at = static_cast<const unsigned char*>(bytes);
  for (size_t i = 0; i < count; ++i) hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
  return hash;
}

sale_status sale_calibration_open(const char* path, sale_calibration** calibration) {
  return guarded([&] {
    require(path != nullptr, "path: null");
    check_out(calibration, "calibration");
    *calibration = std::make_unique<sale_calibration>(read(path)).release();
  });
}

sale_status sale_calibration_open_memory(const char* json, size_t json_bytes, const void* tensors, size_t tensors_bytes,
                                         const char* where, sale_calibration** calibration) {
  return guarded([&] {
    require(json != nullptr, "json: null");
    require(tensors != nullptr || tensors_bytes == 0, "tensors: null, but ", tensors_bytes, " bytes of it");
    check_out(calibration, "calibration");
    *calibration =
        std::make_unique<sale_calibration>(parse({json, json_bytes}, {static_cast<const char*>(tensors), tensors_bytes},
                                                 where == nullptr ? "calibration" : where))
            .release();
  });
}

sale_status sale_calibration_create(const sale_calibration_data* data, sale_calibration** calibration) {
  return guarded([&] {
    const Contents contents = contents_of(taken(data, "calibration"));
    check_out(calibration, "calibration");
    // What it would be read as.
    const Printed bytes = print(contents, "calibration.tensors");
    *calibration = std::make_unique<sale_calibration>(parse(bytes.json, bytes.tensors, "calibration")).release();
  });
}

void sale_calibration_close(sale_calibration* calibration) { delete calibration; }

sale_status sale_calibration_get(const sale_calibration* calibration, sale_calibration_data* data) {
  return guarded([&] {
    require(calibration != nullptr, "calibration: null");
    give(data_of(*calibration), data, "data");
  });
}

sale_status sale_calibration_layer(const sale_calibration* calibration, int32_t layer,
                                   sale_calibration_layer_data* values) {
  return guarded([&] {
    require(calibration != nullptr, "calibration: null");
    const Contents& c = calibration->contents;
    require(layer >= 0 && layer < c.layers, "layer: ", layer, " is not in 0 .. ", c.layers - 1);
    sale_calibration_layer_data v{};
    v.format = c.format, v.rank = c.rank, v.sink = c.sink, v.local = c.local, v.dense_below = c.dense_below;
    const int64_t kv = int64_t{layer} * c.kv_heads;
    v.thresholds = pointer(c.thresholds, int64_t{layer} * c.q_heads);
    v.q_projection = pointer(c.q_projections, kv * c.head_dim * c.rank);
    v.k_projection = pointer(c.k_projections, kv * c.head_dim * c.rank);
    v.smoothing = pointer(c.smoothing, kv * c.head_dim);
    v.scales = pointer(c.scales, kv);
    give(v, values, "values");
  });
}

const char* sale_calibration_why_not(const sale_calibration* calibration, const sale_model* model) {
  thread_local std::string why;
  const sale_status status = guarded([&] {
    require(calibration != nullptr, "calibration: null");
    why = difference(calibration->contents, taken(model, "model"));
  });
  return status == SALE_OK ? why.c_str() : sale_last_error();
}

sale_status sale_calibration_write(const sale_calibration* calibration, const char* path) {
  return guarded([&] {
    require(calibration != nullptr, "calibration: null");
    require(path != nullptr && *path != '\0', "path: null or empty");
    write(path, calibration->contents);
  });
}

sale_status sale_calibration_print(const sale_calibration* calibration, const char* file, char* json,
                                   size_t* json_bytes, void* tensors, size_t* tensors_bytes) {
  return guarded([&] {
    require(calibration != nullptr, "calibration: null");
    check_out(json_bytes, "json_bytes");
    check_out(tensors_bytes, "tensors_bytes");
    require(json != nullptr || *json_bytes == 0, "json: null, but room for ", *json_bytes, " bytes");
    require(tensors != nullptr || *tensors_bytes == 0, "tensors: null, but room for ", *tensors_bytes, " bytes");
    const Printed bytes = print(calibration->contents, file == nullptr ? "" : file);
    const bool room = *json_bytes >= bytes.json.size() && *tensors_bytes >= bytes.tensors.size();
    if (room) {
      // Not ended by a zero: the size is told.
      if (json != nullptr) std::copy(bytes.json.begin(), bytes.json.end(), json);
      if (tensors != nullptr) std::copy(bytes.tensors.begin(), bytes.tensors.end(), static_cast<char*>(tensors));
    }
    *json_bytes = bytes.json.size(), *tensors_bytes = bytes.tensors.size();
  });
}
