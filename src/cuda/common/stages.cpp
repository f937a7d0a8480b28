#include "cuda/common/stages.hpp"

#include <algorithm>

#include "core/checked.hpp"

namespace sale::cuda {

Common common_of(const Architecture&, const Call& call, const Group& group) {
  const Plan& p = *call.plan;
  const Layer& layer = *call.layer;
  const Tables& tables = tables_of(p);
  const sale_problem& x = p.problem;
  Common c{};
  for (int32_t i = 0; i < group.sequences; ++i) {
    const int32_t b = group.first_sequence + i;
    const sale::Sequence& from = p.sequences[static_cast<size_t>(b)];
    Sequence& s = c.sequences[i];
    static_cast<Sight&>(s) = from.sight;
    s.q_start = from.q_start;
    s.k_start = from.k_start;
    s.bits_at = from.bits_at;
    s.words = from.words;
    s.row_word_at = tables.row_word_of[static_cast<size_t>(b)];
    s.batch = b;
    s.dense = from.dense;
    c.windowed |= s.windowed() ? 1 : 0;
    s.mean_at = tables.mean_at[static_cast<size_t>(b)];
    s.block_at = tables.block_at[static_cast<size_t>(b)];
    s.mean_block_at = tables.mean_block_at[static_cast<size_t>(b)];
    if (from.dense) continue;
    const IndexParts parts = index_parts(call, b);
    s.codes = parts.codes;
    s.scales = parts.scales;
    s.smoothing = parts.smoothing;
    s.codes_head = parts.codes_head;
    s.scales_head = parts.scales_head;
  }
  c.items = part<Item>(call, tables.items_at) + group.first_item;
  c.row_word = part<int64_t>(call, tables.row_word_at);
  c.thresholds = tables_of(layer).thresholds;
  c.bits = call.bits;
  c.n_sequences = group.sequences;
  c.n_items = group.items;
  c.q_heads = x.q_heads;
  c.kv_heads = x.kv_heads;
  c.group = p.group;
  c.head_dim = x.head_dim;
  c.dtype = x.dtype;
  c.sink = layer.sink;
  c.local = layer.local;
  c.scale = p.scale;
  c.page_size = x.page_size;
  c.pages = x.pages;
  c.page_table = call.page_table;
  return c;
}

Tokens tokens_of(const Call& call, const void* base, const sale_strides& strides, int64_t b) {
  const sale_problem& x = call.plan->problem;
  const int64_t first =
      x.page_size != 0 ? 0 : b * strides.batch + call.plan->sequences[static_cast<size_t>(b)].k_start * strides.token;
  return {static_cast<const uint16_t*>(base) + first,
          strides.head,
          strides.token,
          x.page_size,
          strides.batch,
          x.page_size != 0 ? call.page_table + b * x.pages : nullptr};
}

IndexParts index_parts(const Call& call, int64_t b) {
  if (call.indexes != nullptr) return parts_of(*call.layer, call.indexes[b]->map, call.indexes[b]->part(0));
  const Plan& p = *call.plan;
  const sale::Sequence& s = p.sequences[static_cast<size_t>(b)];
  const IndexMap map = p.stages().index_map(p.problem.kv_heads, p.problem.head_dim, p.form, s.sight.k_len);
  return parts_of(*call.layer, map, call.workspace + s.index_at);
}

IndexCall index_call(const Architecture& a, const Layer& layer, const Tokens& k, const IndexParts& parts) {
  IndexCall c{};
  c.k = k;
  c.dtype = layer.dtype;
  c.head_dim = layer.head_dim;
  c.kv_heads = layer.kv_heads;
  c.estimator = estimator_of(a, layer);
  c.codes = parts.codes;
  c.scales = parts.scales;
  c.smoothing = parts.smoothing;
  c.codes_head = parts.codes_head;
  c.scales_head = parts.scales_head;
  return c;
}

namespace {

PagesCall pages_call(const Architecture& a, const Call& call, int64_t b) {
  const Plan& p = *call.plan;
  const IndexMap map = index_map(a, p.problem.kv_heads, p.problem.head_dim, p.form, p.problem.page_size);
  const IndexParts parts = index_parts(call, b);
  PagesCall c{};
  c.pages = static_cast<char*>(call.pages.memory);
  c.page_bytes = call.pages.page_bytes;
  c.table = call.page_table + b * p.problem.pages;
  c.page_blocks = p.problem.page_size / block_keys;
  c.page_scales_at = static_cast<int64_t>(map.scales_at);
  c.page_codes_head = static_cast<int64_t>(map.head_codes);
  c.page_scales_head = static_cast<int64_t>(map.head_scales);
  c.codes = parts.codes;
  c.scales = parts.scales;
  c.codes_head = parts.codes_head;
  c.scales_head = parts.scales_head;
  c.code_bytes = static_cast<int32_t>(block_keys) * a.width(p.form);
  c.scale_bytes = a.scales(p.form) * 4;
  c.kv_heads = p.problem.kv_heads;
  c.k_len = p.sequences[static_cast<size_t>(b)].sight.k_len;
  c.coded = call.pages.coded;
  c.made = reinterpret_cast<unsigned long long*>(call.pages.made);
  if (c.coded != nullptr) c.uncoded = part<int32_t>(call, tables_of(p).uncoded_at);
  return c;
}

}  // namespace

void forget(const Layer& layer, const sale_index_slots& slots) {
  const Current current(layer.device);
  must(launch_forget(slots, static_cast<cudaStream_t>(slots.stream)), "launching the forgetting of codes");
}

void make_indexes(const Architecture& a, const Call& call) {
  const Plan& p = *call.plan;
  const Layer& layer = *call.layer;
  const Current current(p.problem.device);
  const bool paged = call.pages.memory != nullptr;
  for (const sale::Sequence& s : p.sequences) {
    if (!s.indexed) continue;
    const int64_t b = &s - p.sequences.data(), blocks = Sight::blocks_of(s.sight.k_len);
    const int64_t first = paged ? s.first_uncoded() : 0;
    PagesCall pages = paged ? pages_call(a, call, b) : PagesCall{};
    const bool sorted = pages.coded != nullptr;  // by the pages themselves
    if (sorted || (first > 0 && !s.dense)) {
      pages.first = 0, pages.end = sorted ? blocks : first;
      must(launch_read_pages(pages, stream_of(call)), "launching the reading of index pages");
    }
    if (first == blocks && !sorted) continue;
    IndexCall c = index_call(a, layer, tokens_of(call, call.k, call.strides.k, b), index_parts(call, b));
    c.k_len = s.sight.k_len;
    c.first_key = sorted ? 0 : first * block_keys;
    c.fix = layer.key_scales.empty() && !paged;
    c.smoothing_given = !layer.smoothing.empty();
    c.blocks = pages.uncoded;
    c.scratch = call.workspace + tables_of(p).index_scratch_at;
    must(a.index(c, stream_of(call)), "launching the key index");
    if (!paged) continue;
    pages.first = sorted ? 0 : first, pages.end = blocks;
    must(launch_write_pages(pages, stream_of(call)), "launching the writing of index pages");
  }
}

LowBit low_bit_of(const Call& call) {
  const Tables& t = tables_of(*call.plan);
  if (call.plan->compute == SALE_COMPUTE_EXACT) return {};
  const auto codes = [&](size_t at) { return reinterpret_cast<uint8_t*>(call.workspace + at); };
  const auto floats = [&](size_t at) { return reinterpret_cast<float*>(call.workspace + at); };
  const int32_t bytes = value_bytes(call.plan->compute);
  return {codes(t.k_codes_at),
          bytes != 0 ? codes(t.v_codes_at) : nullptr,
          bytes,
          floats(t.k_scales_at),
          floats(t.v_most_at),
          floats(t.smoothing_at),
          t.coded_blocks};
}

void make_stand_ins(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const sale_problem& x = p.problem;
  for (size_t b = 0; b < p.sequences.size(); ++b) {
    const auto means = [&](size_t at) {
      return reinterpret_cast<uint16_t*>(call.workspace + at) + t.mean_at[b] * x.head_dim;
    };
    const Tokens k = tokens_of(call, call.k, call.strides.k, static_cast<int64_t>(b));
    const Tokens v = tokens_of(call, call.v, call.strides.v, static_cast<int64_t>(b));
    const int64_t k_len = p.sequences[b].sight.k_len, means_head = t.means * x.head_dim;
    if (p.compensate)
      must(launch_means(
               {k, v, x.dtype, x.head_dim, x.kv_heads, k_len, means(t.k_means_at), means(t.v_means_at), means_head},
               stream_of(call)),
           "launching the means");
    if (p.compute == SALE_COMPUTE_EXACT) continue;
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
    must(launch_low_bit(c, stream_of(call)), "launching the codes of keys and values");
  }
}

void wait(const Call& call) {
  const Current current(tables_of(*call.plan).device.ordinal);
  cudaStreamCaptureStatus capture{};
  must(cudaStreamIsCapturing(stream_of(call), &capture), "asking whether the stream is captured");
  require(capture == cudaStreamCaptureStatusNone, "stats: given, but the stream is being captured; pass NULL");
  must(cudaStreamSynchronize(stream_of(call)), "running");
}

namespace {

// Rows [first, first + n) of sequence b's audited ones.
AuditCall audit_of(const Architecture& a, const Call& call, size_t b, int64_t first, int64_t n) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const sale_problem& x = p.problem;
  const sale::Sequence& s = p.sequences[b];
  const auto i = static_cast<int64_t>(b);
  AuditCall c{};
  c.k = tokens_of(call, call.k, call.strides.k, i);
  c.v = tokens_of(call, call.v, call.strides.v, i);
  const Strides& by = call.strides;
  c.q = static_cast<const uint16_t*>(call.q) + i * by.q.batch + s.q_start * by.q.token;
  c.out = static_cast<const uint16_t*>(call.out) + i * by.out.batch + s.q_start * by.out.token;
  c.q_head = by.q.head, c.q_token = by.q.token;
  c.out_head = by.out.head, c.out_token = by.out.token;
  c.dtype = x.dtype, c.head_dim = x.head_dim, c.kv_heads = x.kv_heads, c.group = p.group;
  c.sight = s.sight;
  c.bits = call.bits + s.bits_at, c.words = s.words;
  c.row_word = part<int64_t>(call, t.row_word_at) + t.row_word_of[b];
  c.tile_rows = a.tile_rows;
  c.scale = p.scale;
  c.rows = part<int64_t>(call, t.audited_at) + t.audited_of[b] + first, c.n_rows = static_cast<int32_t>(n);
  const AuditRanges ranges = audit_ranges(s.sight.k_len);
  c.ranges = ranges.ranges, c.range_steps = ranges.steps;
  c.partials = reinterpret_cast<float*>(call.workspace + t.audit_partials_at);
  c.to_head = int64_t{p.audit} * p.group;
  c.to = reinterpret_cast<AuditedRow*>(call.workspace + t.audit_rows_at) + i * x.kv_heads * c.to_head + first * p.group;
  return c;
}

}  // namespace

