// Where work items, tiles and block lists are; what kernels of all stages need to know about a sequence. A Sequence
// lies among a kernel's parameters, at an index known when it runs: copy it once; behind every copy or barrier a
// reference is read anew, and slowly.
#pragma once

#include <cstdint>

#include "cuda/common/kernels.hpp"

namespace sale::cuda {

// One (sequence, tile, query head).
struct Place {
  const Sequence* sequence;
  int32_t tile, head;
};

__device__ __forceinline__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t visible_keys(const Sequence& s, int64_t row) { return s.end_key(row); }
// Block numbers fit 32 bits: max_keys.
template <int64_t tile_rows>
__device__ __forceinline__ int32_t visible_blocks(const Sequence& s, int64_t tile) {
  return static_cast<int32_t>(s.end_block(tile, tile_rows));
}
__device__ __forceinline__ int32_t local_block(const Sequence& s, int64_t row, int32_t local) {
  return static_cast<int32_t>(s.local_block(row, local));
}
__device__ __forceinline__ uint64_t* tile_bits(const Common& c, const Sequence& s, int32_t tile, int32_t head) {
  return c.bits + s.bits_at + head * s.words + c.row_word[s.row_word_at + tile];
}
__device__ __forceinline__ uint64_t bits_below(int32_t n) {
  return n <= 0 ? uint64_t{0} : n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}
// Which of the 32 blocks from `first` (a multiple of 32) on are dropped, of those below `end`. row: of block bits.
__device__ __forceinline__ uint32_t dropped_bits(const uint64_t* row, int32_t first, int32_t end) {
  if (first >= end) return 0;
  return static_cast<uint32_t>((~row[first / 64] & bits_below(end - first / 64 * 64)) >> first % 64);
}
// Token and outer (batch or page) coordinate of a key in K and V.
struct KeyPlace {
  int32_t token, outer;
};
__device__ __forceinline__ KeyPlace key_place(const Common& c, const Sequence& s, int64_t key) {
  if (c.page_size == 0) return {static_cast<int32_t>(s.k_start + key), s.batch};
  const auto at = static_cast<uint32_t>(key), page = at / static_cast<uint32_t>(c.page_size);  // 64 bits would be slow
  return {static_cast<int32_t>(at - page * static_cast<uint32_t>(c.page_size)), c.page_table[s.batch * c.pages + page]};
}

}  // namespace sale::cuda
