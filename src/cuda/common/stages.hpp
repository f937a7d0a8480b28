// What the stages of GPU backends share: a call's pointers and the plan's tables put into the kernels' structs.
#pragma once

#include "cuda/common/tables.hpp"

namespace sale::cuda {

inline cudaStream_t stream_of(const Call& call) { return static_cast<cudaStream_t>(call.stream); }

Common common_of(const Architecture& a, const Call& call, const Group& group);
// Keys or values of sequence b.
Tokens tokens_of(const Call& call, const void* base, const sale_strides& strides, int64_t b);
LowBit low_bit_of(const Call& call);
// The index of sequence b: the call's, or the workspace's own.
IndexParts index_parts(const Call& call, int64_t b);
// What does not depend on how many keys there are.
IndexCall index_call(const Architecture& a, const Layer& layer, const Tokens& k, const IndexParts& parts);

// Stages, or parts of them.
void forget(const Layer& layer, const sale_index_slots& slots);
void make_indexes(const Architecture& a, const Call& call);
void make_stand_ins(const Call& call);  // means of blocks and 8-bit keys and values, as far as the plan asks for them
void wait(const Call& call);
void audit(const Architecture& a, const Call& call, sale_head_audit* to);
void count(const Architecture& a, const Call& call, int64_t first, int64_t n, int64_t* kept);

// A backend's table: what is its own, and what is the same for all.
template <const Architecture& a>
constexpr Stages stages_of(decltype(Stages::tables) tables, decltype(Stages::plan) plan,
                           decltype(Stages::explain) explain, decltype(Stages::check) check,
                           decltype(Stages::select) select, decltype(Stages::attend) attend, int64_t tile_rows) {
  return {tile_rows,
          device_space,
          [](Layer& layer, const sale_layer&) { open_layer(a, layer); },
          [](const Layer&) { return int32_t{0}; },
          [](int32_t kv_heads, int32_t head_dim, const Form& form, int64_t keys) {
            return index_map(a, kv_heads, head_dim, form, keys);
          },
          [](int32_t kv_heads, int32_t head_dim) { return a.index_scratch(kv_heads, head_dim); },
          [](sale_index& index) { open_index(a, index); },
          [](sale_index& index, const IndexUpdate& update) { update_index(a, index, update); },
          [](const sale_index& index, int32_t head, const int8_t** codes, const float** scales,
             const float** smoothing) { read_codes(a, index, head, codes, scales, smoothing); },
          forget,
          tables,
          plan,
          explain,
          check,
          [](const Plan& p, char* workspace, void* stream) { prepare(a, p, workspace, stream); },
          [](const Call& call) {
            if (!call.prepared) prepare(a, *call.plan, call.workspace, call.stream);
          },
          [](const Call& call) { make_indexes(a, call); },
          select,
          attend,
          wait,
          [](const Call& call, sale_head_audit* to) { audit(a, call, to); },
          [](const Call& call, int64_t first, int64_t n, int64_t* kept) { count(a, call, first, n, kept); }};
}

}  // namespace sale::cuda
