// What a layer keeps on its device; what a plan knows of its workspace there.
#pragma once

#include <memory>
#include <vector>

#include "cuda/common/architecture.hpp"

namespace sale::cuda {

// ---- layer ----------------------------------------------------------------------------------------------------------

struct LayerTables {
  Device device;
  std::shared_ptr<void> memory;  // all of the following
  const float* thresholds;
  const float* k_projection;  // or null
  const void* q_projection;   // or null; as the backend keeps it
  float* smoothing;           // [kv_heads, head_dim], or null: of the keys themselves
  float* key_scales;          // [kv_heads], or null
};
void open_layer(const Architecture& a, Layer& layer);
inline const LayerTables& tables_of(const Layer& layer) { return *static_cast<const LayerTables*>(layer.state.get()); }
Estimator estimator_of(const Architecture& a, const Layer& layer);

// ---- plan -----------------------------------------------------------------------------------------------------------

// Sequences of one launch, and their tiles.
struct Group {
  int32_t first_sequence, sequences;
  int64_t first_item, first_chunk;
  int32_t items, chunks;
};

// Where things are in the workspace, bytes. What only one backend has is behind `own`.
struct Tables {
  Device device;
  std::vector<Group> groups;
  size_t items_at, chunks_at, row_word_at, audited_at;  // written by prepare
  int32_t chunk_tiles;                                  // 0: no chunks
  std::vector<int64_t> row_word_of, audited_of;         // first of each sequence
  int64_t slice;                                        // items or chunks selected at a time
  int64_t audit_slice;                                  // rows audited at a time
  size_t q_codes_at, row_limits_at;                     // selection
  size_t counter_at, counts_at, index_scratch_at, uncoded_at, audit_rows_at, audit_partials_at, audits_at;
  // What stands for keys and values, [kv_heads, blocks, ...]: first blocks of each sequence, then where the arrays are.
  std::vector<int64_t> mean_at, block_at, mean_block_at;
  int64_t means, blocks, coded_blocks;
  size_t k_means_at, v_means_at;                                        // compensation
  size_t k_codes_at, v_codes_at, k_scales_at, v_most_at, smoothing_at;  // low-bit
  std::shared_ptr<const void> own;                                      // the backend's
};
// How the keys of a sequence are shared out among the thread blocks of an audit.
struct AuditRanges {
  int32_t ranges;
  int64_t steps;  // of each
};
AuditRanges audit_ranges(int64_t k_len);

constexpr int64_t slice_bytes = int64_t{256} << 20;  // of coded queries, or of partial audits, at a time

// Makes plan.state and the tables' places; chunk_tiles: 0 where selection takes tile by tile.
void place_tables(const Architecture& a, Plan& plan, Areas& areas, int32_t chunk_tiles);
// Everything after them but what selection needs.
void place_scratch(const Architecture& a, Plan& plan, Areas& areas);
void prepare(const Architecture& a, const Plan& plan, char* workspace, void* stream);
bool all_dense(const Plan& plan);  // nothing to select
inline const Tables& tables_of(const Plan& plan) { return *static_cast<const Tables*>(plan.state.get()); }
inline Tables& tables_of(Plan& plan) { return *static_cast<Tables*>(plan.state.get()); }
template <class T>
T* part(const Call& call, size_t at) {
  return reinterpret_cast<T*>(call.workspace + at);
}

// ---- index ----------------------------------------------------------------------------------------------------------

// What `codes` read last.
struct IndexState {
  std::vector<uint8_t> raw;
  std::vector<int8_t> codes;
  std::vector<float> scales, smoothing;
};

IndexMap index_map(const Architecture& a, int32_t kv_heads, int32_t head_dim, const Form& form, int64_t keys);
// Where the index of one sequence is, as kernels want it: smoothing vectors and scales are the layer's where it has
// some.
struct IndexParts {
  uint8_t* codes;
  float *scales, *smoothing;
  int64_t codes_head, scales_head;  // strides of a kv head
};
IndexParts parts_of(const Layer& layer, const IndexMap& map, char* base);
void open_index(const Architecture& a, sale_index& index);
void update_index(const Architecture& a, sale_index& index, const IndexUpdate& update);
void read_codes(const Architecture& a, const sale_index& index, int32_t head, const int8_t** codes,
                const float** scales, const float** smoothing);

}  // namespace sale::cuda
