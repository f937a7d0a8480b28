// What tells one GPU backend from another where the host's work is the same.
#pragma once

#include <vector>

#include "core/objects.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/kernels.hpp"

namespace sale::cuda {

struct Architecture {
  Generation generation;
  int64_t tile_rows;  // of a query tile
  // Key index.
  int32_t (*width)(const Form&);                                // bytes of a coded key
  int32_t (*scales)(const Form&);                               // a block of keys; 0: one a kv head
  size_t (*index_scratch)(int32_t kv_heads, int32_t head_dim);  // bytes, for low-bit keys too
  cudaError_t (*index)(const IndexCall&, cudaStream_t);
  // The codes of one key, `rank` numbers, from its head's.
  void (*decode)(const uint8_t* codes, int64_t key, const Form&, int8_t* to);
  // A layer's q_projection, as the kernels read it.
  std::vector<char> (*q_projection)(const Layer&);
  // The partials of an audit.
  cudaError_t (*audit)(const AuditCall&, cudaStream_t);
};

}  // namespace sale::cuda
