#include "lab/text.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <sstream>

#include "lab/refuse.hpp"

namespace sale::lab {

int64_t parse_count(const std::string& what, std::string_view text, int64_t least, int64_t most) {
  int64_t n = 0;
  std::string_view digits = text;
  int shift = 0;
  if (!digits.empty() && (digits.back() == 'k' || digits.back() == 'K')) shift = 10;
  if (!digits.empty() && (digits.back() == 'm' || digits.back() == 'M')) shift = 20;
  if (shift != 0) digits.remove_suffix(1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), n);
  if (error != std::errc() || end != digits.data() + digits.size() || n < 0)
    refuse("{}: '{}' is not a count; digits with an optional k or m are", what, text);
  if (n > (most >> shift) || (n << shift) < least || (n << shift) > most)
    refuse("{}: {} is not in {} .. {}", what, text, least, most);
  return n << shift;
}

int64_t parse_tokens(const std::string& what, std::string_view text, std::string_view otherwise, int64_t least,
                     int64_t positions) {
  if (!text.empty()) return parse_count(what, text, least, positions);
  return std::min(parse_count(what, otherwise, 1, int64_t{1} << 40), positions);
}

EstimatorName parse_estimator(const std::string& what, std::string_view text) {
  EstimatorName e;
  const size_t colon = text.find(':');
  const std::string format(text.substr(0, colon));
  if (sale_format_from_name(format.c_str(), &e.format) != SALE_OK || format != sale_format_name(e.format))
    refuse("{}: '{}' is not an estimator; int8, int4, fp4, fp8 are, and int8:RANK, int4:RANK, fp4:RANK, fp8:RANK", what,
           text);
  if (colon == std::string_view::npos) return e;
  const int32_t step = e.format == SALE_FP8 ? 4 : 16;
  e.rank = static_cast<int32_t>(parse_count(what, text.substr(colon + 1), step, 256));
  if (e.rank % step != 0) refuse("{}: rank {} is not a multiple of {}", what, e.rank, step);
  return e;
}

std::string print_estimator(sale_format format, int32_t rank, int32_t head_dim) {
  const std::string name = sale_format_name(format);
  return rank == 0 || rank == head_dim ? name : fmt::format("{}:{}", name, rank);
}

std::string read_text(const std::filesystem::path& path) {
  constexpr size_t most = size_t{1} << 30;
  if (path == "-") {
    std::string text;
    for (char part[65536]; text.size() <= most;) {
      const size_t n = std::fread(part, 1, sizeof(part), stdin);
      if (n == 0) break;
      text.append(part, n);
    }
    if (std::ferror(stdin) != 0) refuse("-: standard input cannot be read");
    if (text.size() > most) refuse("-: standard input is larger than 1 GiB");
    return text;
  }
  std::error_code error;
  if (!std::filesystem::exists(path, error)) refuse("{}: no such file", path.string());
  if (!std::filesystem::is_regular_file(path, error)) refuse("{}: not a file", path.string());
  if (std::filesystem::file_size(path, error) > most) refuse("{}: larger than 1 GiB", path.string());
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) refuse("{}: cannot be read", path.string());
  return text.str();
}

void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.flush();
  if (!out) refuse("{}: cannot be written", path.string());
}

std::vector<std::string> read_lines(const std::filesystem::path& path) {
  std::istringstream in(read_text(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    line.erase(std::min(line.find('#'), line.size()));
    if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(line);
  }
  return lines;
}

std::string base64(std::string_view bytes) {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const auto at = [&](size_t k) {
      return i + k < bytes.size() ? static_cast<uint32_t>(static_cast<unsigned char>(bytes[i + k])) : 0u;
    };
    const uint32_t word = at(0) << 16 | at(1) << 8 | at(2);
    for (size_t k = 0; k < 4; ++k) out += i + k <= bytes.size() ? digits[(word >> (18 - 6 * k)) & 63] : '=';
  }
  return out;
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

std::string show(std::string_view text, size_t most) {
  std::string out = "\"";
  for (char c : text.substr(0, most)) {
    if (c == '\n')
      out += "\\n";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + (text.size() > most ? "...\"" : "\"");
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

std::string grouped(int64_t n) {
  std::string text = std::to_string(n);
  for (int64_t at = static_cast<int64_t>(text.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text;
}

std::string tokens_name(int64_t n) { return n >= 1024 && n % 1024 == 0 ? fmt::format("{}K", n / 1024) : grouped(n); }

}  // namespace sale::lab
