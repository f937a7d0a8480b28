// Numbers of the three types tensors may have, and work shared out over threads.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>

#include "core/status.hpp"
#include "cpu/thread_pool.hpp"

namespace sale::calibration {

struct Bf16 {
  uint16_t bits;
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct Half {
  uint16_t bits;
  operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    // Scaled by 2^112 afterwards, so that denormals come out right too.
    const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
  }
};

inline size_t bytes_of(sale_dtype t) { return t == SALE_F32 ? 4 : 2; }

// f(pointer to numbers of that type).
template <class F>
void with_type(sale_dtype type, const void* at, F&& f) {
  if (type == SALE_F32)
    f(static_cast<const float*>(at));
  else if (type == SALE_F16)
    f(static_cast<const Half*>(at));
  else
    f(static_cast<const Bf16*>(at));
}

// body(i, thread) for every i in [0, count); the first exception is rethrown.
template <class F>
void share_out(ThreadPool& pool, int64_t count, F&& body) {
  std::exception_ptr first;
  std::mutex lock;
  std::atomic<bool> failed = false;
  auto guarded_body = [&](int64_t i, int thread) {
    if (failed) return;
    try {
      body(i, thread);
    } catch (...) {
      const std::lock_guard guard(lock);
      failed = true;
      if (!first) first = std::current_exception();
    }
  };
  pool.run(count, std::move(guarded_body));
  if (first) std::rethrow_exception(first);
}

}  // namespace sale::calibration
