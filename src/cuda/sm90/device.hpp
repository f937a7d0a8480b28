// The CUDA runtime as this backend uses it: errors as failures, the current device left alone, memory.
#pragma once

#include <memory>

#include "core/backend.hpp"
#include "core/status.hpp"
#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

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
};
// Checks that there is such a device and that it is a Hopper, and makes it ready for the kernels; once per device.
Device open_device(int32_t ordinal);

EncodeTiled tensor_map_encoder();

extern const Space device_space;

}  // namespace sale::sm90
