// Which attention operations are served. ggml asks when it plans a graph; what is declined, ggml's own kernel computes.
#pragma once

#include <string>

#include "host.hpp"
#include "settings.hpp"

namespace sale::ggml {

struct Refusal {
  std::string why;      // "" when the operation is served
  bool common = false;  // happens all the time (decoding): not worth a notice
};
Refusal why_not(const Host& host, const Settings& settings, const Tensor& op);

float parameter(const Tensor& op, int i);

}  // namespace sale::ggml