void audit(const Architecture& a, const Call& call, sale_head_audit* to) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const Current current(t.device.ordinal);
  auto* heads = reinterpret_cast<sale_head_audit*>(call.workspace + t.audits_at);
  for (size_t b = 0; b < p.sequences.size(); ++b) {
    const int64_t rows = p.sequences[b].audited;
    for (int64_t first = 0; first < rows; first += t.audit_slice) {
      const AuditCall c = audit_of(a, call, b, first, std::min(t.audit_slice, rows - first));
      must(a.audit(c, stream_of(call)), "launching the audit");
      must(launch_audit_compare(c, stream_of(call)), "launching the comparison of the audit");
    }
    must(launch_audit_total(audit_of(a, call, b, 0, rows), heads + static_cast<int64_t>(b) * p.problem.q_heads,
                            stream_of(call)),
         "launching the sums of the audit");
  }
  const size_t n = static_cast<size_t>(p.problem.batch) * static_cast<size_t>(p.problem.q_heads);
  must(cudaMemcpyAsync(to, heads, n * sizeof(sale_head_audit), cudaMemcpyDeviceToHost, stream_of(call)),
       "copying the audit");
  must(cudaStreamSynchronize(stream_of(call)), "auditing");
}

void count(const Architecture& a, const Call& call, int64_t first, int64_t n, int64_t* kept) {
  const Tables& tables = tables_of(*call.plan);
  const Current current(tables.device.ordinal);
  auto* counts = reinterpret_cast<int64_t*>(call.workspace + tables.counts_at);
  if (first == 0)
    for (const Group& g : tables.groups)
      must(launch_count(common_of(a, call, g), counts, stream_of(call)), "launching the count of blocks");
  must(cudaMemcpyAsync(kept, counts + first, static_cast<size_t>(n) * 8, cudaMemcpyDeviceToHost, stream_of(call)),
       "copying the count of blocks");
  must(cudaStreamSynchronize(stream_of(call)), "counting blocks");
}

}  // namespace sale::cuda
