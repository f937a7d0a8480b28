// Between the files of this folder.
#pragma once

#include "cuda/sm80/kernels.hpp"

namespace sale::sm80 {

// INT4: smoothing vectors of the queries, and their products with the keys. Of every sequence that is not dense.
cudaError_t launch_bias(const SelectCall& call, cudaStream_t stream);
// Queries of chunks [first, first + chunks): codes, thresholds; then the vote on them.
cudaError_t launch_queries(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream);
cudaError_t launch_reference(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream);
cudaError_t launch_scan(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream);

// Shared-memory limits of each file's kernels, on the current device.
cudaError_t allow_scan();
cudaError_t allow_audit();

}  // namespace sale::sm80
