// A checked problem, its options, and everything that follows from the two. Immutable once made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.hpp"
#include "core/checked.hpp"
#include "sale/sale.h"

namespace sale {

// One sequence of the batch. Tile t covers query rows [t q_block, min((t + 1) q_block, q_len)); it sees the key blocks
// below visible_blocks(t). All rows of bits of one query head stand in `words` 64-bit words, tile t's from row_word[t]
// on.
struct Sequence {
  int64_t q_len, k_len, q_offset, q_start, k_start;
  int64_t q_block, tiles;
  bool dense;  // fewer keys than dense_below
  std::vector<int64_t> row_word;
  int64_t words;                 // per query head
  int64_t bits_at;               // first word of this sequence in the block list
  int64_t lse_rows;              // rows of the lse tensor (the longest sequence's)
  size_t index_at;               // in the workspace, when the call makes its own index
  std::vector<int64_t> audited;  // rows, ascending

  int64_t visible_keys(int64_t row) const { return std::min(k_len, row + q_offset + 1); }
  int64_t visible_blocks(int64_t tile) const {
    return (visible_keys(std::min((tile + 1) * q_block, q_len) - 1) + k_block - 1) / k_block;
  }
};

// The estimator: how keys and queries are coded for the scan.
struct Estimator {
  sale_format format = SALE_INT8;
  int32_t rank = 0;  // coordinates scanned, resolved: head_dim when there is no projection
  bool projected = false;
  std::vector<float> q_projection, k_projection;              // [kv_heads, head_dim, rank]
  int groups() const { return format == SALE_INT4 ? 4 : 1; }  // key scales per block
};
const char* format_name(sale_format f);

// Parts of a workspace, one after the other, each at a multiple of 64 bytes.
class Areas {
public:
  size_t add(Checked bytes);  // throws Failure when the whole would exceed 2^62 bytes
  size_t end() const { return at_; }

private:
  size_t at_ = 0;
};
constexpr int64_t area_alignment = 64;

// What the workspace holds, in order; offsets in bytes. Indexes come first, at 0.
struct WorkspaceMap {
  size_t bits_at = 0;     // selection
  size_t scratch_at = 0;  // the backend's own
  size_t total = 0;
};

struct Plan {
  sale_problem problem;  // of its pointers only page_table and reference are used after the plan is made
  int32_t group;         // query heads per kv head
  float scale;
  std::vector<float> thresholds;  // [q_heads]
  Estimator estimator;
  int32_t sink, local;
  sale_compute compute;
  bool compensate;
  int32_t audit;  // rows per head, at most; 0: none
  bool with_index;
  std::vector<Sequence> sequences;
  int64_t bits_words;  // of the whole block list
  const Backend* backend;
  std::shared_ptr<const void> state;  // the backend's
  WorkspaceMap workspace;
  std::string explanation;

  const Stages& stages() const { return *backend->stages; }
};

// Throws Failure. Parts of making a plan that others need too (key index, tools).
Estimator check_estimator(const sale_options& o, int32_t kv_heads, int32_t head_dim);
std::unique_ptr<Plan> make_plan(const sale_problem& p, const sale_options& o, bool with_index);
void check_heads(const sale_problem& p);
// Up to `count` rows of a sequence, ascending, one in each of as many equal parts.
std::vector<int64_t> audit_rows(int64_t q_len, int64_t count, uint64_t seed);
std::vector<Sequence> check_problem(const sale_problem& p);
void check_strides(const char* name, const sale_strides& s, int32_t head_dim, int64_t batch, int64_t heads,
                   int64_t tokens);

// Bytes of one sequence's index, and its parts.
struct IndexMap {
  size_t codes_at, scales_at, smoothing_at, total;
  size_t head_codes, head_scales;  // bytes per kv head
};

}  // namespace sale
