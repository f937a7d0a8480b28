// What the files of the CPU backends' host side share.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "core/objects.hpp"
#include "cpu/workers.hpp"

namespace sale::cpu {

// One unit of work: a kv head of a sequence and a group of neighbouring query tiles, with all their query heads.
struct Item {
  int32_t sequence, kv_head;
  int64_t tile_begin, tile_end;
};

// What a plan needs here. Offsets in the workspace, bytes.
struct CpuPlan {
  const Kernels* kernels;
  std::vector<Item> items;  // longest first
  int64_t tiles_per_item;
  size_t q_means_at;                          // INT4: [batch, q_heads, head_dim]
  size_t k_means_at;                          // INT8 products: [batch, kv_heads, head_dim]
  std::vector<size_t> bias_at;                // INT4: per sequence [q_heads, keys rounded up to 32]
  size_t k_block_means_at, v_block_means_at;  // compensation: [batch, kv_heads, means, head_dim]
  int64_t means;                              // of the longest sequence
  size_t audited_at;                          // [batch, kv_heads, audit x group] AuditedRow
  size_t scratch_at, scratch_per_thread;
  // Pages put in order: K and V [kv_heads, gathered_keys, head_dim], a sequence's keys from gathered_of on.
  size_t gathered_k_at, gathered_v_at;
  int64_t gathered_keys;
  std::vector<int64_t> gathered_of;
};
inline const CpuPlan& state(const Plan& plan) { return *static_cast<const CpuPlan*>(plan.state.get()); }

// What a layer needs.
struct CpuLayer {
  const Kernels* kernels;
  std::shared_ptr<Workers> workers;
};
inline const CpuLayer& state(const Layer& layer) { return *static_cast<const CpuLayer*>(layer.state.get()); }
inline Workers& workers(const Call& call) { return *state(*call.layer).workers; }

inline const char* at(const void* base, sale_dtype dtype, int64_t elements) {
  return static_cast<const char*>(base) + elements * element_bytes(dtype);
}

// One kv head of one sequence, or a range of its key blocks.
struct Span {
  int32_t sequence, kv_head;
  int64_t begin, end;
};

// Ranges of up to `step` key blocks of every head of the sequences that are wanted.
template <class Wanted, class F>
void each_span(const Call& call, int64_t step, Wanted&& wanted, F&& f) {
  const Plan& plan = *call.plan;
  int64_t total = 0;
  for (const Sequence& s : plan.sequences)
    if (wanted(s)) total += ceil_div(ceil_div(s.sight.k_len, k_block), step) * plan.problem.kv_heads;
  workers(call).run(total, [&](int64_t i, int) {
    for (int32_t b = 0; b < plan.problem.batch; ++b) {
      const Sequence& s = plan.sequences[static_cast<size_t>(b)];
      if (!wanted(s)) continue;
      const int64_t blocks = ceil_div(s.sight.k_len, k_block), ranges = ceil_div(blocks, step);
      const int64_t here = ranges * plan.problem.kv_heads;
      if (i >= here) {
        i -= here;
        continue;
      }
      const int64_t begin = i % ranges * step;
      f(Span{b, static_cast<int32_t>(i / ranges), begin, std::min(begin + step, blocks)});
      return;
    }
  });
}

inline bool sparse(const Sequence& s) { return !s.dense; }
inline bool indexed(const Sequence& s) { return s.indexed; }

constexpr int64_t span_blocks = 64;

inline size_t aligned(int64_t bytes) { return static_cast<size_t>(round_up(bytes, area_alignment)); }

// ---- index.cpp: key indexes, and keys in pages ----------------------------------------------------------------------

IndexMap index_map(int32_t kv_heads, int32_t head_dim, const Form& form, int64_t keys);
IndexView view_of(char* base, const IndexMap& map, const Layer& layer, int32_t kv_head);
IndexView view_of(const sale_index& index, int32_t kv_head);
void update(sale_index& index, const IndexUpdate& update);
void codes(const sale_index& index, int32_t head, const int8_t** codes, const float** scales, const float** smoothing);
void forget(const Layer&, const sale_index_slots& slots);
void make_index(const Call& call);
void order_pages(const Call& call);  // keys and values of a call in pages, into its workspace

// Rows of one head where they lie: one after the other, or in pages.
struct Rows {
  const void* base;
  sale_dtype dtype;
  int64_t token;
  int64_t page_size = 0, page = 0;  // 0: not paged; the stride between pages
  const int32_t* pages = nullptr;

  int64_t at(int64_t r) const {
    return page_size == 0 ? r * token : pages[r / page_size] * page + r % page_size * token;
  }
};

// Mean over `n` rows, in double, ascending.
void mean_rows(const Rows& rows, int64_t n, int32_t head_dim, float* to);

// ---- stages.cpp -----------------------------------------------------------------------------------------------------

HeadGroup head_group(const Call& call, int32_t sequence, int32_t kv_head);

}  // namespace sale::cpu
