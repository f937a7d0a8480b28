// The Ampere and Ada backend as the list shows it, and Blackwell's, which runs the same kernels by their PTX and has no
// 4-bit integers; compiled with and without CUDA.
#include "core/backend.hpp"
#include "core/format.hpp"
#include "core/plan.hpp"
#include "core/status.hpp"
#include "cuda/common/why_not.hpp"
#include "cuda/sm80/host.hpp"

namespace sale {
namespace {

#if defined(SALE_WITH_CUDA)
std::string why_not_machine(const Machine& m) {
  if (hidden(m, "sm80")) return "SALE_HIDE takes it away";
  return sm80::why_no_device();
}
const Stages* const stages = &sm80::stages;
constexpr auto why_not_unasked = sm80::why_not_unasked;
std::string why_no_blackwell(const Machine& m) {
  if (hidden(m, "sm100")) return "SALE_HIDE takes it away";
  return sm80::why_no_blackwell();
}
std::string why_not_blackwell(const Layer& l) {
  return sm80::why_no_blackwell().empty() ? sm80::why_not_blackwell(l.device) : std::string();
}
#else
std::string why_not_machine(const Machine&) { return "this build was made without CUDA"; }
constexpr auto why_no_blackwell = why_not_machine;
std::string why_not_blackwell(const Layer&) { return {}; }
const Stages* const stages = nullptr;
constexpr std::string (*why_not_unasked)(int32_t) = nullptr;
#endif

std::string why_not_layer(const Layer& l) {
  if (std::string why = cuda::why_not_layer(l); !why.empty()) return why;
  if (l.form.format == SALE_FP8) return "format SALE_FP8 is Hopper's; SALE_INT4 and SALE_INT8 are the formats here";
  return {};
}
std::string why_not_layer_blackwell(const Layer& l) {
  if (std::string why = why_not_layer(l); !why.empty()) return why;
  if (l.form.format == SALE_INT4)
    return "format SALE_INT4: Blackwell has no 4-bit integer products; SALE_INT8 is the format here";
  return why_not_blackwell(l);
}
std::string why_not(const sale_problem& p, const sale_options&) { return cuda::why_not_problem(p); }
constexpr uint32_t formats = format_bit(SALE_INT4) | format_bit(SALE_INT8);

}  // namespace

const Backend sm80_backend{"sm80",         "NVIDIA Ampere, Ada (RTX 30, RTX 40, A100, L40): 4-bit products",
                           true,           64,
                           SALE_INT4,      formats,
                           formats,        true,
                           1024,  // nothing was measured on such a card
                           1024,           why_not_machine,
                           why_not_layer,  why_not,
                           stages,         nullptr,
                           why_not_unasked};

const Backend sm100_backend{"sm100",
                            "NVIDIA Blackwell (RTX 50, RTX PRO, B200): the kernels of sm80 by their PTX",
                            true,
                            64,
                            SALE_INT8,
                            format_bit(SALE_INT8),
                            format_bit(SALE_INT8),
                            true,
                            1024,  // nothing was measured on such a card
                            1024,
                            why_no_blackwell,
                            why_not_layer_blackwell,
                            why_not,
                            stages,
                            nullptr};

}  // namespace sale
