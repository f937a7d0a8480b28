// The host side of the Ampere and Ada backend, as the backend list needs it, and of Blackwell's, which has the same
// kernels. No CUDA headers: builds without CUDA read this.
#pragma once

#include <string>

#include "core/backend.hpp"

namespace sale::sm80 {

extern const Stages stages;
// Why no device of this machine will do, in words; "" when one will. Asked once per process.
std::string why_no_device();
// Why a device is not what it was made for, in words; "" when it is.
std::string why_not_unasked(int32_t device);
// The same of devices that came after Hopper.
std::string why_no_blackwell();
std::string why_not_blackwell(int32_t device);

}  // namespace sale::sm80
