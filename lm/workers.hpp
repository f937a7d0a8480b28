// Row tiles over threads.
#pragma once

#include <cstdint>
#include <functional>

namespace sale::lm {

// Calls work(index, worker) once for every index in [0, count), worker < threads; indices are handed out in order. The
// caller's thread is worker 0; the others are started here and joined before the return. The first exception is
// rethrown.
void for_each_index(int threads, int64_t count, const std::function<void(int64_t index, int worker)>& work);

}  // namespace sale::lm
