// The opaque types of the C ABI.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/status.hpp"

namespace sale {

// One call's pointers and where its parts of the workspace are. What a stage on its own does not use is null.
struct Call {
  const Plan* plan;
  const Layer* layer;
  const void *q, *k, *v;
  void* out;
  float* lse;
  Strides strides;
  const int32_t* page_table;
  const float *k_scales, *v_scales;  // null: 1
  const float* reference;
  const sale_index* const* indexes;
  sale_index_pages pages;  // memory is null without
  char* workspace;
  uint64_t* bits;
  void* stream;
  bool prepared;  // the plan's tables are in the workspace
  // What the backend's check made of the pointers, for its stages; its own business.
  struct alignas(128) Own {
    unsigned char bytes[640];
  };
  mutable Own own;
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
// Of keys and values.
inline int64_t kv_bytes(const sale_problem& p) { return p.kv_dtype == SALE_KV_E4M3 ? 1 : element_bytes(p.dtype); }

}  // namespace sale

struct sale_estimator {
  std::shared_ptr<const sale::Layer> layer;
};

// A plan for every form that its layers have; they differ in what the workspace holds.
struct sale_plan {
  std::vector<std::shared_ptr<const sale::Plan>> forms;
  size_t total;  // bytes of workspace, for the largest
  std::string explanation;

  const sale::Plan& first() const { return *forms.front(); }
};

struct sale_index {
  std::shared_ptr<const sale::Layer> layer;
  int32_t page_size;
  sale::IndexMap map;
  int64_t capacity, length = 0;
  bool smoothed = false;         // the smoothing vectors are fixed
  bool fixed = false;            // so is everything else that the first update decides
  std::shared_ptr<void> memory;  // as the map says, then the backend's scratch
  std::shared_ptr<void> state;   // the backend's
  size_t bytes = 0;

  char* part(size_t offset) const { return static_cast<char*>(memory.get()) + offset; }
};

struct sale_blocks {
  std::shared_ptr<const sale::Plan> plan;  // for its shape; kept, so that the plan may be destroyed first
  std::shared_ptr<void> bits;
  uint64_t* words() const { return static_cast<uint64_t*>(bits.get()); }
};
