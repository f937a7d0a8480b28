// The program that loaded us: its ggml functions, found at run time so that one binary serves hosts of several versions
// and can say in words why it serves none; what its enumerations are numbered like; which interface version it speaks.
#pragma once

#include <string>
#include <vector>

#include "ggml_abi.hpp"

namespace sale::ggml {

enum class Type { f32, f16, bf16, q8_0, other };

struct Host {
  // ggml_init and so on, without the prefix.
  Context* (*init)(ContextParameters);
  void (*free)(Context*);
  Tensor* (*new_tensor_4d)(Context*, int32_t type, int64_t, int64_t, int64_t, int64_t);
  Tensor* (*view_4d)(Context*, Tensor*, int64_t, int64_t, int64_t, int64_t, size_t, size_t, size_t, size_t);
  Tensor* (*set_name)(Tensor*, const char*);
  Tensor* (*flash_attn_ext)(Context*, Tensor* q, Tensor* k, Tensor* v, Tensor* mask, float, float, float);
  Graph* (*new_graph)(Context*);
  void (*build_forward_expand)(Graph*, Tensor*);
  int (*graph_n_nodes)(Graph*);
  Tensor* (*graph_node)(Graph*, int);
  size_t (*graph_overhead)();
  size_t (*tensor_overhead)();
  const char* (*op_name)(int32_t);
  const char* (*type_name)(int32_t);

  BufferType* (*backend_cpu_buffer_type)();
  bool (*backend_buft_is_host)(BufferType*);
  bool (*backend_buffer_is_host)(Buffer*);
  Status (*backend_graph_compute)(Backend*, Graph*);
  void (*backend_free)(Backend*);
  Backend* (*backend_dev_init)(Device*, const char*);
  Registry* (*backend_dev_backend_reg)(Device*);
  void* (*backend_reg_get_proc_address)(Registry*, const char*);
  size_t (*backend_reg_count)();
  Registry* (*backend_reg_get)(size_t);
  Device* (*backend_dev_by_type)(int32_t);

  int32_t api_version = 0;
  int32_t op_flash_attention = -1, op_multiply = -1;
  std::vector<int32_t> ops_without_work;  // views and the like, which a backend is expected to accept
  int32_t f32 = -1, f16 = -1, bf16 = -1, q8_0 = -1;
  bool flags_computed = false;  // marks the nodes of a graph that are to be computed

  Type type(int32_t t) const {
    return t == f32 ? Type::f32 : t == f16 ? Type::f16 : t == bf16 ? Type::bf16 : t == q8_0 ? Type::q8_0 : Type::other;
  }
  bool without_work(int32_t op) const;
};

// Throws std::runtime_error with one sentence when this program cannot be served.
Host find_host();

}  // namespace sale::ggml
