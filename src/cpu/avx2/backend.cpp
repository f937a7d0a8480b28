#include "core/backend.hpp"
#include "cpu/avx2/kernels.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine& m) { return m.avx2 ? "" : "this CPU has no AVX2 with FMA and F16C"; }
std::string why_not(const sale_problem&, const sale_options&) { return {}; }
const Kernels& kernels(const Machine&) {
  using namespace avx2;
  static constexpr Kernels k{select_scratch, attend_scratch, index, bias, select, attend};
  return k;
}
}  // namespace

const Backend avx2_backend{"avx2", "x86-64 with AVX2, FMA, F16C", why_not_machine, why_not, kernels};

}  // namespace sale
