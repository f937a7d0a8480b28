#include "cpu/common/tables.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
std::string why_not_machine(const Machine& m) {
  return m.avx512 ? "" : "this CPU has no AVX-512 with BW, DQ, VL and VNNI";
}
std::string why_not_layer(const Layer& layer) {
  if (layer.head_dim % 32 != 0) return "head_dim " + std::to_string(layer.head_dim) + " is not a multiple of 32";
  return cpu_why_not_layer(layer);
}
const Kernels& kernels(const Machine& m) {
  static const Kernels bf16 = [] {
    Kernels k = avx512::kernels;
    k.attend_scratch = avx512::attend_scratch_bf16;
    k.attend = avx512::attend_bf16;
    return k;
  }();
  return m.avx512_bf16 ? bf16 : avx512::kernels;
}
}  // namespace

const Backend avx512_backend =
    cpu_backend("avx512", "x86-64 with AVX-512 (VNNI; bf16 products where AVX512-BF16 is there)", why_not_machine,
                why_not_layer, kernels);

}  // namespace sale
