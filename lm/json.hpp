// Strict JSON from files we do not trust (internal to lm/): size and depth limits, no duplicate names, and getters
// that check the type and range of a field and name it when it is wrong.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "lm/error.hpp"

namespace sale::lm {

using Json = nlohmann::json;

// The bytes of a regular file of at most max_bytes.
std::string read_file(const std::filesystem::path& path, int64_t max_bytes);

// `where` names the source in messages.
Json parse_json(std::string_view text, const std::string& where);
Json read_json(const std::filesystem::path& path, int64_t max_bytes);

// One JSON object, with the words that say where it is.
class Fields {
public:
  Fields(const Json& object, std::string where);

  // Whether the field is there, if only as null.
  bool has(std::string_view name) const { return object_->contains(name); }
  // The field, or nullptr where it is absent or null.
  const Json* find(std::string_view name) const;
  const Json& need(std::string_view name) const;
  Fields object(std::string_view name) const;
  const Json& array(std::string_view name) const;

  int64_t integer(std::string_view name, int64_t least, int64_t most) const;
  int64_t integer_or(std::string_view name, int64_t least, int64_t most, int64_t otherwise) const;
  double number(std::string_view name, double least, double most) const;
  double number_or(std::string_view name, double least, double most, double otherwise) const;
  bool boolean_or(std::string_view name, bool otherwise) const;
  std::string text(std::string_view name) const;
  std::string text_or(std::string_view name, std::string otherwise) const;

  const std::string& where() const { return where_; }

private:
  const Json* object_;
  std::string where_;
};

// A whole number in [least, most], or an Error that calls it `what`.
int64_t as_integer(const Json& value, const std::string& what, int64_t least, int64_t most);

}  // namespace sale::lm
