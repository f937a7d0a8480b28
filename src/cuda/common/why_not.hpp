// Reasons that GPU backends share; compiled with and without CUDA.
#pragma once

#include <string>

#include "core/machine.hpp"
#include "core/plan.hpp"
#include "core/status.hpp"

namespace sale::cuda {

inline bool hidden(const Machine& m, const std::string& name) {
  return ("," + m.hidden + ",").find("," + name + ",") != std::string::npos;
}

// Memory, types, lengths, and what loads and stores of 16 bytes ask of strides.
std::string why_not_problem(const sale_problem& p);

}  // namespace sale::cuda
