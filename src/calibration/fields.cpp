#include "fields.hpp"

#include <cmath>

namespace sale::calibration {

std::string in_quotes(std::string_view text) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out = "'";
  for (char c : text.substr(0, 60)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += digits[byte >> 4];
      out += digits[byte & 15];
    }
  }
  return out + (text.size() > 60 ? "...'" : "'");
}

std::string hex64(uint64_t value) {
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[(value >> shift) & 15];
  return text;
}

Json parse_strict(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > max_depth) refuse(where, ": nested deeper than ", max_depth, " levels");
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      refuse(where, ": field ", in_quotes(value.get<std::string>()), " is given twice");
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& error) {
    refuse(where, ": not JSON: ", in_quotes(error.what()));
  }
}

Fields::Fields(const Json& object, std::string where) : Fields(object, std::move(where), "") {}

Fields::Fields(const Json& object, std::string where, std::string prefix)
    : object_(&object), where_(std::move(where)), prefix_(std::move(prefix)) {
  if (!object.is_object()) refuse(where_, ": ", prefix_.empty() ? "the file" : prefix_, " is not an object");
}

const Json& Fields::need(const char* name) {
  const auto found = object_->find(name);
  if (found == object_->end()) refuse(path(name), " is missing");
  read_.insert(name);
  return *found;
}

Fields Fields::object(const char* name) {
  const Json& value = need(name);
  if (!value.is_object()) refuse(path(name), " is not an object");
  return Fields(value, where_, prefix_ + name + ".");
}

int64_t as_integer(const Json& value, const std::string& what, int64_t least, int64_t most) {
  if (!value.is_number_integer()) refuse(what, " is not a whole number");
  // Unsigned numbers beyond int64 would come out negative.
  const bool big = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (big || value.get<int64_t>() < least || value.get<int64_t>() > most)
    refuse(what, " is ", value.dump(), "; ", least, " to ", most, " are allowed");
  return value.get<int64_t>();
}

double as_number(const Json& value, const std::string& what, double least, double most) {
  if (!value.is_number()) refuse(what, " is not a number");
  const double x = value.get<double>();
  if (!(x >= least && x <= most)) refuse(what, " is ", value.dump(), "; ", least, " to ", most, " are allowed");
  return x;
}

int64_t Fields::integer(const char* name, int64_t least, int64_t most) {
  return as_integer(need(name), path(name), least, most);
}
double Fields::number(const char* name, double least, double most) {
  return as_number(need(name), path(name), least, most);
}

std::string Fields::text(const char* name, size_t longest) {
  const Json& value = need(name);
  if (!value.is_string()) refuse(path(name), " is not text");
  std::string text = value.get<std::string>();
  if (text.size() > longest) refuse(path(name), " has ", text.size(), " bytes; ", longest, " are allowed");
  return text;
}

uint64_t Fields::hex64(const char* name) {
  const std::string digits = text(name, 16);
  if (digits.size() != 16 || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
    refuse(path(name), " is ", in_quotes(digits), "; 16 hexadecimal digits (0-9, a-f) are needed");
  return std::stoull(digits, nullptr, 16);
}

void Fields::finish() const {
  for (const auto& item : object_->items())
    if (!read_.contains(item.key()))
      refuse(where_, ": ", prefix_.empty() ? "" : prefix_, in_quotes(item.key()), " is not a known field");
}

}  // namespace sale::calibration
