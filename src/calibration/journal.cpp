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

}  // namespace

Journal::Journal(std::filesystem::path path, const Json& settings) : path_(std::move(path)) {
  const std::string name = path_.string();
  std::string whole;
  if (std::filesystem::exists(path_)) {
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
  write_bytes(path_, whole.empty() ? Json{{"settings", settings}}.dump() + "\n" : whole);
  file_.open(path_, std::ios::app);
}

void Journal::add(const Json& line) {
  if (!kept()) return;
  file_ << line.dump() << "\n" << std::flush;
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
