// The stages, cut into items for the thread pool.
#include "cpu/stages.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/objects.hpp"
#include "cpu/common/load.hpp"
#include "cpu/parts.hpp"

namespace sale {
namespace cpu {
namespace {

void open_layer(Layer& layer, const sale_layer& from) {
  layer.state = std::make_shared<CpuLayer>(CpuLayer{&layer.backend->kernels(machine()), workers_of(from)});
}
int32_t count_workers(const Layer& layer) { return state(layer).workers->threads(); }

size_t index_scratch(int32_t, int32_t) { return 0; }
void open_index(sale_index&) {}

Shape shape_of(const Plan& p) {
  return {p.problem.dtype, p.problem.head_dim, p.group, p.form.rank, p.form.row_bytes(),
          p.form.format,   p.compute,          p.sink,  p.local,     p.scale};
}

// ---- plan ----------------------------------------------------------------------------------------------------------

// Neighbouring tiles share the packing of keys and values, so an item should hold about eight (tile, head) pairs; but
// there should be enough items to keep every thread busy. Results do not depend on it.
int64_t tiles_per_item(const Plan& plan, int threads) {
  int64_t tiles = 0;
  for (const Sequence& s : plan.sequences) tiles += s.tiles;
  const int64_t shared = std::max<int64_t>(1, 8 / plan.group);
  const int64_t busy = tiles * plan.problem.kv_heads / (4 * threads);
  return std::clamp<int64_t>(busy, 1, shared);
}

// Longest first, so that the last items to be taken are short; ties in a fixed order.
std::vector<Item> make_items(const Plan& plan, int64_t step) {
  std::vector<Item> items;
  for (int32_t b = 0; b < plan.problem.batch; ++b) {
    const Sequence& s = plan.sequences[static_cast<size_t>(b)];
    for (int64_t t = 0; t < s.tiles; t += step)
      for (int32_t h = 0; h < plan.problem.kv_heads; ++h) items.push_back({b, h, t, std::min(t + step, s.tiles)});
  }
  const auto cost = [&](const Item& i) {
    const Sequence& s = plan.sequences[static_cast<size_t>(i.sequence)];
    return (i.tile_end - i.tile_begin) * s.visible_blocks(i.tile_end - 1);
  };
  std::stable_sort(items.begin(), items.end(), [&](const Item& a, const Item& b) { return cost(a) > cost(b); });
  return items;
}

void make_state(Plan& plan, Areas& areas) {
  const sale_problem& p = plan.problem;
  auto made = std::make_shared<CpuPlan>();
  made->kernels = &plan.backend->kernels(machine());
  made->tiles_per_item = tiles_per_item(plan, plan.threads);
  made->items = make_items(plan, made->tiles_per_item);
  const bool int4 = plan.form.format == SALE_INT4, int8_products = plan.compute == SALE_COMPUTE_INT8;
  made->q_means_at = areas.add(int4 ? int64_t{p.batch} * p.q_heads * p.head_dim * 4 : 0);
  made->k_means_at = areas.add(int8_products ? int64_t{p.batch} * p.kv_heads * p.head_dim * 4 : 0);
  for (const Sequence& s : plan.sequences)
    made->bias_at.push_back(areas.add(int4 && !s.dense ? p.q_heads * round_up(s.sight.k_len, k_block) * 4 : 0));
  made->means = 0;
  for (const Sequence& q : plan.sequences) made->means = std::max(made->means, ceil_div(q.sight.k_len, mean_keys));
  const int64_t row_bytes = plan.compensate ? p.head_dim * element_bytes(p.dtype) : 0;
  const Checked means = Checked(p.batch) * Checked(p.kv_heads) * Checked(made->means) * Checked(row_bytes);
  made->k_block_means_at = areas.add(means);
  made->v_block_means_at = areas.add(means);
  made->gathered_keys = 0;
  for (const Sequence& q : plan.sequences) {
    made->gathered_of.push_back(made->gathered_keys);
    if (p.page_size != 0) made->gathered_keys += q.sight.k_len;
  }
  const Checked pages =
      Checked(p.kv_heads) * Checked(made->gathered_keys) * Checked(p.head_dim * element_bytes(p.dtype));
  made->gathered_k_at = areas.add(pages);
  made->gathered_v_at = areas.add(pages);
  const Shape shape = shape_of(plan);
  made->audited_at =
      areas.add(Checked(p.batch) * Checked(p.q_heads) * Checked(plan.audit) * Checked(int64_t{sizeof(AuditedRow)}));
  made->scratch_per_thread =
      aligned(static_cast<int64_t>(std::max({made->kernels->select_scratch(shape, made->tiles_per_item),
                                             made->kernels->attend_scratch(shape, made->tiles_per_item),
                                             plan.audit > 0 ? made->kernels->audit_scratch(shape) : 0})));
  made->scratch_at = areas.add(Checked(static_cast<int64_t>(made->scratch_per_thread)) * Checked(plan.threads));
  plan.state = std::move(made);
}

std::string explain_plan(const Plan& plan, const Layer&) {
  const CpuPlan& mine = state(plan);
  return text("threads    ", plan.threads, ", each with ", mine.scratch_per_thread, " bytes of scratch\n",
              "items      ", mine.items.size(), " of up to ", mine.tiles_per_item, " query tiles x ", plan.group,
              " query heads\n");
}

// ---- run -----------------------------------------------------------------------------------------------------------

}  // namespace

HeadGroup head_group(const Call& call, int32_t sequence, int32_t kv_head) {
  const Plan& p = *call.plan;
  const Layer& layer = *call.layer;
  const CpuPlan& mine = state(p);
  const sale_problem& x = p.problem;
  const Strides& by = call.strides;
  const Sequence& s = p.sequences[static_cast<size_t>(sequence)];
  const int64_t head = int64_t{kv_head} * p.group, d = x.head_dim;
  const int64_t rows_at = (int64_t{sequence} * x.q_heads + head) * s.lse_rows;
  HeadGroup h{};
  static_cast<Sight&>(h) = s.sight;
  h.shape = shape_of(p);
  h.q = at(call.q, x.dtype, sequence * by.q.batch + head * by.q.head + s.q_start * by.q.token);
  h.k = at(call.k, x.dtype, sequence * by.k.batch + kv_head * by.k.head + s.k_start * by.k.token);
  if (call.v != nullptr)
    h.v = at(call.v, x.dtype, sequence * by.v.batch + kv_head * by.v.head + s.k_start * by.v.token);
  if (call.out != nullptr)
    h.out = const_cast<char*>(
        at(call.out, x.dtype, sequence * by.out.batch + head * by.out.head + s.q_start * by.out.token));
  h.lse_head = s.lse_rows;
  if (call.lse != nullptr) h.lse = call.lse + rows_at;
  if (call.reference != nullptr) h.reference = call.reference + rows_at;
  h.q_token = by.q.token;
  h.q_head = by.q.head;
  h.k_token = by.k.token;
  h.v_token = by.v.token;
  if (x.page_size != 0) {
    const int64_t first = (kv_head * mine.gathered_keys + mine.gathered_of[static_cast<size_t>(sequence)]) * d;
    h.k = at(call.workspace + mine.gathered_k_at, x.dtype, first);
    h.v = at(call.workspace + mine.gathered_v_at, x.dtype, first);
    h.k_token = h.v_token = d;
  }
  h.out_token = by.out.token;
  h.out_head = by.out.head;
  h.thresholds = layer.thresholds.data() + head;
  h.dense = s.dense;
  h.bits = call.bits + s.bits_at + head * s.words;
  h.head_words = s.words;
  h.row_word = s.row_word.data();
  const auto floats = [&](size_t offset) { return reinterpret_cast<float*>(call.workspace + offset); };
  if (p.form.format == SALE_INT4) {
    h.q_mean = floats(mine.q_means_at) + (sequence * x.q_heads + head) * d;
    h.bias = floats(mine.bias_at[static_cast<size_t>(sequence)]) + head * h.bias_stride();
  }
  if (p.compensate && !s.dense) {
    const int64_t first = (int64_t{sequence} * x.kv_heads + kv_head) * mine.means * d;
    h.k_means = at(call.workspace + mine.k_block_means_at, x.dtype, first);
    h.v_means = at(call.workspace + mine.v_block_means_at, x.dtype, first);
  }
  if (p.compute == SALE_COMPUTE_INT8) h.k_mean = floats(mine.k_means_at) + (sequence * x.kv_heads + kv_head) * d;
  if (s.dense && !s.indexed) return h;
  h.index = call.indexes != nullptr ? view_of(*call.indexes[sequence], kv_head)
                                    : view_of(call.workspace + s.index_at,
                                              index_map(x.kv_heads, x.head_dim, p.form, s.sight.k_len), layer, kv_head);
  if (p.form.projected) h.q_projection = layer.q_projection.data() + kv_head * d * p.form.rank;
  return h;
}

namespace {

char* scratch(const Call& call, int thread) {
  const CpuPlan& mine = state(*call.plan);
  return call.workspace + mine.scratch_at + mine.scratch_per_thread * static_cast<size_t>(thread);
}

// What INT8 products need besides.
void make_means(const Call& call) {
  const Plan& plan = *call.plan;
  const int32_t kv_heads = plan.problem.kv_heads;
  workers(call).run(int64_t{plan.problem.batch} * kv_heads, [&](int64_t i, int) {
    const HeadGroup h = head_group(call, static_cast<int32_t>(i / kv_heads), static_cast<int32_t>(i % kv_heads));
    mean_rows({h.k, h.shape.dtype, h.k_token}, h.k_len, plan.problem.head_dim, const_cast<float*>(h.k_mean));
  });
}

// Means [begin, end) of `rows` rows: f32 sums of every second or fourth row, ascending, added in pairs.
void make_means_of(const void* from, void* to, const Shape& shape, int64_t token, int64_t rows, int64_t begin,
                   int64_t end) {
  const int32_t d = shape.head_dim, lanes = d > 64 ? 2 : 4;
  float row[256], mean[256];
  for (int64_t m = begin; m < end; ++m) {
    const int64_t present = std::min(mean_keys, rows - m * mean_keys);
    float sums[4][256] = {};
    for (int64_t r = 0; r < present; ++r) {
      load_row(from, shape.dtype, (m * mean_keys + r) * token, d, row);
      for (int32_t c = 0; c < d; ++c) sums[r % lanes][c] += row[c];
    }
    for (int32_t c = 0; c < d; ++c) {
      const float x = ((sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c])) / static_cast<float>(present);
      mean[c] = std::isfinite(x) ? x : 0.0f;
    }
    store_row(to, shape.dtype, m * d, d, mean);
  }
}

// What compensation needs besides.
void make_block_means(const Call& call) {
  each_span(call, span_blocks, sparse, [&](const Span& span) {
    const HeadGroup h = head_group(call, span.sequence, span.kv_head);
    const int64_t begin = span.begin / mean_blocks, end = ceil_div(span.end, mean_blocks);
    make_means_of(h.k, const_cast<void*>(h.k_means), h.shape, h.k_token, h.k_len, begin, end);
    make_means_of(h.v, const_cast<void*>(h.v_means), h.shape, h.v_token, h.k_len, begin, end);
  });
}

void select_blocks(const Call& call) {
  const Plan& plan = *call.plan;
  const int32_t d = plan.problem.head_dim;
  if (plan.form.format == SALE_INT4) {
    each_span(call, int64_t{1} << 40, sparse, [&](const Span& span) {
      const HeadGroup h = head_group(call, span.sequence, span.kv_head);
      if (!h.scanned()) return;
      for (int32_t g = 0; g < plan.group; ++g)
        mean_rows({at(h.q, h.shape.dtype, g * h.q_head), h.shape.dtype, h.q_token}, h.q_len, d,
                  const_cast<float*>(h.q_mean) + g * d);
    });
    each_span(call, span_blocks, sparse, [&](const Span& span) {
      const HeadGroup h = head_group(call, span.sequence, span.kv_head);
      if (h.scanned()) state(plan).kernels->bias(h, span.begin, span.end);
    });
  }
  workers(call).run(static_cast<int64_t>(state(plan).items.size()), [&](int64_t i, int thread) {
    const Item& item = state(plan).items[static_cast<size_t>(i)];
    state(plan).kernels->select(head_group(call, item.sequence, item.kv_head), item.tile_begin, item.tile_end,
                                scratch(call, thread));
  });
}

void attend_blocks(const Call& call) {
  const Plan& plan = *call.plan;
  if (plan.compute == SALE_COMPUTE_INT8) make_means(call);
  if (plan.compensate) make_block_means(call);
  workers(call).run(static_cast<int64_t>(state(plan).items.size()), [&](int64_t i, int thread) {
    const Item& item = state(plan).items[static_cast<size_t>(i)];
    state(plan).kernels->attend(head_group(call, item.sequence, item.kv_head), item.tile_begin, item.tile_end,
                                scratch(call, thread));
  });
}

// The audited rows of a sequence's kv head, [rows, group].
AuditedRow* audited(const Call& call, int64_t sequence, int64_t kv_head) {
  const Plan& p = *call.plan;
  return reinterpret_cast<AuditedRow*>(call.workspace + state(p).audited_at) +
         (sequence * p.problem.kv_heads + kv_head) * p.audit * p.group;
}

void audit(const Call& call, sale_head_audit* to) {
  const Plan& plan = *call.plan;
  const int64_t kv_heads = plan.problem.kv_heads, pieces = ceil_div(int64_t{plan.audit} * plan.group, audit_lanes);
  // From the last piece back: later rows see more keys.
  workers(call).run(plan.problem.batch * kv_heads * pieces, [&](int64_t i, int thread) {
    const int64_t b = i / (kv_heads * pieces), kv_head = i / pieces % kv_heads, piece = pieces - 1 - i % pieces;
    const Sequence& s = plan.sequences[static_cast<size_t>(b)];
    const int64_t lanes = s.audited * plan.group, begin = piece * audit_lanes;
    if (begin >= lanes) return;
    const int64_t end = std::min(begin + audit_lanes, lanes), first_row = begin / plan.group;
    // The kernel counts rows from that of lane 0; only those of these lanes are looked at.
    int64_t rows[audit_lanes];
    for (int64_t r = first_row; r * plan.group < end; ++r)
      rows[r - first_row] = audited_row(s.sight.q_len, s.audited, r, plan.audit_seed);
    const int64_t skipped = first_row * plan.group;
    state(plan).kernels->audit(head_group(call, static_cast<int32_t>(b), static_cast<int32_t>(kv_head)), rows,
                               begin - skipped, end - skipped, audited(call, b, kv_head) + begin,
                               scratch(call, thread));
  });
  for (int64_t i = 0; i < int64_t{plan.problem.batch} * plan.problem.q_heads; ++i) {
    const int64_t b = i / plan.problem.q_heads, head = i % plan.problem.q_heads;
    const AuditedRow* rows = audited(call, b, head / plan.group) + head % plan.group;
    sale_head_audit sum{plan.sequences[static_cast<size_t>(b)].audited, 0, 0, 0, 1};
    for (int64_t r = 0; r < sum.rows; ++r) {
      const AuditedRow& row = rows[r * plan.group];
      sum.error += row.error, sum.size += row.size, sum.mass += row.mass;
      if (!(row.mass >= sum.least_mass)) sum.least_mass = row.mass;
    }
    to[i] = sum;
  }
}

void count(const Call& call, int64_t first, int64_t n, int64_t* kept) {
  const Plan& plan = *call.plan;
  for (int64_t i = first; i < first + n; ++i) {
    const Sequence& s = plan.sequences[static_cast<size_t>(i / plan.problem.q_heads)];
    const uint64_t* words = call.bits + s.bits_at + i % plan.problem.q_heads * s.words;
    int64_t sum = 0;
    for (int64_t w = 0; w < s.words; ++w) sum += __builtin_popcountll(words[w]);
    kept[i - first] = sum;
  }
}

void tables(Plan&, Areas&) {}
void prepare(const Plan&, char*, void*) {}
void check(const Call&) {}
void wait(const Call&) {}

// ---- memory --------------------------------------------------------------------------------------------------------

// Aligned to a cache line.
std::shared_ptr<void> allocate(size_t bytes, int32_t) {
  void* data = std::aligned_alloc(64, aligned(static_cast<int64_t>(bytes)));
  if (data == nullptr) throw std::bad_alloc();
  return {data, std::free};
}
void copy(void* to, const void* from, size_t bytes, int32_t) { std::memcpy(to, from, bytes); }
void check_address(const char*, const void*, int32_t) {}
constexpr Space host{allocate, copy, copy, check_address};

}  // namespace
}  // namespace cpu

constinit const Stages cpu_stages = []() constexpr {
  using namespace cpu;
  return Stages{q_block,       host,   open_layer, count_workers, index_map,  index_scratch,
                open_index,    update, codes,      forget,        tables,     make_state,
                explain_plan,  check,  prepare,    order_pages,   make_index, select_blocks,
                attend_blocks, wait,   audit,      count};
}();

std::string cpu_why_not_layer(const Layer& layer) {
  if (layer.device != SALE_HOST)
    return text("the tensors are in the memory of device ", layer.device, "; CPU backends need device SALE_HOST");
  if (layer.form.format == SALE_FP8) return "format SALE_FP8 runs on GPUs only";
  return {};
}

std::string cpu_why_not(const sale_problem&, const sale_options& o) {
  if (o.compute == SALE_COMPUTE_FP8) return "compute SALE_COMPUTE_FP8 runs on GPUs only";
  if (o.compute == SALE_COMPUTE_F16) return "compute SALE_COMPUTE_F16 runs on GPUs only (sm80)";
  if (o.compensate != 0 && o.compute != SALE_COMPUTE_EXACT)
    return "compensate: CPU backends compensate exact products only (compute SALE_COMPUTE_EXACT)";
  return {};
}

}  // namespace sale
