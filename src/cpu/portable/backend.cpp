#include "core/plan.hpp"
#include "cpu/portable/kernels.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine&) { return {}; }
const Kernels& kernels(const Machine&) {
  using namespace portable;
  static constexpr Kernels k{select_scratch, attend_scratch, index, bias, select, attend, audit_scratch, audit};
  return k;
}
}  // namespace

const Backend portable_backend =
    cpu_backend("portable", "any CPU, baseline instructions", why_not_machine, cpu_why_not_layer, kernels);

}  // namespace sale
