#include "settings.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string_view>

namespace sale::ggml {
namespace {

using Json = nlohmann::json;
using Set = std::function<void(Settings&, const std::string& where, const Json& value)>;

constexpr uintmax_t most_bytes = 1 << 20;
constexpr std::string_view prefix = "SALE_GGML_", config_variable = "SALE_GGML_CONFIG";

[[noreturn]] void refuse(const std::string& where, const Json& value, const std::string& allowed) {
  throw std::runtime_error(where + ": " + value.dump() + " is not " + allowed);
}

double number(const std::string& where, const Json& v, double low, double high) {
  const auto allowed = [&] {
    std::ostringstream s;
    s << "a number in " << low << " .. " << high;
    return s.str();
  };
  if (!v.is_number()) refuse(where, v, allowed());
  const double x = v.get<double>();
  if (!(x >= low && x <= high)) refuse(where, v, allowed());
  return x;
}
int64_t whole(const std::string& where, const Json& v, int64_t low, int64_t high) {
  if (!v.is_number() || v.get<double>() != std::floor(v.get<double>())) refuse(where, v, "a whole number");
  return static_cast<int64_t>(number(where, v, static_cast<double>(low), static_cast<double>(high)));
}
std::string words(const std::string& where, const Json& v) {
  if (!v.is_string() || v.get<std::string>().empty()) refuse(where, v, "a text");
  return v.get<std::string>();
}

void take_calibration(Settings& s, const std::string& where, const std::filesystem::path& path) {
  std::error_code none;
  if (std::filesystem::is_directory(path, none))
    s.calibrations = path, s.calibration.reset();
  else if (!std::filesystem::exists(path, none))
    throw std::runtime_error(where + ": " + path.string() + " does not exist");
  else
    s.calibration = read_calibration(path), s.calibrations.clear();
}

// One entry per setting, by its name in the file.
const std::map<std::string, Set>& entries() {
  static const std::map<std::string, Set> all = {
      {"tau", [](Settings& s, const std::string& w,
                 const Json& v) { s.tau = static_cast<float>(number(w, v, 0, 1e6)), s.tau_over_calibration = true; }},
      {"estimator",
       [](Settings& s, const std::string& w, const Json& v) {
         const std::string name = words(w, v);
         if (name != "int8" && name != "int4" && name != "fp4") refuse(w, v, "\"int8\", \"int4\" or \"fp4\"");
         s.format = name == "int8" ? SALE_INT8 : name == "fp4" ? SALE_FP4 : SALE_INT4;
       }},
      {"compute",
       [](Settings& s, const std::string& w, const Json& v) {
         const std::string name = words(w, v);
         if (name != "exact" && name != "int8") refuse(w, v, "\"exact\" or \"int8\"");
         s.compute = name == "exact" ? SALE_COMPUTE_EXACT : SALE_COMPUTE_INT8;
       }},
      {"calibration", [](Settings& s, const std::string& w, const Json& v) { take_calibration(s, w, words(w, v)); }},
      {"calibrate", [](Settings& s, const std::string& w, const Json& v) { s.calibrate = words(w, v); }},
      {"calibrate_budget",
       [](Settings& s, const std::string& w, const Json& v) { s.calibrate_budget = number(w, v, 0, 1); }},
      {"calibrate_prompts",
       [](Settings& s, const std::string& w, const Json& v) { s.calibrate_prompts = whole(w, v, 1, 1000); }},
      {"calibrate_rank",
       [](Settings& s, const std::string& w, const Json& v) { s.calibrate_rank = whole(w, v, 16, 256); }},
      {"dense_below",
       [](Settings& s, const std::string& w, const Json& v) { s.dense_below = whole(w, v, 0, int64_t{1} << 31); }},
      {"backend", [](Settings& s, const std::string& w, const Json& v) { s.backend = words(w, v); }},
      {"min_rows",
       [](Settings& s, const std::string& w, const Json& v) { s.min_rows = whole(w, v, 2, int64_t{1} << 31); }},
      {"any_keys",
       [](Settings& s, const std::string& w, const Json& v) {
         if (!v.is_boolean() && v != 0 && v != 1) refuse(w, v, "true or false");
         s.any_keys = v.is_boolean() ? v.get<bool>() : v == 1;
       }},
      {"stats", [](Settings& s, const std::string& w, const Json& v) { s.stats = words(w, v); }},
      {"audit", [](Settings& s, const std::string& w, const Json& v) { s.audit = whole(w, v, 0, 4096); }},
  };
  return all;
}

Json parse(const std::filesystem::path& path) {
  std::error_code none;
  const uintmax_t bytes = std::filesystem::file_size(path, none);
  if (none) throw std::runtime_error("SALE_GGML_CONFIG: " + path.string() + " cannot be read: " + none.message());
  if (bytes > most_bytes)
    throw std::runtime_error("SALE_GGML_CONFIG: " + path.string() + " has " + std::to_string(bytes) +
                             " bytes; a configuration has at most " + std::to_string(most_bytes));
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded() || !json.is_object())
    throw std::runtime_error("SALE_GGML_CONFIG: " + path.string() + " is not a JSON object");
  return json;
}

void take_file(Settings& s, const std::filesystem::path& path) {
  const Json json = parse(path);
  for (const auto& [name, value] : json.items()) {
    const std::string where = path.string() + ": " + name;
    const auto entry = entries().find(name);
    if (entry == entries().end()) throw std::runtime_error(where + " is not a setting");
    // Beside the file, wherever the program runs.
    if (name == "calibrate" && value.is_string())
      s.calibrate = path.parent_path() / words(where, value);
    else if (name == "calibration" && value.is_string())
      take_calibration(s, where, path.parent_path() / std::filesystem::path(words(where, value)));
    else
      entry->second(s, where, value);
  }
}

// In the environment: SALE_GGML_ and the setting's name in capitals.
std::string variable_of(const std::string& name) {
  std::string variable(prefix);
  for (char c : name) variable += static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  return variable;
}

// A name with a slip of the pen would be a setting that is not there.
void refuse_unknown_variables() {
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string_view set = *at, name = set.substr(0, set.find('='));
    if (name.substr(0, prefix.size()) != prefix || name == config_variable) continue;
    const auto is_it = [&](const auto& entry) { return variable_of(entry.first) == name; };
    if (std::none_of(entries().begin(), entries().end(), is_it))
      throw std::runtime_error(std::string(name) + " is not a setting");
  }
}

}  // namespace

Settings read_settings() {
  Settings s;
  refuse_unknown_variables();
  if (const char* path = std::getenv(config_variable.data()); path != nullptr && *path != '\0') take_file(s, path);
  for (const auto& [name, set] : entries()) {
    const std::string variable = variable_of(name);
    const char* text = std::getenv(variable.c_str());
    if (text == nullptr || *text == '\0') continue;
    // Numbers and true/false as JSON has them; everything else is a text.
    Json value = Json::parse(text, nullptr, false);
    if (value.is_discarded() || !(value.is_number() || value.is_boolean())) value = text;
    set(s, variable, value);
  }
  // Made before: what it was made for.
  std::error_code none;
  if (!s.calibrate.empty() && std::filesystem::exists(s.calibrate, none)) {
    if (!s.calibration && s.calibrations.empty()) take_calibration(s, "SALE_GGML_CALIBRATE", s.calibrate);
    s.calibrate.clear();
  }
  return s;
}

}  // namespace sale::ggml
