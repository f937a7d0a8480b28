// Selection in slices of items, so that coded queries need bounded memory whatever the length.
#include <initializer_list>

#include "cuda/sm90/launch.hpp"

namespace sale::sm90 {
namespace {
constexpr int64_t limits_per_item = tile_rows + 4;  // queries.cuh
}

SelectScratch select_scratch(const Estimator& estimator, int32_t q_heads, int64_t items) {
  const auto rows = static_cast<size_t>(items) * static_cast<size_t>(q_heads);
  return {rows * static_cast<size_t>(tile_rows * estimator.width),
          rows * static_cast<size_t>(limits_per_item) * sizeof(float)};
}

cudaError_t launch_select(const SelectCall& call, int32_t, cudaStream_t stream) {
  const bool int8 = call.estimator.format == SALE_INT8;
  for (int64_t first = 0; first < call.common.n_items; first += call.slice) {
    const int64_t rest = call.common.n_items - first;
    const auto at = static_cast<int32_t>(first), items = static_cast<int32_t>(rest < call.slice ? rest : call.slice);
    const auto prepare = int8 ? launch_exact : launch_prepare;
    for (const auto stage : {prepare, launch_scan})
      if (const cudaError_t e = stage(call, at, items, stream); e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

cudaError_t prepare_device() {
  for (const auto allow : {allow_projected, allow_prepare, allow_scan, allow_attend, allow_attend8, allow_audit})
    if (const cudaError_t e = allow(); e != cudaSuccess) return e;
  return cudaSuccess;
}

}  // namespace sale::sm90
