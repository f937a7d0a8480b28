#include "cpu/common/tables.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine& m) { return m.avx2 ? "" : "this CPU has no AVX2 with FMA and F16C"; }
const Kernels& kernels(const Machine&) { return avx2::kernels; }
}  // namespace

const Backend avx2_backend =
    cpu_backend("avx2", "x86-64 with AVX2, FMA, F16C", why_not_machine, cpu_why_not_layer, kernels);

}  // namespace sale
