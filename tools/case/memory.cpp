#include "case/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace sale_case {

Memory::Memory(size_t bytes, unsigned char fill, size_t alignment) : fill_(fill) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  size_ = (bytes + alignment - 1) / alignment * alignment;
  readable_size_ = (std::max<size_t>(size_, 1) + page - 1) / page * page;
  mapped_ = readable_size_ + 2 * page;
  void* at = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<std::byte*>(at);
  readable_ = mapping_ + page;
  if (mprotect(readable_, readable_size_, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping_, mapped_);
    throw std::bad_alloc();
  }
  begin_ = readable_ + readable_size_ - size_;
  refill();
}

Memory::~Memory() { munmap(mapping_, mapped_); }

void Memory::refill() { std::memset(readable_, fill_, readable_size_); }

bool Memory::untouched_outside(const Ranges& ranges) const {
  Ranges sorted = ranges;
  std::sort(sorted.begin(), sorted.end());
  const auto filled = [&](const std::byte* from, const std::byte* to) {
    return std::all_of(from, to, [&](std::byte b) { return b == std::byte{fill_}; });
  };
  const std::byte* at = readable_;
  for (const auto& [first, last] : sorted) {
    const std::byte* begin = begin_ + first;
    if (begin > at && !filled(at, begin)) return false;
    at = std::max<const std::byte*>(at, begin_ + last);
  }
  return filled(at, readable_ + readable_size_);
}

}  // namespace sale_case
