// The host side of the CPU backends.
#pragma once

#include "core/backend.hpp"

namespace sale {

extern const Stages cpu_stages;
// What no CPU backend serves.
std::string cpu_why_not(const sale_problem& p, const sale_options& o);

}  // namespace sale
