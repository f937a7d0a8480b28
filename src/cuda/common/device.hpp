// The CUDA runtime as the backends use it: errors as failures, the current device left alone, memory.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "core/backend.hpp"
#include "core/status.hpp"

namespace sale::cuda {

// Throws Failure for anything but success; `what` was being done.
void must(cudaError_t e, const char* what);

// Makes a device current, and the caller's again.
class Current {
public:
  explicit Current(int32_t device);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

private:
  int before_ = 0;
  bool changed_ = false;
};

struct Device {
  int32_t ordinal, multiprocessors;
  int32_t major, minor;  // compute capability
};

// Which devices a backend's kernels run on.
struct Generation {
  const char* wanted;  // compute capability, in words: "9.0"
  bool (*serves)(int32_t major, int32_t minor);
  // Of those, the ones it was made for: on others it runs only when asked for by name.
  const char* made_for;
  bool (*suits)(int32_t major, int32_t minor);
  cudaError_t (*prepare)();  // raises the kernels' shared-memory limits on the current device
};
// Checks that there is such a device and that the generation's kernels run on it, and makes it ready for them; once per
// device.
Device open_device(const Generation& generation, int32_t ordinal);
// Why no device of this machine will do, in words; "" when one will.
std::string why_no_device(const Generation& generation);

// Why it is not a device's first choice, in words; "" when it is, and for a number that is no device's, which opening
// it refuses.
std::string why_not_unasked(const Generation& generation, int32_t ordinal);

extern const Space device_space;

}  // namespace sale::cuda
