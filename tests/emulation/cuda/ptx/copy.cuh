// What src/cuda/ptx/copy.cuh says, emulated: bytes arrive when their thread waits for them, no sooner.
#pragma once

#include "language.hpp"

namespace sale::ptx {

inline uint32_t shared_address(const void* p) { return emulation::address(p); }
inline void copy_16(void* to, const void* from, bool present) { emulation::copy(to, from, present); }
inline void copy_16(uint32_t to, const void* from, bool present) { copy_16(emulation::pointer(to), from, present); }
inline void copies_commit() { emulation::copies_commit(); }
template <int N>
void copies_wait() {
  emulation::copies_wait(N);
}
inline void copies_wait() {
  emulation::copies_commit();
  emulation::copies_wait(0);
}

}  // namespace sale::ptx
