// The host side of the Ampere and Ada backend, as the backend list needs it. No CUDA headers: builds without CUDA read
// this.
#pragma once

#include <string>

#include "core/backend.hpp"

namespace sale::sm80 {

extern const Stages stages;
// Why no device of this machine will do, in words; "" when one will. Asked once per process.
std::string why_no_device();
// Whether the kernels are for device `ordinal` (compute capability 8.x), not only able to run there.
bool made_for(int32_t ordinal);

}  // namespace sale::sm80
