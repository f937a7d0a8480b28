// One layer's attention over a whole prompt, as it was fed.
#pragma once

#include <cstdint>

#include "sale/calibration.h"

namespace sale::calibration {

struct Shape {
  int32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  sale_dtype dtype = SALE_BF16;
  int32_t group() const { return q_heads / kv_heads; }
};

struct Tensor {
  const void* data = nullptr;
  sale_strides strides{};  // elements; batch is not used
};

struct Layer {
  Shape shape;
  int32_t number = 0;
  int64_t tokens = 0;
  float scale = 0;
  Tensor q, k, v;  // in host memory
};

}  // namespace sale::calibration
