// cuda/common/blocks.cuh for this backend's tiles.
#pragma once

#include "cuda/common/blocks.cuh"
#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

using cuda::bits_below;
using cuda::dropped_counts;
using cuda::key_place;
using cuda::KeyPlace;
using cuda::least;
using cuda::local_block;
using cuda::mean_begin;
using cuda::mean_end;
using cuda::Place;
using cuda::tile_bits;

__device__ __forceinline__ int32_t end_block(const Sequence& s, int64_t tile) {
  return cuda::end_block<tile_rows>(s, tile);
}

}  // namespace sale::sm90
