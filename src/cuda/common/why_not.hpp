// Reasons that GPU backends share; compiled with and without CUDA.
#pragma once

#include <string>

#include "core/machine.hpp"
#include "core/plan.hpp"
#include "core/status.hpp"

namespace sale::cuda {

// Memory and types of a layer; lengths of a problem, and what loads and stores of 16 bytes ask of strides.
std::string why_not_layer(const Layer& layer);
std::string why_not_problem(const sale_problem& p);
std::string why_not_strides(const Strides& s);

}  // namespace sale::cuda
