#include "heap.hpp"

#include <atomic>
#include <cerrno>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define SALE_HEAP_WATCHED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SALE_HEAP_WATCHED 0
#else
#define SALE_HEAP_WATCHED 1
#endif
#else
#define SALE_HEAP_WATCHED 1
#endif

namespace sale_contract {
namespace {

std::atomic<int64_t> calls{0}, live{0};
thread_local int64_t fail_after = 0;
thread_local bool failed = false;

#if SALE_HEAP_WATCHED
bool refuse() {
  calls.fetch_add(1, std::memory_order_relaxed);
  if (fail_after == 0 || --fail_after != 0) return false;
  failed = true;
  errno = ENOMEM;
  return true;
}

void* given(void* p) {
  if (p != nullptr) live.fetch_add(1, std::memory_order_relaxed);
  return p;
}
#endif

}  // namespace

bool heap_is_watched() { return SALE_HEAP_WATCHED != 0; }
int64_t heap_calls() { return calls.load(); }
int64_t heap_live() { return live.load(); }
void fail_allocation(int64_t n) {
  failed = false;
  fail_after = n;
}
bool allocation_failed() { return failed; }

#if SALE_HEAP_WATCHED
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

// operator new ends here too.
__attribute__((visibility("default"))) void* malloc(size_t n) { return refuse() ? nullptr : given(__libc_malloc(n)); }
__attribute__((visibility("default"))) void* calloc(size_t n, size_t m) {
  return refuse() ? nullptr : given(__libc_calloc(n, m));
}
__attribute__((visibility("default"))) void* realloc(void* p, size_t n) {
  if (refuse()) return nullptr;
  void* r = __libc_realloc(p, n);
  if (p == nullptr) given(r);
  return r;
}
__attribute__((visibility("default"))) void* aligned_alloc(size_t a, size_t n) {
  return refuse() ? nullptr : given(__libc_memalign(a, n));
}
__attribute__((visibility("default"))) void* memalign(size_t a, size_t n) {
  return refuse() ? nullptr : given(__libc_memalign(a, n));
}
__attribute__((visibility("default"))) int posix_memalign(void** to, size_t a, size_t n) {
  if (refuse()) return ENOMEM;
  *to = given(__libc_memalign(a, n));
  return *to == nullptr ? ENOMEM : 0;
}
__attribute__((visibility("default"))) void free(void* p) {
  if (p != nullptr) live.fetch_sub(1, std::memory_order_relaxed);
  __libc_free(p);
}
}
#endif

}  // namespace sale_contract
