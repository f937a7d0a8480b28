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
// Block numbers fit 32 bits: max_keys.
template <int64_t tile_rows>
__device__ __forceinline__ int32_t end_block(const Sequence& s, int64_t tile) {
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
// Bits [begin, end) of a row of bits, those of its word w.
__device__ __forceinline__ uint64_t bits_between(int32_t begin, int32_t end, int32_t w) {
  return bits_below(end - 64 * w) & ~bits_below(begin - 64 * w);
}
// A tile's row of block bits as selection leaves it.
struct RowOfBits {
  int32_t begin, end, sink;     // the tile sees blocks [begin, end) and those of [0, sink) that are below end
  int32_t first = 0, last = 0;  // candidates; the others are kept

  __device__ RowOfBits(const Common& c, const Sequence& s, int64_t tile, int64_t rows, bool drops)
      : begin(static_cast<int32_t>(s.first_block(tile, rows))),
        end(static_cast<int32_t>(s.end_block(tile, rows))),
        sink(static_cast<int32_t>(s.sink_blocks())) {
    if (!drops) return;
    const Sight::Candidates asked = s.candidates(tile, rows, c.sink, c.local);
    first = static_cast<int32_t>(asked.first), last = static_cast<int32_t>(asked.last);
  }
  __device__ int32_t words() const { return (end + 63) / 64; }
  __device__ uint64_t word(int32_t w, uint64_t votes) const {
    const uint64_t asked = bits_between(first, last, w), seen = ~bits_below(begin - 64 * w) | bits_below(sink - 64 * w);
    return ((votes & asked) | ~asked) & seen & bits_below(end - 64 * w);
  }
};
// Whether something of a head's tile may be dropped, and whether it has to be looked at.
__device__ __forceinline__ bool drops(const Common& c, const Sequence& s, int32_t head, int64_t tile, int64_t rows) {
  const Sight::Candidates asked = s.candidates(tile, rows, c.sink, c.local);
  return s.dense == 0 && c.thresholds[head] != 0 && asked.last > asked.first;
}
__device__ __forceinline__ int32_t mean_end(const Sequence& s, int64_t row, int32_t local) {
  return static_cast<int32_t>(s.mean_end(row, local));
}
// From which on they count; at the sequence's end at the latest.
__device__ __forceinline__ int32_t mean_begin(const Common& c, const Sequence& s, int64_t tile, int64_t rows) {
  return c.windowed == 0 ? 0 : static_cast<int32_t>(least(s.mean_begin(tile, rows), Sight::blocks_of(s.k_len)));
}
// How many of the blocks of each of the pseudo-keys 4 w .. 4 w + 3 are dropped and in [begin, end), a byte each. row:
// of block bits.
__device__ __forceinline__ uint32_t dropped_counts(const uint64_t* row, int32_t w, int32_t begin, int32_t end) {
  constexpr auto of_mean = static_cast<int32_t>(mean_blocks);
  static_assert(64 % (4 * of_mean) == 0);
  const int32_t first = w * 4 * of_mean, word = first / 64;
  if (first >= end) return 0;
  const uint64_t x = (~row[word] & bits_below(end - word * 64) & ~bits_below(begin - word * 64)) >> first % 64;
  uint32_t counts = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    counts |= static_cast<uint32_t>(__popc(static_cast<uint32_t>(x >> of_mean * i) & ((1u << of_mean) - 1))) << 8 * i;
  return counts;
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
