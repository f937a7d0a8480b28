// Writing calibration files.
#include <fstream>

#include "fields.hpp"
#include "sale/calibration.hpp"

namespace sale {
inline namespace v0 {
namespace {

using files::Json;
using files::refuse;

// Shortest decimal that reads back as the same float.
double shortest(float x) {
  for (int digits = 6; digits < 9; ++digits) {
    char text[40];
    std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(x));
    if (std::strtof(text, nullptr) == x) return std::strtod(text, nullptr);
  }
  return static_cast<double>(x);
}

Json rows_of(const Calibration& c) {
  Json rows = Json::array();
  for (int32_t layer = 0; layer < c.model.layers; ++layer) {
    Json row = Json::array();
    for (float tau : c.layer_thresholds(layer)) row.push_back(shortest(tau));
    rows.push_back(row);
  }
  return rows;
}

void check_sizes(const Calibration& c) {
  const auto layers = static_cast<size_t>(c.model.layers);
  if (c.thresholds.size() != layers * static_cast<size_t>(c.model.q_heads))
    refuse("calibration: ", c.thresholds.size(), " thresholds; layers x q_heads are needed");
  const size_t floats = c.rank == c.model.head_dim
                            ? 0
                            : layers * static_cast<size_t>(c.model.kv_heads) * static_cast<size_t>(c.model.head_dim) *
                                  static_cast<size_t>(c.rank);
  if (c.q_projections.size() != floats || c.k_projections.size() != floats)
    refuse("calibration: projections of ", c.q_projections.size(), " and ", c.k_projections.size(), " numbers; ",
           floats, " are needed");
}

// By way of a second name, so that nobody reads half a file.
void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  const std::filesystem::path part = path.string() + ".part";
  {
    std::ofstream out(part, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.flush();
    if (!out) refuse(part.string(), ": cannot be written");
  }
  std::error_code error;
  std::filesystem::rename(part, path, error);
  if (error) refuse(path.string(), ": ", error.message());
}

}  // namespace

CalibrationBytes print_calibration(const Calibration& c, const std::string& file) {
  check_sizes(c);
  CalibrationBytes bytes;
  if (c.projected())
    bytes.projections = files::print_projections({c.model.layers, c.model.kv_heads, c.model.head_dim, c.rank},
                                                 c.q_projections, c.k_projections);
  Json j;
  j["schema"] = 1;
  j["library"] = c.library;
  j["model"] = {{"name", c.model.name},         {"layers", c.model.layers},
                {"q_heads", c.model.q_heads},   {"kv_heads", c.model.kv_heads},
                {"head_dim", c.model.head_dim}, {"fingerprint", files::hex64(c.model.fingerprint)}};
  j["estimator"] = {{"format", c.format == SALE_INT4   ? "int4"
                               : c.format == SALE_INT8 ? "int8"
                                                       : "fp8"},
                    {"rank", c.rank}};
  j["projections"] = nullptr;
  if (c.projected())
    j["projections"] = {{"file", file}, {"fingerprint", files::hex64(Fingerprint().add(bytes.projections).value())}};
  j["blocks"] = {{"query", SALE_Q_BLOCK},
                 {"key", SALE_K_BLOCK},
                 {"sink", c.sink},
                 {"local", c.local},
                 {"dense_below", c.dense_below}};
  j["thresholds"] = rows_of(c);
  Json prompts = Json::array();
  for (const CalibrationText& t : c.prompts) prompts.push_back({{"text", t.text}, {"tokens", t.tokens}});
  j["provenance"] = {{"prompts", prompts}, {"command", c.command}, {"date", c.date}, {"note", c.note}};
  j["error"] = {{"relative_l1_limit", c.relative_l1_limit},
                {"relative_l1", c.relative_l1},
                {"retained_mass", c.retained_mass},
                {"density", c.density}};
  bytes.json = j.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  // What is written is what the reader takes, whoever filled in the struct.
  static_cast<void>(parse_calibration(bytes.json, bytes.projections, "calibration"));
  return bytes;
}

void write_calibration(const std::filesystem::path& json, const Calibration& calibration) {
  std::filesystem::path projections = json;
  projections.replace_extension(".safetensors");
  const CalibrationBytes bytes = print_calibration(calibration, projections.filename().string());
  if (calibration.projected()) write_bytes(projections, bytes.projections);
  write_bytes(json, bytes.json);
}

}  // namespace v0
}  // namespace sale
