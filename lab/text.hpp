// Small things about text: numbers with suffixes, files, escaping, time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "sale/sale.hpp"

namespace sale::lab {

// "65536", "64k", "1m" (binary, as in problem lines); `what` names the argument in the refusal.
int64_t parse_count(const std::string& what, std::string_view text, int64_t least, int64_t most);

// A length in tokens: the text, or `otherwise` where it is empty, which is as much as the model has positions for.
int64_t parse_tokens(const std::string& what, std::string_view text, std::string_view otherwise, int64_t least,
                     int64_t positions);

// "int8:64", "fp8:28", "int4", "fp4".
struct EstimatorName {
  sale_format format = SALE_INT8;
  int32_t rank = 0;  // 0: all coordinates
};
EstimatorName parse_estimator(const std::string& what, std::string_view text);
std::string print_estimator(sale_format format, int32_t rank, int32_t head_dim);

// A file, or stdin for "-".
std::string read_text(const std::filesystem::path& path);
void write_text(const std::filesystem::path& path, std::string_view text);
// Problem lines of a file: comments (#) and empty lines left out.
std::vector<std::string> read_lines(const std::filesystem::path& path);

std::string base64(std::string_view bytes);
std::string escape_html(std::string_view text);
// One line, quotes around it, control characters shown, cut to `most` bytes.
std::string show(std::string_view text, size_t most = 60);
// "2026-11-24"
std::string today();
// "65,536"
std::string grouped(int64_t n);
// "64K" where it is whole, else the number.
std::string tokens_name(int64_t n);

}  // namespace sale::lab
