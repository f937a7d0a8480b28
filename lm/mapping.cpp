#include "lm/mapping.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "lm/error.hpp"

namespace sale::lm {

void refuse_lfs_pointer(std::string_view start, const std::string& where) {
  if (start.starts_with("version https://git-lfs.github.com/spec/"))
    fail(where, ": this is a Git LFS pointer, not the file it stands for; `git lfs pull` in its folder fetches that");
}

Mapping::Mapping(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(path.string(), ": cannot be opened: ", std::strerror(errno));
  struct stat info{};
  const bool regular = ::fstat(file, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
  void* address = regular ? ::mmap(nullptr, at(info.st_size), PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  const int error = errno;
  ::close(file);
  if (!regular) fail(path.string(), ": not a file with contents");
  if (address == MAP_FAILED) fail(path.string(), ": cannot be mapped: ", std::strerror(error));
  bytes_ = {static_cast<const std::byte*>(address), at(info.st_size)};
  const std::string_view start(reinterpret_cast<const char*>(bytes_.data()), std::min<size_t>(bytes_.size(), 64));
  try {
    refuse_lfs_pointer(start, path.string());
  } catch (...) {
    ::munmap(address, bytes_.size());
    throw;
  }
}

Mapping::~Mapping() { ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

}  // namespace sale::lm
