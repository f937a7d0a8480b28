#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One sequence, bf16, contiguous. */
struct older_tensors {
  int32_t q_heads, kv_heads, head_dim;
  int64_t tokens;
  const void *q, *k, *v;
  void* out;
};
/* A sale_status. */
int older_attention(const struct older_tensors* tensors);
size_t older_problem_size(void);
size_t older_call_size(void);

#ifdef __cplusplus
}
#endif
