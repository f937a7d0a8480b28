// The opaque types of the C ABI.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "core/plan.hpp"
#include "core/status.hpp"

namespace sale {

// Memory aligned to a cache line.
struct Buffer {
  explicit Buffer(size_t bytes) : data(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), size(bytes) {
    if (data == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data;
  size_t size;
};

// One run's pointers and where its parts of the workspace are.
struct Call {
  const Plan* plan;
  const void *q, *k, *v;
  void* out;
  float* lse;
  const sale_index* const* indexes;
  char* workspace;
  uint64_t* bits;

  HeadGroup head_group(int32_t sequence, int32_t kv_head) const;
};

void make_index(const Call& call);  // the workspace's own indexes
void make_means(const Call& call);  // what INT4 estimates and INT8 products need besides
void select_blocks(const Call& call);
void attend_blocks(const Call& call);

// Mean over `rows` of `heads` heads, in double, ascending: to [heads, head_dim].
void mean_rows(const void* base, sale_dtype dtype, int64_t head_stride, int64_t token_stride, int32_t head,
               int64_t rows, int32_t head_dim, float* to);

}  // namespace sale

struct sale_plan {
  std::shared_ptr<const sale::Plan> plan;
};

struct sale_index {
  sale_problem problem;
  sale::Estimator estimator;
  const sale::Backend* backend;
  const sale::Kernels* kernels;
  std::shared_ptr<sale::ThreadPool> pool;
  sale::IndexMap map;
  int64_t capacity, length = 0;
  bool smoothed = false;  // the smoothing vectors are fixed
  std::unique_ptr<sale::Buffer> memory;

  sale::IndexView view(int32_t kv_head) const;
};

struct sale_blocks {
  std::shared_ptr<const sale::Plan> plan;  // for its shape; kept, so that the plan may be destroyed first
  std::vector<uint64_t> bits;
};
