// The stages of a call: its pointers and the plan's tables put into the kernels' structs, then launched.
#include "cuda/common/stages.hpp"

#include <algorithm>

#include "core/checked.hpp"
#include "cuda/sm90/host.hpp"
#include "cuda/sm90/tables.hpp"

namespace sale::sm90 {
namespace {

using cuda::Current;
using cuda::must;
using cuda::stream_of;

// ---- tensor maps ---------------------------------------------------------------------------------------------------

MapSpec query_spec(const Call& call) {
  const Plan& p = *call.plan;
  const sale_problem& x = p.problem;
  int64_t tokens = 1;
  for (const sale::Sequence& s : p.sequences) tokens = std::max(tokens, s.q_start + s.q_len);
  return {call.q, x.head_dim, tokens, x.q_heads, x.batch, x.q.token, x.q.head, x.q.batch, 64};
}

MapSpec key_spec(const Call& call, const void* base, const sale_strides& strides, int32_t rows) {
  const Plan& p = *call.plan;
  const sale_problem& x = p.problem;
  int64_t tokens = 1, outer = x.batch;
  for (const sale::Sequence& s : p.sequences) tokens = std::max(tokens, s.k_start + s.k_len);
  if (x.page_size != 0) tokens = x.page_size, outer = int64_t{1} << 31;  // any page a table can name
  return {base, x.head_dim, tokens, x.kv_heads, outer, strides.token, strides.head, strides.batch, rows};
}
// Of a block of keys; pages that are no multiple of it are read 16 keys at a time.
int32_t block_rows(const Call& call) { return call.plan->problem.page_size % 32 == 0 ? 32 : 16; }

CUtensorMap map_of(const char* name, const MapSpec& spec, const Call& call) {
  CUtensorMap map;
  if (make_map(tensor_map_encoder(), spec, call.plan->problem.dtype, &map) != CUDA_SUCCESS)
    fail(SALE_UNSUPPORTED, name, ": the driver cannot describe such a tensor to the copy engine (strides ",
         spec.outer_stride, ", ", spec.head_stride, ", ", spec.token_stride, ")");
  return map;
}

void check(const Call& call) {
  const sale_problem& x = call.plan->problem;
  const Current current(x.device);
  const auto one = [&](const char* name, const MapSpec& spec) {
    if (spec.base == nullptr) return;
    if (const char* why = why_not_map(spec, x.dtype); *why != '\0') fail(SALE_UNSUPPORTED, name, ": ", why);
    map_of(name, spec, call);
  };
  one("q", query_spec(call));
  one("k", key_spec(call, call.k, x.k, block_rows(call)));
  one("v", key_spec(call, call.v, x.v, block_rows(call)));
  if (reinterpret_cast<uintptr_t>(call.out) % 16 != 0) fail(SALE_UNSUPPORTED, "out: it is not aligned to 16 bytes");
}

// ---- stages --------------------------------------------------------------------------------------------------------

void select_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& tables = tables_of(p);
  const sale_problem& x = p.problem;
  const Current current(tables.device.ordinal);
  SelectCall c{};
  c.estimator = cuda::estimator_of(architecture, p.estimator, tables.k_projection, tables.q_projection);
  c.exact = {call.q, call.k, x.q.batch, x.q.head, x.q.token, x.k.batch, x.k.head, x.k.token};
  c.q64 = map_of("q", query_spec(call), call);
  c.k32 = map_of("k", key_spec(call, call.k, x.k, block_rows(call)), call);
  c.q_codes = reinterpret_cast<uint8_t*>(call.workspace + tables.q_codes_at);
  c.row_limits = reinterpret_cast<float*>(call.workspace + tables.row_limits_at);
  c.slice = tables.slice;
  c.reference = x.reference;
  c.reference_rows = p.sequences.front().lse_rows;
  for (const cuda::Group& g : tables.groups) {
    c.common = cuda::common_of(architecture, call, g);
    must(launch_select(c, tables.device.multiprocessors, stream_of(call)), "launching the selection");
  }
}

CUtensorMap means_map(const Call& call, size_t at) {
  const sale_problem& x = call.plan->problem;
  const int64_t means = tables_of(*call.plan).means;
  return map_of("means",
                {call.workspace + at, x.head_dim, means, x.kv_heads, 1, x.head_dim, means * x.head_dim, 8,
                 static_cast<int32_t>(tile_rows)},
                call);
}

void attend_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& tables = tables_of(p);
  const sale_problem& x = p.problem;
  const Current current(tables.device.ordinal);
  AttendCall c{};
  c.q64 = map_of("q", query_spec(call), call);
  c.k32 = map_of("k", key_spec(call, call.k, x.k, block_rows(call)), call);
  c.k128 = map_of("k", key_spec(call, call.k, x.k, 128), call);
  c.v32 = map_of("v", key_spec(call, call.v, x.v, block_rows(call)), call);
  c.v128 = map_of("v", key_spec(call, call.v, x.v, 128), call);
  c.compensate = p.compensate;
  if (p.compensate) c.k_means = means_map(call, tables.k_means_at), c.v_means = means_map(call, tables.v_means_at);
  c.low = cuda::low_bit_of(call);
  cuda::make_stand_ins(call);
  c.out = call.out;
  c.out_batch = x.out.batch;
  c.out_head = x.out.head;
  c.out_token = x.out.token;
  c.lse = call.lse;
  c.lse_rows = p.sequences.front().lse_rows;
  c.counter = reinterpret_cast<int32_t*>(call.workspace + tables.counter_at);
  for (const cuda::Group& g : tables.groups) {
    c.common = cuda::common_of(architecture, call, g);
    must(launch_attend(c, tables.device.multiprocessors, stream_of(call)), "launching attention");
  }
}

}  // namespace

constinit const Stages stages =
    cuda::stages_of<architecture>(tile_rows, make_tables, explain, check, select_blocks, attend_blocks);

}  // namespace sale::sm90
