// A small RGB picture, written as PNG.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace sale::lab {

class Image {
public:
  Image(int width, int height)
      : width_(width), height_(height), pixels_(3 * static_cast<size_t>(width) * static_cast<size_t>(height)) {}
  void set(int x, int y, std::array<uint8_t, 3> colour) {
    const size_t at = 3 * (static_cast<size_t>(y) * static_cast<size_t>(width_) + static_cast<size_t>(x));
    for (size_t i = 0; i < 3; ++i) pixels_[at + i] = colour[i];
  }
  std::string png() const;

private:
  int width_, height_;
  std::vector<uint8_t> pixels_;
};

}  // namespace sale::lab
