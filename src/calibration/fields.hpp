// Reading JSON that is not trusted: every field by name, with its range, and nothing left over.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "core/status.hpp"

namespace sale::calibration {

using Json = nlohmann::ordered_json;

constexpr int max_depth = 8;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  fail(SALE_INVALID_ARGUMENT, parts...);
}

// Text from a file, made safe to print.
std::string in_quotes(std::string_view text);

// Refuses repeated keys, which the JSON library would let pass, and nesting beyond max_depth.
Json parse_strict(std::string_view text, const std::string& where);

// One object. Each field is read once; finish() refuses those that nobody asked for.
class Fields {
public:
  Fields(const Json& object, std::string where);
  const Json& need(const char* name);
  bool has(const char* name) const { return object_->contains(name); }
  Fields object(const char* name);
  int64_t integer(const char* name, int64_t least, int64_t most);
  double number(const char* name, double least, double most);
  std::string text(const char* name, size_t longest);
  uint64_t hex64(const char* name);
  void finish() const;
  std::string path(const char* name) const { return where_ + ": " + prefix_ + name; }

private:
  Fields(const Json& object, std::string where, std::string prefix);
  const Json* object_;
  std::string where_, prefix_;
  std::set<std::string> read_;
};

double as_number(const Json& value, const std::string& what, double least, double most);
int64_t as_integer(const Json& value, const std::string& what, int64_t least, int64_t most);

std::string hex64(uint64_t value);

}  // namespace sale::calibration
