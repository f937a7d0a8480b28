// Buffers that tell when someone reads or writes outside them: the last byte stands before an unreadable page, and the
// first after one (with less than a page of filled slack between).
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace sale_case {

class Memory {
public:
  // Filled with `fill`. `alignment` of begin(): a power of two up to a page; `bytes` is rounded up to it.
  Memory(size_t bytes, unsigned char fill, size_t alignment = 4);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::byte* begin() const { return begin_; }
  size_t size() const { return size_; }
  void refill();
  // Every byte of the slack, and every byte of the buffer not in one of the given ranges [first, last), as filled.
  using Ranges = std::vector<std::pair<size_t, size_t>>;
  bool untouched_outside(const Ranges& ranges) const;

private:
  std::byte *mapping_, *readable_, *begin_;
  size_t mapped_, readable_size_, size_;
  unsigned char fill_;
};

}  // namespace sale_case
