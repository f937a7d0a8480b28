// A file mapped into memory, read-only. It must not be shortened by another program while it is open.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace sale::lm {

class Mapping {
public:
  // A regular file that is not empty, and not a Git LFS pointer in place of one.
  explicit Mapping(const std::filesystem::path& path);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::span<const std::byte> bytes() const { return bytes_; }

private:
  std::span<const std::byte> bytes_;
};

// What a clone without git-lfs leaves in place of a large file is refused as what it is.
void refuse_lfs_pointer(std::string_view start, const std::string& where);

}  // namespace sale::lm
