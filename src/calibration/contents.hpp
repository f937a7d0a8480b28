// A calibration's values, and its two forms on disk. Format: include/sale/calibration.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "sale/calibration.h"

namespace sale::calibration {

struct Contents {
  struct Text {
    std::string text;
    int64_t tokens = 0;
  };
  std::string library, name;
  int32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  uint64_t fingerprint = 0;
  sale_format format = SALE_INT8;
  int32_t rank = 0, sink = 32, local = 128;
  int64_t dense_below = 1024;
  std::vector<float> thresholds;                    // [layers, q_heads]
  std::vector<float> q_projections, k_projections;  // [layers, kv_heads, head_dim, rank], or empty
  std::vector<float> smoothing, scales;             // [layers, kv_heads, head_dim], [layers, kv_heads]; or empty
  std::vector<Text> prompts;
  std::string command, date, note;
  double relative_l1_limit = 0, relative_l1 = 0, retained_mass = 1, density = 1;

  bool projected() const { return rank < head_dim; }
  bool has_tensors() const { return !q_projections.empty() || !smoothing.empty(); }
};

constexpr size_t max_json_bytes = size_t{16} << 20;
constexpr size_t max_tensor_bytes = size_t{4} << 30;

// What the format takes, whoever asks: refuses with `what` in front of the sentence.
void check_rank(sale_format format, int64_t rank, int32_t head_dim, const std::string& what);
const char* format_name(sale_format format);

// The JSON; everything but the tensors, and which file has them.
struct Parsed {
  Contents contents;
  std::string file;  // "": none
  uint64_t fingerprint = 0;
};
Parsed parse_json(std::string_view json, const std::string& where);
// The tensors of that file.
void add_tensors(Parsed& to, std::string_view bytes, const std::string& where);
// All of it.
Contents parse(std::string_view json, std::string_view tensors, const std::string& where);
Contents read(const std::filesystem::path& json);

struct Printed {
  std::string json, tensors;
};
// Refuses what would not be read back.
Printed print(const Contents& contents, const std::string& file);
std::string print_tensors(const Contents& contents);
void write(const std::filesystem::path& json, const Contents& contents);

// By way of a second name, so that nobody reads half a file.
void write_bytes(const std::filesystem::path& path, std::string_view bytes);
std::string read_bytes(const std::filesystem::path& path, size_t most);

uint64_t fingerprint(std::string_view bytes);

}  // namespace sale::calibration
