// What was measured about one model, once, so that SALE can run it well: a threshold per layer and query head, the
// estimator they belong to, and the projections of a reduced one. Library sale::files; nothing here runs attention.
//
// On disk: one JSON file, and beside it, when the rank is below the head dimension, a safetensors file with F32 tensors
// layer.N.q_projection and layer.N.k_projection, [kv_heads, head_dim, rank] each.
//
//     {"schema": 1, "library": "0.1.0",
//      "model": {"name", "layers", "q_heads", "kv_heads", "head_dim", "fingerprint"},   16 hexadecimal digits
//      "estimator": {"format": "int4"|"int8"|"fp8", "rank"},                            rank head_dim: no projections
//      "projections": null | {"file", "fingerprint"},                                   a file name without folders
//      "blocks": {"query": 64, "key": 32, "sink", "local", "dense_below"},
//      "thresholds": [[one per query head], one row per layer],
//      "provenance": {"prompts": [{"text", "tokens"}], "command", "date", "note"},
//      "error": {"relative_l1_limit", "relative_l1", "retained_mass", "density"}}
//
// Files are not trusted. Unknown, missing and repeated fields, wrong counts, numbers out of range (NaN, infinity
// included) and files above the size limits are refused with a sentence that names the file and the field.
// Errors are sale::Error, SALE_INVALID_ARGUMENT.
#ifndef SALE_CALIBRATION_HPP
#define SALE_CALIBRATION_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sale/sale.hpp"

namespace sale {
inline namespace v0 {

// FNV-1a, 64 bits. A model's fingerprint is taken over, for each tensor of its safetensors file(s) in ascending order
// of the names' bytes: the name, a zero byte, the type as safetensors spells it ("BF16"), a zero byte, every extent in
// decimal followed by a comma, and the tensor's first min(64, size) bytes. It tells models of one shape apart without
// reading their weights through.
class Fingerprint {
public:
  Fingerprint& add(std::span<const std::byte> bytes) {
    for (std::byte b : bytes) hash_ = (hash_ ^ static_cast<uint64_t>(b)) * 0x100000001b3u;
    return *this;
  }
  Fingerprint& add(std::string_view text) { return add(std::as_bytes(std::span(text.data(), text.size()))); }
  Fingerprint& tensor(std::string_view name, std::string_view type, std::span<const int64_t> shape,
                      std::span<const std::byte> bytes);
  uint64_t value() const { return hash_; }

private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

struct ModelIdentity {
  std::string name;  // for people; not compared
  int32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  uint64_t fingerprint = 0;
};

struct CalibrationText {
  std::string text;  // a file's name, or words for what was generated
  int64_t tokens = 0;
};

struct Calibration {
  std::string library;  // version that wrote it
  ModelIdentity model;
  sale_format format = SALE_INT8;
  int32_t rank = 0;  // head_dim: all coordinates
  int32_t sink = 32, local = 128;
  int64_t dense_below = 1024;
  std::vector<float> thresholds;  // [layers, q_heads], 0 .. 1e6
  // Empty, or [layers, kv_heads, head_dim, rank].
  std::vector<float> q_projections, k_projections;

  // Where it came from, and what it reached on that text: for people.
  std::vector<CalibrationText> prompts;
  std::string command, date, note;
  double relative_l1_limit = 0, relative_l1 = 0, retained_mass = 1, density = 1;

  bool projected() const { return !q_projections.empty(); }
  std::span<const float> layer_thresholds(int32_t layer) const;
  std::span<const float> layer_q_projection(int32_t layer) const;  // empty when there is none
  std::span<const float> layer_k_projection(int32_t layer) const;
  // What a plan or index of that layer takes; add backend, threads and compute to it.
  Options options(int32_t layer) const;
};

// Reads the JSON and the projections file it names, in the same folder.
Calibration read_calibration(const std::filesystem::path& json);
// Writes both files; the second beside the first, with the extension .safetensors. Each appears whole or not at all.
void write_calibration(const std::filesystem::path& json, const Calibration& calibration);
// Throws when it was made for another model, naming the first thing that differs.
void check_model(const Calibration& calibration, const ModelIdentity& model);

// The same from and to memory. projections: the bytes of the safetensors file, empty when there is none; `where` and
// the file's name appear in messages.
Calibration parse_calibration(std::string_view json, std::string_view projections, const std::string& where);
struct CalibrationBytes {
  std::string json, projections;
};
CalibrationBytes print_calibration(const Calibration& calibration, const std::string& projections_file);
// The projections file a calibration names; "" when none.
std::string projections_file(std::string_view json, const std::string& where);

}  // namespace v0
}  // namespace sale

#endif  // SALE_CALIBRATION_HPP
