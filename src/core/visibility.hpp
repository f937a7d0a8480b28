// Who sees what: the one place that knows which keys a row sees, which blocks a tile sees, and what of them is sink,
// candidate and local. For the host, CPU kernels and CUDA kernels alike; the oracle keeps its own.
//
//     keys    first_key(row)                                             end_key(row)
//     blocks  first_block | sink, kept | candidates of the scan | local, kept | end_block
//
// With a window, first_key moves along with the row, and what it left behind is not there; a sink that stays in sight
// stands before first_block. Of a tile the blocks that some rows do not see from their beginning on are candidates.
//
// Intervals are half open. Blocks are of k_block keys, numbered from the sequence's first key.
#pragma once

#include <cstdint>

// On the host and on devices. Always inlined: a copy of its own, compiled with one file's instruction-set flags, could
// be the one that the linker keeps for all.
#if defined(__CUDACC__)
#define SALE_BOTH __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define SALE_BOTH __attribute__((always_inline)) inline
#else
#define SALE_BOTH inline
#endif

namespace sale {

// The rows and keys of one sequence.
struct Sight {
  static constexpr int64_t block = 32;                    // keys
  static constexpr int64_t no_window = int64_t{1} << 40;  // one that leaves nothing out

  int64_t q_len, k_len, q_offset;
  int64_t last_position;  // up to which local keys are counted back from a row: k_len - 1, of a part no end
  int64_t window;         // keys up to its own that a row sees
  int64_t sink;           // keys at the start, whole blocks, that rows see besides, whatever their window

  // The key position of a row.
  SALE_BOTH constexpr int64_t position(int64_t row) const { return row + q_offset; }
  // What a row sees besides the sink; nothing where its window begins at or beyond end_key.
  SALE_BOTH constexpr int64_t first_key(int64_t row) const { return greater(0, position(row) + 1 - window); }
  SALE_BOTH constexpr int64_t end_key(int64_t row) const { return lesser(k_len, position(row) + 1); }
  SALE_BOTH constexpr bool windowed() const { return window != no_window; }
  SALE_BOTH constexpr int64_t sink_blocks() const { return sink / block; }

  // Tiles of `rows` query rows.
  SALE_BOTH constexpr int64_t tiles(int64_t rows) const { return (q_len + rows - 1) / rows; }
  SALE_BOTH constexpr int64_t first_row(int64_t tile, int64_t rows) const { return tile * rows; }
  SALE_BOTH constexpr int64_t end_row(int64_t tile, int64_t rows) const { return lesser(q_len, (tile + 1) * rows); }
  // Blocks of which some row of the tile sees some key, besides the sink.
  SALE_BOTH constexpr int64_t first_block(int64_t tile, int64_t rows) const {
    const int64_t key = first_key(first_row(tile, rows));
    return key < k_len ? key / block : blocks_of(k_len);
  }
  SALE_BOTH constexpr int64_t end_block(int64_t tile, int64_t rows) const {
    return blocks_of(end_key(end_row(tile, rows) - 1));
  }
  // How many they are, those of the sink included.
  SALE_BOTH constexpr int64_t visible_blocks(int64_t tile, int64_t rows) const {
    const int64_t first = first_block(tile, rows);
    return end_block(tile, rows) - first + lesser(sink_blocks(), first);
  }
  // The key from which on every row of the tile sees all up to its own.
  SALE_BOTH constexpr int64_t common_key(int64_t tile, int64_t rows) const {
    return first_key(end_row(tile, rows) - 1);
  }
  // Blocks [0, this) are the sink of a tile: its layer's of so many keys, as long as every row sees them.
  SALE_BOTH constexpr int64_t sink_end(int64_t tile, int64_t rows, int64_t keys) const {
    return sink > 0 || common_key(tile, rows) == 0 ? keys / block : 0;
  }
  // Candidates of a tile, [first, last): every other block it sees is kept. There are none where some row does not see
  // all of the local region.
  struct Candidates {
    int64_t first, last;
  };
  SALE_BOTH constexpr Candidates candidates(int64_t tile, int64_t rows, int64_t sink_keys, int64_t local) const {
    const int64_t first =
        lesser(greater(sink_end(tile, rows, sink_keys), first_block(tile, rows)), end_block(tile, rows));
    const int64_t last = local_block(first_row(tile, rows), local);
    return {first, common_key(tile, rows) <= last * block ? greater(first, last) : first};
  }
  // First local block of the rows that begin at `row`: the end of the keys where these are a part that lies far behind.
  SALE_BOTH constexpr int64_t local_block(int64_t row, int64_t local) const {
    const int64_t key = lesser(position(row), last_position) + 1 - local;
    return key <= 0 ? 0 : lesser(key / block, blocks_of(k_len));
  }
  // Compensation: of the rows that begin at `row`, dropped blocks count below this one: those before the local region,
  // as far as the first row sees all the keys of a mean.
  static constexpr int64_t mean_blocks = 8;  // of a pseudo-key
  SALE_BOTH constexpr int64_t mean_end(int64_t row, int64_t local) const {
    const int64_t seen = end_key(row), end = local_block(row, local);
    return seen == k_len ? end : lesser(end, seen / (mean_blocks * block) * mean_blocks);
  }
  // And from this one on: the first mean that every row of the tile sees from its first key on.
  SALE_BOTH constexpr int64_t mean_begin(int64_t tile, int64_t rows) const {
    constexpr int64_t keys = mean_blocks * block;
    return (common_key(tile, rows) + keys - 1) / keys * mean_blocks;
  }
  SALE_BOTH static constexpr int64_t blocks_of(int64_t keys) { return (keys + block - 1) / block; }
  // The first tile that sees more than `blocks` blocks; tiles() when there is none. What tiles see never shrinks.
  SALE_BOTH constexpr int64_t first_beyond(int64_t blocks, int64_t rows) const {
    const int64_t end = blocks * block - q_offset;  // a tile that ends behind this row
    if (k_len <= blocks * block || q_len <= end) return tiles(rows);
    return end < 0 ? 0 : end / rows;
  }
  // 64-bit words of a tile's row of block bits.
  SALE_BOTH constexpr int64_t row_words(int64_t tile, int64_t rows) const { return (end_block(tile, rows) + 63) / 64; }

private:
  SALE_BOTH static constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
  SALE_BOTH static constexpr int64_t greater(int64_t a, int64_t b) { return a < b ? b : a; }
};

// What a threshold makes of a head: 0 dense, the largest float (SALE_TAU_LOCAL) local. Neither is scanned.
SALE_BOTH constexpr bool is_local(float tau) { return tau == 0x1.fffffep127f; }
SALE_BOTH constexpr bool is_scanned(float tau) { return tau != 0 && !is_local(tau); }

// Row i of n that are audited of a sequence's rows: one in each of n equal parts, by the i-th number of splitmix64.
SALE_BOTH constexpr int64_t audited_row(int64_t q_len, int64_t n, int64_t i, uint64_t seed) {
  uint64_t x = seed + 0x9e3779b97f4a7c15u * (static_cast<uint64_t>(i) + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  const int64_t begin = i * q_len / n, end = (i + 1) * q_len / n;
  return begin + static_cast<int64_t>(x % static_cast<uint64_t>(end - begin));
}

}  // namespace sale
