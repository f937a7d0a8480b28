// A file that only grows, one JSON object a line, by which long work that was interrupted goes on where it was. The
// first line holds what the work depends on: a file of other work is refused and left as it is. A last line that was
// cut off is forgotten.
#pragma once

#include <filesystem>
#include <fstream>
#include <vector>

#include "calibration/fields.hpp"

namespace sale::calibration {

class Journal {
public:
  Journal() = default;  // keeps nothing
  // Refuses a file whose settings differ, naming the first one.
  Journal(std::filesystem::path path, const Json& settings);
  const std::vector<Json>& lines() const { return lines_; }  // those found
  bool kept() const { return !path_.empty(); }
  void add(const Json& line);
  void remove();  // the work is done

private:
  std::filesystem::path path_;
  std::vector<Json> lines_;
  std::ofstream file_;
};

}  // namespace sale::calibration
