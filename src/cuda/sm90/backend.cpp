// The Hopper backend as the list shows it; compiled with and without CUDA.
#include "core/backend.hpp"
#include "core/format.hpp"
#include "core/plan.hpp"
#include "core/status.hpp"
#include "cuda/common/why_not.hpp"
#include "cuda/sm90/host.hpp"

namespace sale {
namespace {

#if defined(SALE_WITH_CUDA)
std::string why_not_machine(const Machine& m) {
  if (hidden(m, "sm90")) return "SALE_HIDE takes it away";
  return sm90::why_no_device();
}
const Stages* const stages = &sm90::stages;
constexpr auto why_not_unasked = sm90::why_not_unasked;
#else
std::string why_not_machine(const Machine&) { return "this build was made without CUDA"; }
const Stages* const stages = nullptr;
constexpr std::string (*why_not_unasked)(int32_t) = nullptr;
#endif

std::string why_not_layer(const Layer& l) {
  if (std::string why = cuda::why_not_layer(l); !why.empty()) return why;
  if (l.form.format == SALE_INT4) return "format SALE_INT4: Hopper has no 4-bit products; SALE_FP8 is its format";
  if (l.form.format == SALE_INT8 && l.form.projected)
    return text("rank ", l.form.rank, ": SALE_INT8 scans all coordinates here; SALE_FP8 has projections");
  return {};
}

// The copy engine's limit.
std::string why_not_far(const char* name, const sale_strides& s) {
  for (const auto& [axis, stride] : {std::pair("batch", s.batch), {"head", s.head}, {"token", s.token}})
    if (stride >= int64_t{1} << 39) return text(name, " strides: ", axis, " stride ", stride, " exceeds 2^39");
  return {};
}

std::string why_not(const sale_problem& p, const sale_options& o) {
  if (std::string why = cuda::why_not_problem(p); !why.empty()) return why;
  if (o.compute == SALE_COMPUTE_INT8) return "compute SALE_COMPUTE_INT8 does not run on Hopper; SALE_COMPUTE_FP8 does";
  if (o.compute == SALE_COMPUTE_F16) return "compute SALE_COMPUTE_F16 does not run on Hopper; SALE_COMPUTE_FP8 does";
  const std::pair<const char*, const sale_strides&> tensors[] = {{"q", p.q}, {"k", p.k}, {"v", p.v}, {"out", p.out}};
  for (const auto& [name, strides] : tensors)
    if (std::string why = why_not_far(name, strides); !why.empty()) return why;
  return {};
}

}  // namespace

const Backend sm90_backend{"sm90",
                           "NVIDIA Hopper (H100, H200): wgmma, copy engine, FP8",
                           true,
                           128,
                           SALE_FP8,
                           format_bit(SALE_FP8) | format_bit(SALE_INT8),
                           format_bit(SALE_FP8),
                           true,
                           5120,
                           9216,
                           why_not_machine,
                           why_not_layer,
                           why_not,
                           stages,
                           nullptr,
                           why_not_unasked};

}  // namespace sale
