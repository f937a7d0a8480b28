// What an audit's kernels know of a row.
#pragma once

#include "cuda/common/blocks.cuh"

namespace sale::cuda {

// What a kernel knows of lane `at` of kv head `kv_head`.
struct Lane {
  int32_t head;
  int64_t row, seen;  // seen: the keys it sees are below; 0: there is no such lane
  int64_t first = 0;  // and none before, but the sink

  __device__ Lane(const AuditCall& c, int32_t kv_head, int64_t at) : head(0), row(0), seen(0) {
    if (at >= int64_t{c.n_rows} * c.group) return;
    head = kv_head * c.group + static_cast<int32_t>(at % c.group);
    row = c.rows[at / c.group];
    seen = c.sight.end_key(row);
    first = least(c.sight.first_key(row), max_keys);
  }
  __device__ const uint64_t* bits(const AuditCall& c) const {
    return c.bits + head * c.words + c.row_word[row / c.tile_rows];
  }
};

__device__ __forceinline__ float over_four(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Whether every row from `first`'s on has left the keys of a step behind.
__device__ __forceinline__ bool is_behind(const AuditCall& c, const Lane& first, int64_t step, int64_t keys) {
  return (step + 1) * keys <= first.first && step * keys >= c.sight.sink;
}

// The weight of one row's kept blocks in a step, of scores as common/softmax.cuh has them. kept: a bit a block.
template <int N>
__device__ __forceinline__ float kept_weight(const float (&p)[N], int r, uint32_t kept) {
  float sum = 0;
#pragma unroll
  for (int b = 0; b < N / 16; ++b) {
    float block = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) block += p[16 * b + i / 2 * 4 + 2 * r + i % 2];
    if ((kept >> b & 1) != 0) sum += block;
  }
  return sum;
}

}  // namespace sale::cuda
