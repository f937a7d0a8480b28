#include "core/backend.hpp"
#include "cpu/portable/kernels.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine&) { return {}; }
std::string why_not(const sale_problem&, const sale_options&) { return {}; }
const Kernels& kernels(const Machine&) {
  using namespace portable;
  static constexpr Kernels k{select_scratch, attend_scratch, index, bias, select, attend};
  return k;
}
}  // namespace

const Backend portable_backend{"portable", "any CPU, baseline instructions", why_not_machine, why_not, kernels};

}  // namespace sale
