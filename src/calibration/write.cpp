// Writing calibration files.
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "calibration/contents.hpp"
#include "calibration/fields.hpp"

namespace sale::calibration {
namespace {

// Shortest decimal that reads back as the same float.
double shortest(float x) {
  for (int digits = 6; digits < 9; ++digits) {
    char text[40];
    std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(x));
    if (std::strtof(text, nullptr) == x) return std::strtod(text, nullptr);
  }
  return static_cast<double>(x);
}

Json rows_of(const Contents& c) {
  Json rows = Json::array();
  const auto heads = static_cast<size_t>(c.q_heads);
  for (size_t layer = 0; layer < static_cast<size_t>(c.layers); ++layer) {
    Json row = Json::array();
    for (size_t head = 0; head < heads; ++head) {
      const float tau = c.thresholds[layer * heads + head];
      row.push_back(tau == SALE_TAU_LOCAL ? Json("local") : Json(shortest(tau)));
    }
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

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

Printed print(const Contents& c, const std::string& file) {
  Printed bytes;
  Json j;
  j["schema"] = 1;
  j["library"] = c.library;
  j["model"] = {{"name", c.name},         {"layers", c.layers},     {"q_heads", c.q_heads},
                {"kv_heads", c.kv_heads}, {"head_dim", c.head_dim}, {"fingerprint", hex64(c.fingerprint)}};
  j["estimator"] = {{"format", format_name(c.format)}, {"rank", c.rank}};
  j["projections"] = nullptr;
  if (c.has_tensors()) {
    bytes.tensors = print_tensors(c);
    j["projections"] = {{"file", file}, {"fingerprint", hex64(fingerprint(bytes.tensors))}};
  }
  j["blocks"] = {{"query", SALE_Q_BLOCK},
                 {"key", SALE_K_BLOCK},
                 {"sink", c.sink},
                 {"local", c.local},
                 {"dense_below", c.dense_below}};
  j["thresholds"] = rows_of(c);
  Json prompts = Json::array();
  for (const Contents::Text& t : c.prompts) prompts.push_back({{"text", t.text}, {"tokens", t.tokens}});
  j["provenance"] = {{"prompts", prompts}, {"command", c.command}, {"date", c.date}, {"note", c.note}};
  j["error"] = {{"relative_l1_limit", c.relative_l1_limit},
                {"relative_l1", c.relative_l1},
                {"retained_mass", c.retained_mass},
                {"density", c.density}};
  bytes.json = j.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  // What is written is what the reader takes, whoever filled in the values.
  static_cast<void>(parse(bytes.json, bytes.tensors, "calibration"));
  return bytes;
}

void write(const std::filesystem::path& json, const Contents& contents) {
  std::filesystem::path tensors = json;
  tensors.replace_extension(".tensors");
  const Printed bytes = print(contents, tensors.filename().string());
  if (contents.has_tensors()) write_bytes(tensors, bytes.tensors);
  write_bytes(json, bytes.json);
}

}  // namespace sale::calibration
