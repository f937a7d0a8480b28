// The heap under observation: the test binary's own malloc counts, and fails when told to.
#pragma once

#include <cstdint>

namespace sale_contract {

// False under sanitizers, which bring their own heap.
bool heap_is_watched();
int64_t heap_calls();  // allocations so far, by all threads
int64_t heap_live();   // allocated and not yet freed
// The n-th allocation from here on by this thread fails, once; 0: none. True when that has happened.
void fail_allocation(int64_t n);
bool allocation_failed();

}  // namespace sale_contract
