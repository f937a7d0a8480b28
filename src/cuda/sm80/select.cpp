// Selection in slices of chunks, so that coded queries need bounded memory whatever the length.
#include <initializer_list>

#include "cuda/sm80/launch.hpp"

namespace sale::sm80 {
namespace {
constexpr int64_t limits_per_tile = tile_rows + tile_rows / 2;  // queries.cuh
}

SelectScratch select_scratch(const Estimator& estimator, int32_t q_heads, int32_t group, int64_t chunks) {
  const int64_t tiles = chunks * q_heads * chunk_tiles(group);
  return {static_cast<size_t>(tiles * tile_rows * estimator.width),
          static_cast<size_t>(tiles * limits_per_tile) * sizeof(float)};
}

cudaError_t launch_select(const SelectCall& call, cudaStream_t stream) {
  if (call.estimator.format == SALE_INT4)
    if (const cudaError_t e = launch_bias(call, stream); e != cudaSuccess) return e;
  for (int64_t first = 0; first < call.n_chunks; first += call.slice) {
    const int64_t rest = call.n_chunks - first;
    const auto at = static_cast<int32_t>(first), chunks = static_cast<int32_t>(rest < call.slice ? rest : call.slice);
    for (const auto stage : {launch_queries, launch_reference, launch_scan})
      if (const cudaError_t e = stage(call, at, chunks, stream); e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

cudaError_t prepare_device() {
  for (const auto allow : {allow_scan, allow_attend, allow_audit})
    if (const cudaError_t e = allow(); e != cudaSuccess) return e;
  return cudaSuccess;
}

}  // namespace sale::sm80
