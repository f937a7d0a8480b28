// The host side of the CPU backends.
#pragma once

#include "core/format.hpp"
#include "core/plan.hpp"

namespace sale {

extern const Stages cpu_stages;
// What no CPU backend serves.
std::string cpu_why_not_layer(const Layer& layer);
std::string cpu_why_not(const sale_problem& p, const sale_options& o);

// An entry of the list: what tells one instruction set from another, and what all have.
constexpr Backend cpu_backend(const char* name, const char* summary, decltype(Backend::why_not_machine) why_not_machine,
                              decltype(Backend::why_not_layer) why_not_layer, decltype(Backend::kernels) kernels) {
  const uint32_t all = format_bit(SALE_INT4) | format_bit(SALE_FP4) | format_bit(SALE_INT8);
  return {name, summary, false,           SALE_Q_BLOCK,  SALE_INT8,   all,         all,    true,
          1024, 1024,    why_not_machine, why_not_layer, cpu_why_not, &cpu_stages, kernels};
}

}  // namespace sale
