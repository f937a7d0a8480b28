// The stages of a call: its pointers and the plan's tables put into the kernels' structs, then launched.
#include <algorithm>

#include "core/checked.hpp"
#include "cuda/sm90/host.hpp"
#include "cuda/sm90/tables.hpp"

namespace sale::sm90 {
namespace {

cudaStream_t stream_of(const Call& call) { return static_cast<cudaStream_t>(call.stream); }

Common common_of(const Call& call, const Group& group) {
  const Plan& p = *call.plan;
  const Tables& tables = tables_of(p);
  const sale_problem& x = p.problem;
  Common c{};
  for (int32_t i = 0; i < group.sequences; ++i) {
    const int32_t b = group.first_sequence + i;
    const sale::Sequence& from = p.sequences[static_cast<size_t>(b)];
    Sequence& s = c.sequences[i];
    s.q_len = from.q_len;
    s.k_len = from.k_len;
    s.q_offset = from.q_offset;
    s.last_position = x.reference != nullptr ? INT64_MAX : from.k_len - 1;
    s.q_start = from.q_start;
    s.k_start = from.k_start;
    s.bits_at = from.bits_at;
    s.words = from.words;
    s.row_word_at = tables.row_word_at[static_cast<size_t>(b)];
    s.batch = b;
    s.dense = from.dense;
    s.block_at = tables.block_at[static_cast<size_t>(b)];
    s.mean_block_at = tables.mean_block_at[static_cast<size_t>(b)];
    if (from.dense) continue;
    const bool own = call.indexes == nullptr;
    const IndexMap m = own ? index_map(x.kv_heads, x.head_dim, p.estimator, from.k_len) : call.indexes[b]->map;
    char* base = own ? call.workspace + from.index_at : call.indexes[b]->part(0);
    s.codes = reinterpret_cast<uint8_t*>(base + m.codes_at);
    s.scales = reinterpret_cast<float*>(base + m.scales_at);
    s.smoothing = reinterpret_cast<float*>(base + m.smoothing_at);
    s.codes_head = static_cast<int64_t>(m.head_codes);
    s.scales_head = static_cast<int64_t>(m.head_scales / 4);
  }
  c.items = tables.items + group.first_item;
  c.row_word = tables.row_word;
  c.thresholds = tables.thresholds;
  c.bits = call.bits;
  c.n_sequences = group.sequences;
  c.n_items = group.items;
  c.q_heads = x.q_heads;
  c.kv_heads = x.kv_heads;
  c.group = p.group;
  c.head_dim = x.head_dim;
  c.dtype = x.dtype;
  c.sink = p.sink;
  c.local = p.local;
  c.scale = p.scale;
  c.page_size = x.page_size;
  c.pages = x.pages;
  c.page_table = x.page_table;
  return c;
}

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

Tokens tokens_of(const Call& call, const void* base, const sale_strides& strides, int64_t b) {
  const sale_problem& x = call.plan->problem;
  const int64_t first =
      x.page_size != 0 ? 0 : b * strides.batch + call.plan->sequences[static_cast<size_t>(b)].k_start * strides.token;
  return {static_cast<const uint16_t*>(base) + first,
          strides.head,
          strides.token,
          x.page_size,
          strides.batch,
          x.page_size != 0 ? x.page_table + b * x.pages : nullptr};
}

void make_indexes(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& tables = tables_of(p);
  const sale_problem& x = p.problem;
  const Current current(tables.device.ordinal);
  for (const sale::Sequence& s : p.sequences) {
    if (s.dense) continue;
    const int64_t b = &s - p.sequences.data();
    const IndexMap m = index_map(x.kv_heads, x.head_dim, p.estimator, s.k_len);
    char* base = call.workspace + s.index_at;
    IndexCall c{};
    c.k = tokens_of(call, call.k, x.k, b);
    c.dtype = x.dtype;
    c.head_dim = x.head_dim;
    c.kv_heads = x.kv_heads;
    c.estimator = estimator_of(p.estimator, tables.k_projection, nullptr);
    c.codes = reinterpret_cast<uint8_t*>(base + m.codes_at);
    c.scales = reinterpret_cast<float*>(base + m.scales_at);
    c.smoothing = reinterpret_cast<float*>(base + m.smoothing_at);
    c.codes_head = static_cast<int64_t>(m.head_codes);
    c.scales_head = static_cast<int64_t>(m.head_scales / 4);
    c.k_len = s.k_len;
    c.fix = 1;
    c.scratch = call.workspace + tables.index_scratch_at;
    must(launch_index(c, stream_of(call)), "launching the key index");
  }
}

void select_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& tables = tables_of(p);
  const sale_problem& x = p.problem;
  const Current current(tables.device.ordinal);
  SelectCall c{};
  c.estimator = estimator_of(p.estimator, tables.k_projection, tables.q_projection);
  c.exact = {call.q, call.k, x.q.batch, x.q.head, x.q.token, x.k.batch, x.k.head, x.k.token};
  c.q64 = map_of("q", query_spec(call), call);
  c.k32 = map_of("k", key_spec(call, call.k, x.k, block_rows(call)), call);
  c.q_codes = reinterpret_cast<uint8_t*>(call.workspace + tables.q_codes_at);
  c.row_limits = reinterpret_cast<float*>(call.workspace + tables.row_limits_at);
  c.slice = tables.slice;
  c.reference = x.reference;
  c.reference_rows = p.sequences.front().lse_rows;
  for (const Group& g : tables.groups) {
    c.common = common_of(call, g);
    must(launch_select(c, tables.device.multiprocessors, stream_of(call)), "launching the selection");
  }
}

LowBit low_bit_of(const Call& call) {
  const Tables& t = tables_of(*call.plan);
  if (call.plan->compute != SALE_COMPUTE_FP8) return {};
  const auto codes = [&](size_t at) { return reinterpret_cast<uint8_t*>(call.workspace + at); };
  const auto floats = [&](size_t at) { return reinterpret_cast<float*>(call.workspace + at); };
  return {codes(t.k_codes_at), codes(t.v_codes_at),    floats(t.k_scales_at),
          floats(t.v_most_at), floats(t.smoothing_at), t.coded_blocks};
}

// Means of blocks and 8-bit keys and values, as far as the plan asks for them.
void make_stand_ins(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const sale_problem& x = p.problem;
  for (size_t b = 0; b < p.sequences.size(); ++b) {
    const auto means = [&](size_t at) {
      return reinterpret_cast<uint16_t*>(call.workspace + at) + t.block_at[b] * x.head_dim;
    };
    const Tokens k = tokens_of(call, call.k, x.k, static_cast<int64_t>(b));
    const Tokens v = tokens_of(call, call.v, x.v, static_cast<int64_t>(b));
    const int64_t k_len = p.sequences[b].k_len, means_head = t.blocks * x.head_dim;
    if (p.compensate)
      must(launch_means(
               {k, v, x.dtype, x.head_dim, x.kv_heads, k_len, means(t.k_means_at), means(t.v_means_at), means_head},
               stream_of(call)),
           "launching the means");
    if (p.compute != SALE_COMPUTE_FP8) continue;
    const uint16_t* none = nullptr;
    const LowBitCall c{k,
                       v,
                       x.dtype,
                       x.head_dim,
                       x.kv_heads,
                       static_cast<int32_t>(b),
                       k_len,
                       p.compensate ? means(t.k_means_at) : none,
                       p.compensate ? means(t.v_means_at) : none,
                       means_head,
                       low_bit_of(call),
                       t.block_at[b],
                       t.mean_block_at[b],
                       call.workspace + t.index_scratch_at};
    must(launch_low_bit(c, stream_of(call)), "launching the 8-bit keys and values");
  }
}

CUtensorMap means_map(const Call& call, size_t at) {
  const sale_problem& x = call.plan->problem;
  const int64_t blocks = tables_of(*call.plan).blocks;
  return map_of("means",
                {call.workspace + at, x.head_dim, blocks, x.kv_heads, 1, x.head_dim, blocks * x.head_dim, 8,
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
  c.low = low_bit_of(call);
  make_stand_ins(call);
  c.out = call.out;
  c.out_batch = x.out.batch;
  c.out_head = x.out.head;
  c.out_token = x.out.token;
  c.lse = call.lse;
  c.lse_rows = p.sequences.front().lse_rows;
  c.counter = reinterpret_cast<int32_t*>(call.workspace + tables.counter_at);
  for (const Group& g : tables.groups) {
    c.common = common_of(call, g);
    must(launch_attend(c, tables.device.multiprocessors, stream_of(call)), "launching attention");
  }
}

void wait(const Call& call) {
  const Current current(tables_of(*call.plan).device.ordinal);
  cudaStreamCaptureStatus capture{};
  must(cudaStreamIsCapturing(stream_of(call), &capture), "asking whether the stream is captured");
  require(capture == cudaStreamCaptureStatusNone, "stats: given, but the stream is being captured; pass NULL");
  must(cudaStreamSynchronize(stream_of(call)), "running");
}

// Rows [first, first + n) of sequence b's audited ones.
AuditCall audit_of(const Call& call, size_t b, int64_t first, int64_t n) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const sale_problem& x = p.problem;
  const sale::Sequence& s = p.sequences[b];
  const auto i = static_cast<int64_t>(b);
  AuditCall c{};
  c.k = tokens_of(call, call.k, x.k, i);
  c.v = tokens_of(call, call.v, x.v, i);
  c.q = static_cast<const uint16_t*>(call.q) + i * x.q.batch + s.q_start * x.q.token;
  c.out = static_cast<const uint16_t*>(call.out) + i * x.out.batch + s.q_start * x.out.token;
  c.q_head = x.q.head, c.q_token = x.q.token;
  c.out_head = x.out.head, c.out_token = x.out.token;
  c.dtype = x.dtype, c.head_dim = x.head_dim, c.kv_heads = x.kv_heads, c.group = p.group;
  c.k_len = s.k_len, c.q_offset = s.q_offset;
  c.bits = call.bits + s.bits_at, c.words = s.words;
  c.row_word = t.row_word + t.row_word_at[b];
  c.scale = p.scale;
  c.rows = t.audited + t.audited_at[b] + first, c.n_rows = static_cast<int32_t>(n);
  const AuditRanges ranges = audit_ranges(s.k_len);
  c.ranges = ranges.ranges, c.range_steps = ranges.steps;
  c.partials = reinterpret_cast<float*>(call.workspace + t.audit_partials_at);
  c.to_head = int64_t{p.audit} * p.group;
  c.to = reinterpret_cast<AuditedRow*>(call.workspace + t.audit_rows_at) + i * x.kv_heads * c.to_head + first * p.group;
  return c;
}

void audit(const Call& call, sale_head_audit* to) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const Current current(t.device.ordinal);
  auto* heads = reinterpret_cast<sale_head_audit*>(call.workspace + t.audits_at);
  for (size_t b = 0; b < p.sequences.size(); ++b) {
    const auto rows = static_cast<int64_t>(p.sequences[b].audited.size());
    for (int64_t first = 0; first < rows; first += t.audit_slice)
      must(launch_audit(audit_of(call, b, first, std::min(t.audit_slice, rows - first)), stream_of(call)),
           "launching the audit");
    must(launch_audit_total(audit_of(call, b, 0, rows), heads + static_cast<int64_t>(b) * p.problem.q_heads,
                            stream_of(call)),
         "launching the sums of the audit");
  }
  const size_t n = static_cast<size_t>(p.problem.batch) * static_cast<size_t>(p.problem.q_heads);
  must(cudaMemcpyAsync(to, heads, n * sizeof(sale_head_audit), cudaMemcpyDeviceToHost, stream_of(call)),
       "copying the audit");
  must(cudaStreamSynchronize(stream_of(call)), "auditing");
}

void count(const Call& call, int64_t first, int64_t n, int64_t* kept) {
  const Tables& tables = tables_of(*call.plan);
  const Current current(tables.device.ordinal);
  auto* counts = reinterpret_cast<int64_t*>(call.workspace + tables.counts_at);
  if (first == 0)
    for (const Group& g : tables.groups)
      must(launch_count(common_of(call, g), counts, stream_of(call)), "launching the count of blocks");
  must(cudaMemcpyAsync(kept, counts + first, static_cast<size_t>(n) * 8, cudaMemcpyDeviceToHost, stream_of(call)),
       "copying the count of blocks");
  must(cudaStreamSynchronize(stream_of(call)), "counting blocks");
}

}  // namespace

const Stages stages{tile_rows,     device_space,  index_map, open_index, update_index,
                    read_codes,    make_tables,   explain,   check,      make_indexes,
                    select_blocks, attend_blocks, wait,      audit,      count};

}  // namespace sale::sm90
