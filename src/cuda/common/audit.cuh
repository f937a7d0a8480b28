// What an audit's kernels know of a row.
#pragma once

#include "cuda/common/blocks.cuh"

namespace sale::cuda {

// What a kernel knows of lane `at` of kv head `kv_head`.
struct Lane {
  int32_t head;
  int64_t row, seen;  // seen: keys; 0: there is no such lane

  __device__ Lane(const AuditCall& c, int32_t kv_head, int64_t at) : head(0), row(0), seen(0) {
    if (at >= int64_t{c.n_rows} * c.group) return;
    head = kv_head * c.group + static_cast<int32_t>(at % c.group);
    row = c.rows[at / c.group];
    seen = least(c.k_len, row + c.q_offset + 1);
  }
  __device__ const uint64_t* bits(const AuditCall& c) const {
    return c.bits + head * c.words + c.row_word[row / c.tile_rows];
  }
};

}  // namespace sale::cuda
