#include "core/plan.hpp"
#include "cpu/avx2/kernels.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine& m) { return m.avx2 ? "" : "this CPU has no AVX2 with FMA and F16C"; }
const Kernels& kernels(const Machine&) {
  using namespace avx2;
  static constexpr Kernels k{select_scratch, attend_scratch, index, bias, select, attend, audit_scratch, audit};
  return k;
}
}  // namespace

const Backend avx2_backend =
    cpu_backend("avx2", "x86-64 with AVX2, FMA, F16C", why_not_machine, cpu_why_not_layer, kernels);

}  // namespace sale
