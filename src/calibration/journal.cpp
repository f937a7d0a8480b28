#include "calibration/journal.hpp"

#include "calibration/contents.hpp"

namespace sale::calibration {
namespace {

constexpr size_t most_bytes = size_t{8} << 30;

std::string difference(const Json& was, const Json& is) {
  for (const auto& [name, value] : is.items())
    if (!was.contains(name) || was.at(name) != value)
      return text(name, ": ", was.contains(name) ? was.at(name).dump() : "nothing", " there, ", value.dump(), " now");
  return {};
}

// A line; bytes that are no text are replaced.
std::string printed(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

Journal::Journal(std::filesystem::path path, const Json& given) : path_(std::move(path)) {
  const std::string name = path_.string();
  const Json settings = Json::parse(printed(given));  // as a file would have them
  std::string whole;
  std::error_code none;
  if (std::filesystem::exists(path_, none)) {
    const std::string found = read_bytes(path_, most_bytes);
    whole = found.substr(0, found.rfind('\n') + 1);
  }
  try {
    for (size_t at = 0; at < whole.size();) {
      const size_t end = whole.find('\n', at);
      Json line = Json::parse(std::string_view(whole).substr(at, end - at));
      if (at > 0) {
        lines_.push_back(std::move(line));
      } else if (const std::string what = difference(line.at("settings"), settings); !what.empty()) {
        refuse("progress: ", name, " is of other work (", what, "); remove it or write elsewhere");
      }
      at = end + 1;
    }
  } catch (const Json::exception&) {
    refuse("progress: ", name, " is not a file of a calibrator's progress");
  }
  write_bytes(path_, whole.empty() ? printed(Json{{"settings", settings}}) + "\n" : whole);
  file_.open(path_, std::ios::app);
}

void Journal::add(const Json& line) {
  if (!kept()) return;
  file_ << printed(line) << "\n" << std::flush;
  if (!file_) refuse("progress: ", path_.string(), " cannot be written");
}

void Journal::remove() {
  if (!kept()) return;
  file_.close();
  std::error_code none;
  std::filesystem::remove(path_, none);
  path_.clear();
}

}  // namespace sale::calibration
