// A file that only grows, one JSON object a line, by which long work that was interrupted goes on where it was. The
// first line holds what the work depends on: a file of other work is refused and left as it is. A last line that was
// cut off is forgotten. Of the library's calibrator, and of the program's evaluation (lab/), so it needs no other file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace sale::calibration {

class Journal {
public:
  using Json = nlohmann::ordered_json;
  // How its user talks of it. refuse throws.
  struct Words {
    const char* option;  // "--out"
    const char* kind;    // "this program's results"
    void (*refuse)(const std::string& message);
  };

  Journal() = default;  // keeps nothing
  // Refuses a file whose settings differ, naming the first one.
  Journal(std::filesystem::path path, const Words& words, const Json& given) : path_(std::move(path)), words_(words) {
    const std::string first = printed(Json{{"settings", given}});
    const Json settings = Json::parse(first).at("settings");  // as a file has them
    const std::string whole = lines_of_file();
    try {
      for (size_t at = 0; at < whole.size();) {
        const size_t end = whole.find('\n', at);
        Json line = Json::parse(std::string_view(whole).substr(at, end - at));
        if (at > 0) {
          lines_.push_back(std::move(line));
        } else if (const std::string what = difference(line.at("settings"), settings); !what.empty()) {
          refuse("is of other work (" + what + "); remove it or write elsewhere");
        }
        at = end + 1;
      }
    } catch (const Json::exception&) {
      refuse(std::string("is not a file of ") + words_.kind);
    }
    std::error_code failed;
    if (!whole.empty()) std::filesystem::resize_file(path_, whole.size(), failed);  // without a line cut off
    file_.open(path_, whole.empty() ? std::ios::trunc : std::ios::app);
    if (whole.empty()) file_ << first << std::flush;
    if (failed || !file_) refuse("cannot be written");
  }

  const std::vector<Json>& lines() const { return lines_; }  // those found
  bool kept() const { return !path_.empty(); }
  void add(const Json& line) {
    if (!kept()) return;
    file_ << printed(line) << std::flush;
    if (!file_) refuse("cannot be written");
  }
  // The work is done.
  void remove() {
    if (!kept()) return;
    file_.close();
    std::error_code none;
    std::filesystem::remove(path_, none);
    path_.clear();
  }

private:
  static constexpr uintmax_t most_bytes = uintmax_t{8} << 30;

  // Bytes that are no text are replaced.
  static std::string text_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }
  static std::string printed(const Json& json) { return text_of(json) + "\n"; }
  static std::string difference(const Json& was, const Json& is) {
    for (const auto& [name, value] : is.items())
      if (!was.contains(name) || was.at(name) != value)
        return name + ": " + (was.contains(name) ? text_of(was.at(name)) : "nothing") + " there, " + text_of(value) +
               " now";
    return {};
  }
  void refuse(const std::string& what) const {
    words_.refuse(std::string(words_.option) + ": " + path_.string() + " " + what);
  }
  // What is there, up to the end of the last whole line.
  std::string lines_of_file() const {
    std::error_code none;
    if (!std::filesystem::exists(path_, none)) return {};
    const uintmax_t size = std::filesystem::file_size(path_, none);
    if (none || size > most_bytes) refuse(none ? "cannot be read" : "is larger than 8 GiB");
    std::string whole(static_cast<size_t>(size), '\0');
    std::ifstream in(path_, std::ios::binary);
    if (!in.read(whole.data(), static_cast<std::streamsize>(size))) refuse("cannot be read");
    return whole.substr(0, whole.rfind('\n') + 1);
  }

  std::filesystem::path path_;
  Words words_{};
  std::vector<Json> lines_;
  std::ofstream file_;
};

}  // namespace sale::calibration
