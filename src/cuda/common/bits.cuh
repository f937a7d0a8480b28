// A row of block bits, walked by a warp.
#pragma once

#include <cstdint>

namespace sale::cuda {

// Set bits of a row, highest first: a dozen instructions each, for those who walk are as busy as anyone. All lanes of
// the warp together.
struct Bits {
  const uint32_t* row;
  int32_t words;         // of the row, 32 bits each
  int32_t first;         // word of lane 0
  uint32_t mine = 0;     // this lane's word of the 32 there
  uint32_t filled = 0;   // lanes whose words are still to come and not 0
  uint32_t current = 0;  // what is left of a word, and where its bits begin
  int32_t base = 0;

  __device__ Bits(const uint64_t* from, int32_t n_words)
      : row(reinterpret_cast<const uint32_t*>(from)), words(2 * n_words), first((words + 31) / 32 * 32) {}
  // -1 when there is none left.
  __device__ __forceinline__ int32_t next() {
    while (current == 0) {
      if (filled == 0) {
        if (first == 0) return -1;
        first -= 32;
        const int32_t at = first + static_cast<int32_t>(threadIdx.x % 32);
        mine = at < words ? row[at] : 0;
        filled = __ballot_sync(0xffffffff, mine != 0);
        continue;
      }
      const int lane = 31 - __clz(static_cast<int>(filled));
      filled ^= 1u << lane;
      current = __shfl_sync(0xffffffff, mine, lane);
      base = (first + lane) * 32;
    }
    const int bit = 31 - __clz(static_cast<int>(current));
    current ^= 1u << bit;
    return base + bit;
  }
};

}  // namespace sale::cuda
