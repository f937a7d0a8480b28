// The opaque types of the C ABI.
#pragma once

#include <memory>
#include <vector>

#include "core/plan.hpp"
#include "core/status.hpp"

namespace sale {

// One run's pointers and where its parts of the workspace are. What a stage on its own does not use is null.
struct Call {
  const Plan* plan;
  const void *q, *k, *v;
  void* out;
  float* lse;
  const sale_index* const* indexes;
  char* workspace;
  uint64_t* bits;
  void* stream;
};

// The keys a sequence has now: codes from the present length's block on are to be made.
struct IndexUpdate {
  const void* k;
  sale_strides strides;
  int64_t k_len;
  const int32_t* pages;
  void* stream;
};

inline int64_t element_bytes(sale_dtype dtype) { return dtype == SALE_F32 ? 4 : 2; }

}  // namespace sale

struct sale_plan {
  std::shared_ptr<const sale::Plan> plan;
};

struct sale_index {
  sale_problem problem;
  sale::Estimator estimator;
  const sale::Backend* backend;
  sale::IndexMap map;
  int64_t capacity, length = 0;
  bool smoothed = false;         // the smoothing vectors are fixed
  bool fixed = false;            // so is everything else that the first update decides
  std::shared_ptr<void> memory;  // as the map says
  std::shared_ptr<void> state;   // the backend's
  size_t bytes = 0;              // of both

  char* part(size_t offset) const { return static_cast<char*>(memory.get()) + offset; }
};

struct sale_blocks {
  std::shared_ptr<const sale::Plan> plan;  // for its shape; kept, so that the plan may be destroyed first
  std::shared_ptr<void> bits;
  uint64_t* words() const { return static_cast<uint64_t*>(bits.get()); }
};
