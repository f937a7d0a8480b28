// What the model asks of whoever computes attention. All tensors are bf16 bit patterns, the head dimension contiguous.
#pragma once

#include <cstdint>

namespace sale::lm {

struct AttentionCall {  // one layer, one chunk
  int layer;
  int64_t q_len, k_len;  // k_len includes this chunk: its first query sits at key position k_len - q_len
  int q_heads, kv_heads, head_dim;
  float scale;
  const uint16_t *q, *k, *v;
  int64_t q_token_stride, q_head_stride, kv_token_stride, kv_head_stride;  // in elements
  uint16_t* out;
  int64_t out_token_stride, out_head_stride;
  bool decode;  // true while tokens are generated one by one
};

class Attention {
public:
  virtual ~Attention() = default;
  // Causal attention of the chunk's queries over keys [0, k_len), written to out.
  virtual void run(const AttentionCall& call) = 0;
  // The cache was cut to this many tokens: forget what was remembered of later keys.
  virtual void truncate(int64_t tokens) { static_cast<void>(tokens); }
};

}  // namespace sale::lm
