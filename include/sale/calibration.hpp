// Calibrations for C++20: a thin layer over calibration.h, where the format and the rules are told.
//
//     const sale::Calibration c = sale::read_calibration("calibration.json");
//     sale::Plan plan(problem, c.options(layer));
//
// Errors are sale::Error, SALE_INVALID_ARGUMENT, with a sentence that names the file and the field.
#ifndef SALE_CALIBRATION_HPP
#define SALE_CALIBRATION_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sale/calibration.h"
#include "sale/sale.hpp"

namespace sale {
inline namespace v0 {

// FNV-1a, 64 bits; what a model's is taken over: calibration.h.
class Fingerprint {
public:
  Fingerprint& add(std::span<const std::byte> bytes) {
    hash_ = sale_fingerprint(hash_, bytes.data(), bytes.size());
    return *this;
  }
  Fingerprint& add(std::string_view text) { return add(std::as_bytes(std::span(text.data(), text.size()))); }
  // One tensor of a model: bytes are all of it, or at least its first 64.
  Fingerprint& tensor(std::string_view name, std::string_view type, std::span<const int64_t> shape,
                      std::span<const std::byte> bytes) {
    const std::string_view zero("\0", 1);
    add(name).add(zero).add(type).add(zero);
    for (int64_t extent : shape) add(std::to_string(extent) + ",");
    return add(bytes.first(bytes.size() < 64 ? bytes.size() : 64));
  }
  uint64_t value() const { return hash_; }

private:
  uint64_t hash_ = SALE_FINGERPRINT_START;
};

struct ModelIdentity {
  std::string name;  // for people; not compared
  int32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  uint64_t fingerprint = 0;  // 0: unknown

  // Valid while this lives and is not changed.
  sale_model c() const { return {sizeof(sale_model), name.c_str(), layers, q_heads, kv_heads, head_dim, fingerprint}; }
};

struct CalibrationText {
  std::string text;  // a file's name, or words for what was generated
  int64_t tokens = 0;
};

// A calibration as a value; the fields are those of sale_calibration_data.
struct Calibration {
  std::string library;  // version that wrote it
  ModelIdentity model;
  sale_format format = SALE_INT8;
  int32_t rank = 0;  // head_dim: all coordinates
  int32_t sink = 32, local = 128;
  int64_t dense_below = 1024;
  std::vector<float> thresholds;                    // [layers, q_heads]
  std::vector<float> q_projections, k_projections;  // empty, or [layers, kv_heads, head_dim, rank]
  std::vector<float> smoothing;                     // empty, or [layers, kv_heads, head_dim]
  std::vector<float> scales;                        // empty, or [layers, kv_heads]

  std::vector<CalibrationText> prompts;
  std::string command, date, note;
  double relative_l1_limit = 0, relative_l1 = 0, retained_mass = 1, density = 1;

  bool projected() const { return !q_projections.empty(); }
  std::span<const float> layer_thresholds(int32_t layer) const { return slice(thresholds, layer, model.q_heads); }
  // Empty when there is none.
  std::span<const float> layer_q_projection(int32_t layer) const { return slice(q_projections, layer, matrix()); }
  std::span<const float> layer_k_projection(int32_t layer) const { return slice(k_projections, layer, matrix()); }

  std::span<const float> layer_smoothing(int32_t layer) const {
    return slice(smoothing, layer, model.kv_heads * model.head_dim);
  }
  std::span<const float> layer_scales(int32_t layer) const { return slice(scales, layer, model.kv_heads); }

  // What a plan or index of that layer takes; add backend, threads and compute to it.
  Options options(int32_t layer) const {
    if (layer < 0 || layer >= model.layers)
      throw Error(SALE_INVALID_ARGUMENT,
                  "layer: " + std::to_string(layer) + " is not in 0 .. " + std::to_string(model.layers - 1));
    Options o;
    // 1024, which calibrators write whatever the machine, leaves the length to the library.
    o.thresholds(layer_thresholds(layer)).sink(sink).local(local);
    o.dense_below(dense_below == 1024 ? SALE_AUTO : dense_below);
    if (projected())
      o.estimator(format, rank, layer_q_projection(layer), layer_k_projection(layer));
    else
      o.estimator(format);
    if (!smoothing.empty()) o.smoothing(layer_smoothing(layer), layer_scales(layer));
    return o;
  }

private:
  size_t matrix() const {
    return static_cast<size_t>(model.kv_heads) * static_cast<size_t>(model.head_dim) * static_cast<size_t>(rank);
  }
  template <class T>
  static std::span<const float> slice(const std::vector<float>& all, int32_t layer, T count) {
    const auto n = static_cast<size_t>(count);
    return all.empty() ? std::span<const float>() : std::span(all).subspan(static_cast<size_t>(layer) * n, n);
  }
};

// Owns a sale_calibration.
class CalibrationHandle {
public:
  explicit CalibrationHandle(sale_calibration* owned) : handle_(owned) {}

  static CalibrationHandle open(const std::filesystem::path& json) {
    sale_calibration* raw = nullptr;
    check(sale_calibration_open(json.string().c_str(), &raw));
    return CalibrationHandle(raw);
  }
  static CalibrationHandle of(const Calibration& c) {
    const auto counted = [](const std::vector<float>& v, int64_t n, const char* name) -> const float* {
      if (static_cast<int64_t>(v.size()) != n)
        throw Error(SALE_INVALID_ARGUMENT, "calibration: " + std::string(name) + " has " + std::to_string(v.size()) +
                                               " numbers; " + std::to_string(n) + " are needed");
      return v.empty() ? nullptr : v.data();
    };
    const ModelIdentity& m = c.model;
    const int64_t kv = int64_t{m.layers} * m.kv_heads, matrices = c.rank < m.head_dim ? kv * m.head_dim * c.rank : 0;
    std::vector<sale_calibration_text> texts;
    for (const CalibrationText& t : c.prompts) texts.push_back({t.text.c_str(), t.tokens});
    sale_calibration_data d{};
    d.struct_size = sizeof d, d.name = m.name.c_str();
    d.layers = m.layers, d.q_heads = m.q_heads, d.kv_heads = m.kv_heads, d.head_dim = m.head_dim;
    d.fingerprint = m.fingerprint, d.format = c.format, d.rank = c.rank, d.sink = c.sink, d.local = c.local;
    d.dense_below = c.dense_below;
    d.thresholds = counted(c.thresholds, int64_t{m.layers} * m.q_heads, "thresholds");
    d.q_projections = counted(c.q_projections, matrices, "q_projections");
    d.k_projections = counted(c.k_projections, matrices, "k_projections");
    d.smoothing = counted(c.smoothing, c.smoothing.empty() ? 0 : kv * m.head_dim, "smoothing");
    d.scales = counted(c.scales, c.scales.empty() ? 0 : kv, "scales");
    d.prompts = texts.data(), d.n_prompts = static_cast<int64_t>(texts.size());
    d.command = c.command.c_str(), d.date = c.date.c_str(), d.note = c.note.c_str();
    d.relative_l1_limit = c.relative_l1_limit, d.relative_l1 = c.relative_l1;
    d.retained_mass = c.retained_mass, d.density = c.density;
    sale_calibration* raw = nullptr;
    check(sale_calibration_create(&d, &raw));
    return CalibrationHandle(raw);
  }
  // Its values, copied.
  Calibration value() const {
    sale_calibration_data d{};
    d.struct_size = sizeof d;
    check(sale_calibration_get(get(), &d));
    const auto copied = [](const float* from, int64_t n) {
      return from == nullptr ? std::vector<float>() : std::vector<float>(from, from + n);
    };
    const int64_t kv = int64_t{d.layers} * d.kv_heads;
    Calibration c;
    c.library = d.library;
    c.model = {d.name, d.layers, d.q_heads, d.kv_heads, d.head_dim, d.fingerprint};
    c.format = d.format, c.rank = d.rank, c.sink = d.sink, c.local = d.local, c.dense_below = d.dense_below;
    c.thresholds = copied(d.thresholds, int64_t{d.layers} * d.q_heads);
    c.q_projections = copied(d.q_projections, kv * d.head_dim * d.rank);
    c.k_projections = copied(d.k_projections, kv * d.head_dim * d.rank);
    c.smoothing = copied(d.smoothing, kv * d.head_dim), c.scales = copied(d.scales, kv);
    for (int64_t i = 0; i < d.n_prompts; ++i) c.prompts.push_back({d.prompts[i].text, d.prompts[i].tokens});
    c.command = d.command, c.date = d.date, c.note = d.note;
    c.relative_l1_limit = d.relative_l1_limit, c.relative_l1 = d.relative_l1;
    c.retained_mass = d.retained_mass, c.density = d.density;
    return c;
  }
  sale_calibration* get() const noexcept { return handle_.get(); }

private:
  struct Free {
    void operator()(sale_calibration* p) const { sale_calibration_close(p); }
  };
  std::unique_ptr<sale_calibration, Free> handle_;
};

// Reads the JSON and the file it names, in the same folder.
inline Calibration read_calibration(const std::filesystem::path& json) { return CalibrationHandle::open(json).value(); }

// Writes both files; the second beside the first, with the extension .tensors. Each appears whole or not at all.
inline void write_calibration(const std::filesystem::path& json, const Calibration& calibration) {
  check(sale_calibration_write(CalibrationHandle::of(calibration).get(), json.string().c_str()));
}

// Throws when it was made for another model, naming the first thing that differs.
inline void check_model(const Calibration& calibration, const ModelIdentity& model) {
  const sale_model m = model.c();
  const std::string why = sale_calibration_why_not(CalibrationHandle::of(calibration).get(), &m);
  if (!why.empty()) throw Error(SALE_INVALID_ARGUMENT, why);
}

// The same from and to memory. tensors: the bytes of the second file, empty when there is none; `where` appears in
// messages.
inline Calibration parse_calibration(std::string_view json, std::string_view tensors, const std::string& where) {
  sale_calibration* raw = nullptr;
  check(sale_calibration_open_memory(json.data() == nullptr ? "" : json.data(), json.size(), tensors.data(),
                                     tensors.size(), where.c_str(), &raw));
  return CalibrationHandle(raw).value();
}

struct CalibrationBytes {
  std::string json, tensors;
};
// tensors_file: the name that the second file will have.
inline CalibrationBytes print_calibration(const Calibration& calibration, const std::string& tensors_file) {
  const CalibrationHandle handle = CalibrationHandle::of(calibration);
  CalibrationBytes bytes;
  size_t json = 0, tensors = 0;
  const auto print = [&] {
    check(sale_calibration_print(handle.get(), tensors_file.c_str(), bytes.json.data(), &json, bytes.tensors.data(),
                                 &tensors));
  };
  print();
  bytes.json.resize(json), bytes.tensors.resize(tensors);
  print();
  return bytes;
}

}  // namespace v0
}  // namespace sale

#endif  // SALE_CALIBRATION_HPP
