// An array on a cache line boundary, not cleared: pages never touched cost nothing. Large ones ask for huge pages.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <memory>

#include "lm/error.hpp"

namespace sale::lm {

template <class T>
class Buffer {
public:
  Buffer() = default;
  explicit Buffer(int64_t count) : count_(count) {
    if (count < 0) fail("buffer: ", count, " elements; at least 0 are allowed");
    const int64_t wanted = checked_mul(count, sizeof(T), "buffer");
    const int64_t unit = wanted >= 4 * kHugePage ? kHugePage : 64;
    const int64_t bytes = checked_add(wanted, unit - 1, "buffer") / unit * unit;
    data_.reset(static_cast<T*>(std::aligned_alloc(at(unit), at(bytes ? bytes : unit))));
    if (!data_) throw std::bad_alloc();
    if (unit == kHugePage) ::madvise(data_.get(), at(bytes), MADV_HUGEPAGE);  // only advice: no harm where refused
  }
  // Makes room for count elements; what was there is lost when it grows.
  void need(int64_t count) {
    if (count > count_) *this = Buffer(count);
  }
  T* data() const { return data_.get(); }
  int64_t size() const { return count_; }

private:
  static constexpr int64_t kHugePage = int64_t{2} << 20;
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t count_ = 0;
};

}  // namespace sale::lm
