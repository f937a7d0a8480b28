// Counts what this program allocates, the library inside it included.
#include <atomic>
#include <cstdlib>
#include <new>

#include "device.hpp"

namespace {
std::atomic<int64_t> count{0};
}

int64_t sale_device::allocations() { return count; }

void* operator new(size_t bytes) {
  ++count;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
