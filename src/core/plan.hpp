// The three lifetimes inside the library: Layer (an estimator), Plan (a step), Call (objects.hpp). Each immutable once
// made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.hpp"
#include "core/checked.hpp"
#include "core/visibility.hpp"
#include "sale/sale.h"

namespace sale {

// How keys and queries are coded for the scan. What a workspace and an index look like follows from these alone.
struct Form {
  sale_format format = SALE_INT8;
  int32_t rank = 0;  // coordinates scanned, resolved: head_dim when there is no projection
  bool projected = false;
  int groups() const { return format == SALE_INT4 ? 4 : 1; }  // key scales per block
  // Of a coded key in an index of the CPUs. FP4: two codes a byte, then an exponent for every 32 coordinates.
  int32_t row_bytes() const { return format == SALE_FP4 ? rank / 2 + (rank + 31) / 32 : rank; }
  bool operator==(const Form&) const = default;
};

// A checked layer.
struct Layer {
  int32_t q_heads, kv_heads, head_dim;
  sale_dtype dtype;
  int32_t device;
  Form form;
  std::vector<float> q_projection, k_projection;  // [kv_heads, head_dim, rank]
  std::vector<float> smoothing;                   // [kv_heads, head_dim], or empty: of the keys themselves
  std::vector<float> key_scales;                  // FP8: [kv_heads], or empty
  std::vector<float> thresholds;                  // [q_heads]
  bool dense;                                     // every head's threshold is 0
  int32_t sink, local;
  uint64_t coding;  // of all that a key's code depends on: layers with the same one code alike
  const Backend* backend;
  std::string not_used;         // why others of the list are not
  bool named;                   // the backend was asked for by its name
  std::shared_ptr<void> state;  // the backend's

  const Stages& stages() const { return *backend->stages; }
  // The codes of a block are a function of its keys alone.
  bool codes_by_key() const { return !smoothing.empty() && (form.format != SALE_FP8 || !key_scales.empty()); }
};

// One sequence of the batch. Tile t covers query rows [t q_block, min((t + 1) q_block, q_len)). All rows of bits of one
// query head stand in `words` 64-bit words, tile t's from row_word[t] on.
struct Sequence {
  Sight sight;
  int64_t q_start, k_start;
  int64_t q_block, tiles;
  bool dense;       // fewer keys than dense_below, or a layer of dense heads
  bool indexed;     // codes of its keys are in the workspace
  int64_t k_coded;  // first keys whose codes are in the index pages, when there are any
  std::vector<int64_t> row_word;
  int64_t words;     // per query head
  int64_t bits_at;   // first word of this sequence in the block list
  int64_t lse_rows;  // rows of the lse tensor (the longest sequence's)
  size_t index_at;   // in the workspace, when indexed
  int64_t audited;   // rows

  // Codes from this block on are not in the index pages, or not all of them.
  int64_t first_uncoded() const { return k_coded == sight.k_len ? Sight::blocks_of(k_coded) : k_coded / Sight::block; }
  int64_t end_block(int64_t tile) const { return sight.end_block(tile, q_block); }
  int64_t visible_blocks(int64_t tile) const { return sight.visible_blocks(tile, q_block); }
  // Whether the tile sees anything of a block.
  bool sees(int64_t tile, int64_t block) const {
    return block < end_block(tile) && (block >= sight.first_block(tile, q_block) || block < sight.sink_blocks());
  }
};

// Parts of a workspace, one after the other, each at a multiple of 64 bytes.
class Areas {
public:
  size_t add(Checked bytes);  // throws Failure when the whole would exceed 2^62 bytes
  size_t end() const { return at_; }

private:
  size_t at_ = 0;
};
constexpr int64_t area_alignment = 64;

// What the workspace holds, in order; offsets in bytes. The backend's tables come first, at 0.
struct WorkspaceMap {
  size_t index_at = 0;    // key indexes
  size_t bits_at = 0;     // selection
  size_t scratch_at = 0;  // the backend's own
  size_t total = 0;
};

// A step, for layers of one form and the same regions.
struct Plan {
  sale_problem problem;  // of its pointers none is used after the plan is made
  int32_t group;         // query heads per kv head
  float scale;
  Form form;
  bool dense;           // for layers of dense heads
  int32_t sink, local;  // of the layers: what scratch holds, and what a pseudo-key may stand for, follows from them
  sale_compute compute;
  bool compensate;
  int32_t audit;  // rows per head, at most; 0: none
  uint64_t audit_seed;
  sale_index_source index;
  std::vector<Sequence> sequences;
  int64_t bits_words;  // of the whole block list
  const Backend* backend;
  int32_t threads;              // of the layers' workers; 0: none
  std::shared_ptr<void> state;  // the backend's
  WorkspaceMap workspace;

  const Stages& stages() const { return *backend->stages; }
  bool paged_index() const { return index == SALE_INDEX_PAGES; }
  bool serves(const Layer& l) const { return form == l.form && dense == l.dense && sink == l.sink && local == l.local; }
};

// Bytes of one sequence's index, and its parts.
struct IndexMap {
  size_t codes_at, scales_at, smoothing_at, total;
  size_t head_codes, head_scales;               // bytes per kv head
  size_t page() const { return smoothing_at; }  // a page of an index: the codes and scales of its keys
};

// check.cpp; all throw Failure.
void check_heads(int32_t q_heads, int32_t kv_heads, int32_t head_dim, sale_dtype dtype, int32_t device);
Layer check_layer(const sale_layer& l);
std::vector<Sequence> check_problem(const sale_problem& p);
void check_options(const sale_options& o);
void check_strides(const char* name, const sale_strides& s, int32_t head_dim, int64_t batch, int64_t heads,
                   int64_t tokens);
// All four tensors' strides, against the sequences' places in them.
struct Strides {
  sale_strides q, k, v, out;
};
void check_strides(const sale_problem& p, const std::vector<Sequence>& sequences, const Strides& s);

// plan.cpp.
std::unique_ptr<Plan> make_plan(const sale_problem& p, const sale_options& o, const Layer& layer);
std::string explain(const Plan& plan, const Layer& layer);
// What of a problem and its options a layer's backend cannot run, beyond what check_problem refuses; throws Failure.
void check_runs(const sale_problem& p, const sale_options& o, const Layer& layer);

}  // namespace sale
