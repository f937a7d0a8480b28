// Coded queries: what queries.cu and reference.cu write and scan.cu reads. A chunk is chunk_tiles() tiles of a
// sequence.
#pragma once

#include "cuda/common/blocks.cuh"
#include "cuda/sm80/launch.hpp"

namespace sale::sm80 {

using cuda::key_place;
using cuda::KeyPlace;
using cuda::least;
using cuda::local_block;

// Per (chunk of the slice, head, tile of the chunk): 64 coded rows; 64 thresholds, then scales of codes: INT4 one a
// pair of rows (r, r + 8) of each 16, INT8 the tile's times that of scores.
constexpr int64_t limits_per_tile = tile_rows + tile_rows / 2;
struct QueryPlace {
  uint8_t* codes;
  float *limits, *scales;
};
__device__ __forceinline__ QueryPlace query_place(const SelectCall& c, int64_t chunk, int32_t head, int32_t tile) {
  const int64_t at = (chunk * c.common.q_heads + head) * chunk_tiles(c.common.group) + tile;
  float* limits = c.limits + at * limits_per_tile;
  return {c.q_codes + at * tile_rows * c.estimator.width, limits, limits + tile_rows};
}

// The row that stands in for row r of a tile of n: itself where it is there; else its partner of the pair, else the
// first pair. An absent row then votes what another one does.
__device__ __forceinline__ int stand_in(int r, int n) {
  if (r < n) return r;
  if (r % 16 >= 8) return r - 8 < n ? r - 8 : 8 < n ? 8 : 0;
  return 0;
}

// The b_j of a block's 32 keys in the order of the threads that use them: key 8 n + 2 g + e at 8 g + 2 n + e.
__device__ __forceinline__ int bias_place(int key) { return key % 8 / 2 * 8 + key / 8 * 2 + key % 2; }

// Whether anything between sink and local keys of a head's tile may be dropped, and whether it has to be looked at.
__device__ __forceinline__ bool drops(const Common& c, const Sequence& s, int32_t head, int64_t tile) {
  return cuda::drops(c, s, head, tile, tile_rows);
}
__device__ __forceinline__ bool scans(const Common& c, const Sequence& s, int32_t head, int64_t tile) {
  return drops(c, s, head, tile) && !is_local(c.thresholds[head]);
}
__device__ __forceinline__ const uint16_t* query_row(const SelectCall& call, const Sequence& s, int32_t head,
                                                     int64_t row) {
  return static_cast<const uint16_t*>(call.q.base) + s.batch * call.q.outer + head * call.q.head +
         (s.q_start + row) * call.q.token;
}
__device__ __forceinline__ const uint16_t* key_row(const SelectCall& call, const Sequence& s, int32_t kv_head,
                                                   int64_t key) {
  const KeyPlace place = key_place(call.common, s, key);
  return static_cast<const uint16_t*>(call.k.base) + kv_head * call.k.head + int64_t{place.outer} * call.k.outer +
         int64_t{place.token} * call.k.token;
}

}  // namespace sale::sm80
