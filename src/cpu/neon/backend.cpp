#include "cpu/common/tables.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine& m) {
#if !defined(__aarch64__)
  return "this library is not built for 64-bit Arm";
#endif
  return m.neon ? "" : "SALE_HIDE hides it";
}
#if defined(__aarch64__)
const Kernels& kernels(const Machine& m) {
  static const Kernels matrix = [] {
    Kernels k = neon::kernels_dotprod;
    k.select_scratch = neon::select_scratch_matrix;
    k.select = neon::select_matrix;
    k.attend_scratch = neon::attend_scratch_matrix;
    k.attend = neon::attend_matrix;
    return k;
  }();
  if (!m.neon_dotprod) return neon::kernels;
  return m.neon_i8mm && m.neon_bf16 ? matrix : neon::kernels_dotprod;
}
#else
constexpr decltype(Backend::kernels) kernels = nullptr;
#endif
}  // namespace

const Backend neon_backend =
    cpu_backend("neon", "arm64 (dot products, 8-bit and bf16 matrix products where they are there)", why_not_machine,
                cpu_why_not_layer, kernels);

}  // namespace sale
