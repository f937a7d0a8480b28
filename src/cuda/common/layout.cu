// What a plan knows of tiles and rows, written into the workspace: the order of the work items, where rows of block
// bits begin, which rows are audited. From lengths and offsets among the parameters, so that making a plan copies
// nothing to the device and a captured call needs nothing of the host's. A thread block a sequence.
//
//   items, chunks   an item's place is how many come before it: those that see more blocks, and of those that see as
//                   many the ones of earlier sequences and tiles. Sight::first_beyond counts them without a look at any
//   row_word        sums over the tiles: each thread its share, then those of the threads before it
//
// Floor: some 10 us of latency; 16 bytes a tile are written, 256 KiB at 1M tokens.
#include "cuda/common/blocks.cuh"

namespace sale::cuda {
namespace {

constexpr int threads = 256;

// Every `step`-th tile is an item, by the blocks that its first tile sees.
__device__ void place_items(const LayoutCall& c, int32_t sequence, int32_t step, Item* to) {
  const Sight mine = c.sights[sequence];
  const int64_t rows = c.tile_rows, tiles = mine.tiles(rows);
  // Items of a sequence that see more than so many blocks: its last ones.
  const auto beyond = [&](const Sight& s, int64_t blocks) {
    const int64_t all = (s.tiles(rows) + step - 1) / step;
    return all - least(all, (s.first_beyond(blocks, rows) + step - 1) / step);
  };
  for (int64_t tile = int64_t{threadIdx.x} * step; tile < tiles; tile += int64_t{threads} * step) {
    const int64_t blocks = mine.end_block(tile, rows), all = (tiles + step - 1) / step;
    // Of this one's: those that see more, and of those that see as many the earlier ones.
    int64_t before = beyond(mine, blocks) + tile / step - (all - beyond(mine, blocks - 1));
    for (int32_t s = 0; s < c.n_sequences; ++s)
      if (s != sequence) before += beyond(c.sights[s], s < sequence ? blocks - 1 : blocks);
    to[before] = {sequence, static_cast<int32_t>(tile)};
  }
}

__device__ void place_rows(const LayoutCall& c, int32_t sequence) {
  __shared__ int64_t sums[threads];
  const Sight s = c.sights[sequence];
  const int64_t rows = c.tile_rows, tiles = s.tiles(rows), share = (tiles + threads - 1) / threads;
  const int64_t begin = least(tiles, threadIdx.x * share), end = least(tiles, begin + share);
  int64_t sum = 0;
  for (int64_t t = begin; t < end; ++t) sum += s.row_words(t, rows);
  sums[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) sum += sums[i];
  int64_t* to = c.row_word + c.row_word_at[sequence];
  for (int64_t t = begin; t < end; ++t) {
    to[t] = sum;
    sum += s.row_words(t, rows);
  }
}

__global__ void __launch_bounds__(threads) layout_kernel(const __grid_constant__ LayoutCall c) {
  const auto sequence = static_cast<int32_t>(blockIdx.x);
  place_items(c, sequence, 1, c.items);
  if (c.chunk_tiles != 0) place_items(c, sequence, c.chunk_tiles, c.chunks);
  place_rows(c, sequence);
  const int64_t n = c.audited[sequence];
  for (int64_t i = threadIdx.x; i < n; i += threads)
    c.audit_rows[c.audited_at[sequence] + i] = audited_row(c.sights[sequence].q_len, n, i, c.audit_seed);
}

}  // namespace

cudaError_t launch_layout(const LayoutCall& call, cudaStream_t stream) {
  layout_kernel<<<static_cast<unsigned>(call.n_sequences), threads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace sale::cuda
