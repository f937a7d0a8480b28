#include "lm/json.hpp"

#include <fstream>
#include <unordered_set>
#include <vector>

#include "lm/mapping.hpp"

namespace sale::lm {
namespace {

constexpr int kMaxDepth = 64;

std::string shown(const Json& value) {
  return in_quotes(value.is_structured() ? std::string(value.type_name())
                                         : value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

std::string read_file(const std::filesystem::path& path, int64_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) fail(path.string(), ": no such file");
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto size = static_cast<int64_t>(file.tellg());
  if (!file || size < 0) fail(path.string(), ": cannot be read");
  if (size > max_bytes) fail(path.string(), ": ", size, " bytes; at most ", max_bytes, " are allowed");
  std::string text(at(size), '\0');
  file.seekg(0);
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (!file) fail(path.string(), ": cannot be read to its end");
  refuse_lfs_pointer(text, path.string());
  return text;
}

Json parse_json(std::string_view text, const std::string& where) {
  std::vector<std::unordered_set<std::string>> names;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (depth > kMaxDepth) fail(where, ": JSON nested deeper than ", kMaxDepth);
    if (event == Event::object_start) names.emplace_back();
    if (event == Event::object_end) names.pop_back();
    if (event == Event::key && !names.back().insert(parsed.get_ref<const std::string&>()).second)
      fail(where, ": the name ", in_quotes(parsed.get_ref<const std::string&>()), " appears twice in one object");
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& e) {
    fail(where, ": not valid JSON: ", in_quotes(e.what()));
  }
}

Json read_json(const std::filesystem::path& path, int64_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path.string());
}

int64_t as_integer(const Json& value, const std::string& what, int64_t least, int64_t most) {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  const int64_t number = fits ? value.get<int64_t>() : 0;
  if (!fits || number < least || number > most)
    fail(what, " is ", shown(value), "; a whole number from ", least, " to ", most, " is allowed");
  return number;
}

Fields::Fields(const Json& object, std::string where) : object_(&object), where_(std::move(where)) {
  if (!object.is_object()) fail(where_, " is ", shown(object), "; an object is expected");
}

const Json* Fields::find(std::string_view name) const {
  const auto it = object_->find(name);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

const Json& Fields::need(std::string_view name) const {
  const Json* value = find(name);
  if (!value) fail(where_, ": the field '", name, "' is missing");
  return *value;
}

Fields Fields::object(std::string_view name) const { return {need(name), where_ + ": " + std::string(name)}; }

const Json& Fields::array(std::string_view name) const {
  const Json& value = need(name);
  if (!value.is_array()) fail(where_, ": ", name, " is ", shown(value), "; an array is expected");
  return value;
}

int64_t Fields::integer(std::string_view name, int64_t least, int64_t most) const {
  return as_integer(need(name), where_ + ": " + std::string(name), least, most);
}

int64_t Fields::integer_or(std::string_view name, int64_t least, int64_t most, int64_t otherwise) const {
  return find(name) ? integer(name, least, most) : otherwise;
}

double Fields::number(std::string_view name, double least, double most) const {
  const Json& value = need(name);
  const double number = value.is_number() ? value.get<double>() : 0;
  if (!value.is_number() || !(number >= least && number <= most))
    fail(where_, ": ", name, " is ", shown(value), "; a number from ", least, " to ", most, " is allowed");
  return number;
}

double Fields::number_or(std::string_view name, double least, double most, double otherwise) const {
  return find(name) ? number(name, least, most) : otherwise;
}

bool Fields::boolean_or(std::string_view name, bool otherwise) const {
  const Json* value = find(name);
  if (value && !value->is_boolean()) fail(where_, ": ", name, " is ", shown(*value), "; true or false is allowed");
  return value ? value->get<bool>() : otherwise;
}

std::string Fields::text(std::string_view name) const {
  const Json& value = need(name);
  if (!value.is_string()) fail(where_, ": ", name, " is ", shown(value), "; a string is expected");
  return value.get<std::string>();
}

std::string Fields::text_or(std::string_view name, std::string otherwise) const {
  return find(name) ? text(name) : std::move(otherwise);
}

}  // namespace sale::lm
