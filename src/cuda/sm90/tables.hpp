// What a plan and a key index of this backend keep on their device, and where their scratch is.
#pragma once

#include <memory>
#include <vector>

#include "core/objects.hpp"
#include "cuda/sm90/device.hpp"

namespace sale::sm90 {

// Sequences of one launch, and their tiles.
struct Group {
  int32_t first_sequence, sequences;
  int64_t first_item;
  int32_t items;
};

struct Tables {
  Device device;
  std::shared_ptr<void> memory;  // all of the following
  const Item* items;             // of every group, longest first
  const int64_t* row_word;
  const float* thresholds;
  const float* k_projection;     // or null
  const uint16_t* q_projection;  // or null
  std::vector<Group> groups;
  std::vector<int64_t> row_word_at;  // per sequence
  int64_t slice;                     // items selected at a time
  const int64_t* audited;            // rows, sequence-major
  std::vector<int64_t> audited_at;   // per sequence
  int64_t audit_slice;               // rows audited at a time
  // In the workspace, bytes.
  size_t q_codes_at, row_limits_at, counter_at, counts_at, index_scratch_at, audit_rows_at, audit_partials_at,
      audits_at;
  // What stands for keys and values, [kv_heads, blocks, ...]: first blocks of each sequence, then where the arrays are.
  std::vector<int64_t> block_at, mean_block_at;
  int64_t blocks, coded_blocks;
  size_t k_means_at, v_means_at;                                        // compensation
  size_t k_codes_at, v_codes_at, k_scales_at, v_most_at, smoothing_at;  // low-bit
};
// How the keys of a sequence are shared out among the thread blocks of an audit.
struct AuditRanges {
  int32_t ranges;
  int64_t steps;  // of each
};
AuditRanges audit_ranges(int64_t k_len);
void make_tables(Plan& plan, const sale_options&, Areas& areas);
std::string explain(const Plan& plan);
inline const Tables& tables_of(const Plan& plan) { return *static_cast<const Tables*>(plan.state.get()); }

struct IndexState {
  Device device;
  std::shared_ptr<void> memory;
  const float* k_projection;  // or null
  void* scratch;
  std::vector<uint8_t> raw;  // what `codes` read last
  std::vector<int8_t> codes;
  std::vector<float> scales, smoothing;
};

int32_t width_of(const sale::Estimator& e);  // bytes of a coded row
IndexMap index_map(int32_t kv_heads, int32_t head_dim, const sale::Estimator& e, int64_t keys);
Estimator estimator_of(const sale::Estimator& e, const float* k_projection, const uint16_t* q_projection);
void open_index(sale_index& index, const sale_options&);
void update_index(sale_index& index, const IndexUpdate& update);
void read_codes(const sale_index& index, int32_t head, const int8_t** codes, const float** scales,
                const float** smoothing);

}  // namespace sale::sm90
