// Copies to shared memory by the threads themselves (sm_80): asynchronous, in groups of a thread's own.
#pragma once

#include <cstdint>

namespace sale::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes by this thread, or 16 zeros; the thread's own accesses see them after copies_wait().
__device__ __forceinline__ void copy_16(uint32_t to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(present ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_16(void* to, const void* from, bool present) {
  copy_16(shared_address(to), from, present);
}
__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Closes a group of what the thread has copied since the last one; copies_wait<N>() returns when all groups but the
// last N have arrived. Other threads see them after a barrier.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace sale::ptx
