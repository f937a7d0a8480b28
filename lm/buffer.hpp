// An array on a cache line boundary, not cleared: pages never touched cost nothing.
#pragma once

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
    const int64_t bytes = checked_add(checked_mul(count, sizeof(T), "buffer"), 63, "buffer") / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, at(bytes ? bytes : 64))));
    if (!data_) throw std::bad_alloc();
  }
  // Makes room for count elements; what was there is lost when it grows.
  void need(int64_t count) {
    if (count > count_) *this = Buffer(count);
  }
  T* data() const { return data_.get(); }
  int64_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t count_ = 0;
};

}  // namespace sale::lm
