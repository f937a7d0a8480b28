#include "journal.hpp"

#include "command.hpp"
#include "text.hpp"

namespace sale::cli {
namespace {

std::string difference(const Json& was, const Json& is) {
  for (const auto& [name, value] : is.items())
    if (!was.contains(name) || was.at(name) != value)
      return fmt::format("{}: {} there, {} now", name, was.contains(name) ? was.at(name).dump() : "nothing",
                         value.dump());
  return {};
}

}  // namespace

Journal::Journal(std::filesystem::path path, std::string option, const Json& settings)
    : path_(std::move(path)), option_(std::move(option)) {
  std::string whole;
  if (std::filesystem::exists(path_)) {
    const std::string text = read_text(path_);
    whole = text.substr(0, text.rfind('\n') + 1);
  }
  const std::string first = Json{{"settings", settings}}.dump() + "\n";
  try {
    for (size_t at = 0; at < whole.size();) {
      const size_t end = whole.find('\n', at);
      Json line = Json::parse(std::string_view(whole).substr(at, end - at));
      if (at > 0) {
        lines_.push_back(std::move(line));
      } else if (const std::string what = difference(line.at("settings"), settings); !what.empty()) {
        refuse("{}: {} is of other work ({}); remove it or write elsewhere", option_, path_.string(), what);
      }
      at = end + 1;
    }
  } catch (const Json::exception&) {
    refuse("{}: {} is not a file of this program's results", option_, path_.string());
  }
  write_text(path_, whole.empty() ? first : whole);
  file_.open(path_, std::ios::app);
}

void Journal::add(const Json& line) {
  file_ << line.dump() << "\n" << std::flush;
  if (!file_) refuse("{}: {} cannot be written", option_, path_.string());
  lines_.push_back(line);
}

void Journal::remove() {
  file_.close();
  std::filesystem::remove(path_);
}

}  // namespace sale::cli
