#include "cpu/common/tables.hpp"
#include "cpu/stages.hpp"

namespace sale {
namespace {
#if defined(SALE_AMX_EMULATE)  // a test build: see tile.hpp
std::string why_not_machine(const Machine& m) { return m.avx512_bf16 ? "" : "this CPU has no AVX512-BF16"; }
#else
std::string why_not_machine(const Machine& m) {
  if (!m.amx_reason.empty()) return m.amx_reason;
  return m.amx_int8 && m.amx_bf16 && m.avx512_bf16 ? "" : "this CPU has no AMX with INT8 and BF16 tiles";
}
#endif
std::string why_not_layer(const Layer& layer) {
  if (layer.head_dim % 64 != 0) return "head_dim " + std::to_string(layer.head_dim) + " is not a multiple of 64";
  return cpu_why_not_layer(layer);
}
const Kernels& kernels(const Machine&) {
  static const Kernels tiled = [] {
    Kernels k = avx512::kernels;
    k.select_scratch = amx::select_scratch;
    k.attend_scratch = amx::attend_scratch;
    k.select = amx::select;
    k.attend = amx::attend;
    return k;
  }();
  return tiled;
}
}  // namespace

const Backend amx_backend =
    cpu_backend("amx", "x86-64 with AMX INT8 and BF16 tiles, AVX-512", why_not_machine, why_not_layer, kernels);

}  // namespace sale
