// Between the files of this folder.
#pragma once

#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

// Queries of items [first, first + items), then the vote on them.
cudaError_t launch_prepare(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream);  // FP8
cudaError_t launch_exact(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream);    // INT8
cudaError_t launch_attend8(const AttendCall& call, int32_t multiprocessors, cudaStream_t stream);       // low-bit
cudaError_t launch_scan(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream);

// Projected FP8: the largest coordinate of the first keys to the scratch (range), or the codes.
cudaError_t launch_projected(const IndexCall& call, bool range, cudaStream_t stream);

// Shared-memory limits of each file's kernels, on the current device.
cudaError_t allow_projected();
cudaError_t allow_prepare();
cudaError_t allow_scan();
cudaError_t allow_attend();
cudaError_t allow_attend8();
cudaError_t allow_audit();

}  // namespace sale::sm90
