// cuda/common/blocks.cuh for this backend's tiles.
#pragma once

#include "cuda/common/blocks.cuh"
#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

using cuda::bits_below;
using cuda::dropped_bits;
using cuda::key_place;
using cuda::KeyPlace;
using cuda::least;
using cuda::local_block;
using cuda::Place;
using cuda::tile_bits;
using cuda::visible_keys;

__device__ __forceinline__ int32_t visible_blocks(const Sequence& s, int64_t tile) {
  return cuda::visible_blocks<tile_rows>(s, tile);
}

}  // namespace sale::sm90
