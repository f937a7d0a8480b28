// Where work items, tiles and block lists are; what kernels of all stages need to know about a sequence.
#pragma once

#include <cstdint>

#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

// One (sequence, tile, query head).
struct Place {
  const Sequence* sequence;
  int32_t tile, head;
};

__device__ __forceinline__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t visible_keys(const Sequence& s, int64_t row) {
  return least(s.k_len, row + s.q_offset + 1);
}
__device__ __forceinline__ int64_t last_row(const Sequence& s, int64_t tile) {
  return least(s.q_len, (tile + 1) * tile_rows) - 1;
}
__device__ __forceinline__ int32_t visible_blocks(const Sequence& s, int64_t tile) {
  return static_cast<int32_t>((visible_keys(s, last_row(s, tile)) + block_keys - 1) / block_keys);
}
// First local block of the rows that begin at `row`.
__device__ __forceinline__ int32_t local_block(const Sequence& s, int64_t row, int32_t local) {
  const int64_t key = least(row + s.q_offset, s.k_len - 1) + 1 - local;
  return key <= 0 ? 0 : static_cast<int32_t>(key / block_keys);
}
__device__ __forceinline__ uint64_t* tile_bits(const Common& c, const Sequence& s, int32_t tile, int32_t head) {
  return c.bits + s.bits_at + head * s.words + c.row_word[s.row_word_at + tile];
}
// Token and outer coordinate of a key for the tensor maps of K and V.
struct KeyPlace {
  int32_t token, outer;
};
__device__ __forceinline__ KeyPlace key_place(const Common& c, const Sequence& s, int64_t key) {
  if (c.page_size == 0) return {static_cast<int32_t>(s.k_start + key), s.batch};
  const int64_t page = key / c.page_size;
  return {static_cast<int32_t>(key - page * c.page_size), c.page_table[s.batch * c.pages + page]};
}

}  // namespace sale::sm90
