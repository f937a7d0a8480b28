// The stages of a call: its pointers and the plan's tables put into the kernels' structs, then launched.
#include "cuda/common/stages.hpp"

#include "cuda/sm80/host.hpp"
#include "cuda/sm80/tables.hpp"

namespace sale::sm80 {
namespace {

using cuda::Current;
using cuda::must;
using cuda::stream_of;

Strided strided(const void* base, const sale_strides& s) { return {base, s.batch, s.head, s.token}; }

// Loads and stores of 16 bytes.
void check(const Call& call) {
  const std::pair<const char*, const void*> tensors[] = {
      {"q", call.q}, {"k", call.k}, {"v", call.v}, {"out", call.out}};
  for (const auto& [name, base] : tensors)
    if (reinterpret_cast<uintptr_t>(base) % 16 != 0) fail(SALE_UNSUPPORTED, name, ": it is not aligned to 16 bytes");
}

void select_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const sale_problem& x = p.problem;
  const Current current(t.device.ordinal);
  const auto floats = [&](size_t at) { return reinterpret_cast<float*>(call.workspace + at); };
  SelectCall c{};
  c.estimator = cuda::estimator_of(architecture, p.estimator, t.k_projection, t.q_projection);
  c.q = strided(call.q, x.q);
  c.k = strided(call.k, x.k);
  c.reference = x.reference;
  c.reference_rows = p.sequences.front().lse_rows;
  c.q_means = floats(t.q_means_at);
  c.bias = floats(t.bias_at);
  c.bias_keys = t.bias_keys;
  c.q_codes = reinterpret_cast<uint8_t*>(call.workspace + t.q_codes_at);
  c.limits = floats(t.row_limits_at);
  c.slice = t.slice;
  c.scratch = call.workspace + t.q_scratch_at;
  for (const cuda::Group& g : t.groups) {
    c.common = cuda::common_of(architecture, call, g);
    c.chunks = t.chunks + g.first_chunk;
    c.n_chunks = g.chunks;
    for (int32_t i = 0; i < g.sequences; ++i) c.bias_at[i] = t.bias_tokens[static_cast<size_t>(g.first_sequence + i)];
    must(launch_select(c, stream_of(call)), "launching the selection");
  }
}

void attend_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const sale_problem& x = p.problem;
  const Current current(t.device.ordinal);
  cuda::make_stand_ins(call);
  AttendCall c{};
  c.q = strided(call.q, x.q);
  c.k = strided(call.k, x.k);
  c.v = strided(call.v, x.v);
  if (p.compensate) {
    c.k_means = reinterpret_cast<const uint16_t*>(call.workspace + t.k_means_at);
    c.v_means = reinterpret_cast<const uint16_t*>(call.workspace + t.v_means_at);
  }
  c.means_head = t.means * x.head_dim;
  c.compute = p.compute;
  c.low = cuda::low_bit_of(call);
  c.out = call.out;
  c.out_batch = x.out.batch;
  c.out_head = x.out.head;
  c.out_token = x.out.token;
  c.lse = call.lse;
  c.lse_rows = p.sequences.front().lse_rows;
  for (const cuda::Group& g : t.groups) {
    c.common = cuda::common_of(architecture, call, g);
    must(launch_attend(c, stream_of(call)), "launching attention");
  }
}

}  // namespace

constinit const Stages stages =
    cuda::stages_of<architecture>(tile_rows, make_tables, explain, check, select_blocks, attend_blocks);

}  // namespace sale::sm80
