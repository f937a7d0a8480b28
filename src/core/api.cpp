// The C ABI: pointers are checked here, everything else in check.cpp.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/checked.hpp"
#include "core/objects.hpp"

using namespace sale;

namespace {

struct Extent {
  const char* name;
  uintptr_t begin, end;
};

size_t element_bytes(sale_dtype dtype) { return dtype == SALE_F32 ? 4 : 2; }

Extent extent(const char* name, const void* base, const sale_strides& s, const Plan& plan, int64_t heads, bool keys) {
  const sale_problem& p = plan.problem;
  int64_t tokens = 1;
  for (const Sequence& q : plan.sequences) tokens = std::max(tokens, keys ? q.k_start + q.k_len : q.q_start + q.q_len);
  const int64_t span = (p.batch - 1) * s.batch + (heads - 1) * s.head + (tokens - 1) * s.token + p.head_dim;
  const size_t size = element_bytes(p.dtype);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(base);
  require(base != nullptr, name, ": null");
  require(begin % size == 0, name, ": not aligned to its elements of ", size, " bytes");
  const uintptr_t bytes = static_cast<uintptr_t>(span) * size;
  require(begin <= UINTPTR_MAX - bytes, name, ": reaches beyond the address space");
  return {name, begin, begin + bytes};
}

void check_apart(const Extent& written, const Extent& other) {
  require(written.end <= other.begin || other.end <= written.begin, written.name, ": overlaps ", other.name);
}

void check_workspace(const Plan& plan, const void* workspace, size_t bytes) {
  require(workspace != nullptr, "workspace: null");
  require(reinterpret_cast<uintptr_t>(workspace) % 64 == 0, "workspace: not aligned to 64 bytes");
  require(bytes >= plan.workspace.total, "workspace_bytes: ", bytes, " is below the ", plan.workspace.total,
          " this plan needs");
}

Extent workspace_extent(const Plan& plan, const void* workspace) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace);
  return {"workspace", begin, begin + plan.workspace.total};
}

bool same_projection(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

void check_indexes(const Plan& plan, const sale_index* const* indexes) {
  if (!plan.with_index) {
    require(indexes == nullptr, "indexes: given, but the plan was made without; pass NULL");
    return;
  }
  require(indexes != nullptr, "indexes: null, but the plan was made with_index");
  for (int32_t b = 0; b < plan.problem.batch; ++b) {
    const Sequence& s = plan.sequences[static_cast<size_t>(b)];
    const sale_index* i = indexes[b];
    require(i != nullptr, "indexes[", b, "]: null");
    require(i->problem.kv_heads == plan.problem.kv_heads && i->problem.head_dim == plan.problem.head_dim, "indexes[", b,
            "]: made for ", i->problem.kv_heads, " kv heads of ", i->problem.head_dim, ", the plan has ",
            plan.problem.kv_heads, " of ", plan.problem.head_dim);
    require(i->estimator.format == plan.estimator.format && i->estimator.rank == plan.estimator.rank, "indexes[", b,
            "]: made for INT", static_cast<int>(i->estimator.format), " rank ", i->estimator.rank,
            ", the plan scans INT", static_cast<int>(plan.estimator.format), " rank ", plan.estimator.rank);
    require(same_projection(i->estimator.k_projection, plan.estimator.k_projection), "indexes[", b,
            "]: made with another k_projection than the plan's");
    require(i->length == s.k_len || s.dense, "indexes[", b, "]: holds ", i->length, " keys, the sequence has ",
            s.k_len);
  }
}

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Call make_call(const Plan& plan, const void* q, const void* k, const void* v, void* out, float* lse,
               const sale_index* const* indexes, void* workspace, const uint64_t* bits) {
  char* w = static_cast<char*>(workspace);
  uint64_t* own = reinterpret_cast<uint64_t*>(w + plan.workspace.bits_at);
  return {&plan,
          q,
          k,
          v,
          out,
          lse,
          plan.with_index ? indexes : nullptr,
          w,
          bits != nullptr ? const_cast<uint64_t*>(bits) : own};
}

void count_blocks(const Plan& plan, const uint64_t* bits, sale_stats& stats) {
  stats.kept_blocks = stats.visible_blocks = 0;
  for (int32_t b = 0; b < plan.problem.batch; ++b) {
    const Sequence& s = plan.sequences[static_cast<size_t>(b)];
    int64_t visible = 0;
    for (int64_t t = 0; t < s.tiles; ++t) visible += s.visible_blocks(t);
    for (int32_t h = 0; h < plan.problem.q_heads; ++h) {
      int64_t kept = 0;
      const uint64_t* words = bits + s.bits_at + h * s.words;
      for (int64_t i = 0; i < s.words; ++i) kept += __builtin_popcountll(words[i]);
      stats.kept_blocks += kept;
      stats.visible_blocks += visible;
      if (stats.heads != nullptr) stats.heads[int64_t{b} * plan.problem.q_heads + h] = {kept, visible};
    }
  }
}

void check_outputs(const Plan& plan, const Extent& q, const Extent& k, const Extent& v, void* out, float* lse,
                   const void* workspace) {
  const sale_problem& p = plan.problem;
  const Extent o = extent("out", out, p.out, plan, p.q_heads, false);
  const Extent space = workspace_extent(plan, workspace);
  for (const Extent& other : {q, k, v}) {
    check_apart(o, other);
    check_apart(space, other);
  }
  check_apart(o, space);
  if (lse == nullptr) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(lse);
  require(begin % 4 == 0, "lse: not aligned to its elements of 4 bytes");
  const size_t rows = static_cast<size_t>(p.batch) * static_cast<size_t>(p.q_heads) *
                      static_cast<size_t>(plan.sequences.front().lse_rows);
  const Extent l{"lse", begin, begin + rows * 4};
  for (const Extent& other : {q, k, v, o, space}) check_apart(l, other);
}

}  // namespace

sale_problem sale_problem_init(int32_t batch, int32_t q_heads, int32_t kv_heads, int64_t q_len, int64_t k_len,
                               int32_t head_dim, sale_dtype dtype) {
  sale_problem p{};
  p.struct_size = sizeof p;
  p.batch = batch;
  p.q_heads = q_heads;
  p.kv_heads = kv_heads;
  p.head_dim = head_dim;
  p.dtype = dtype;
  p.q_len = q_len;
  p.k_len = k_len;
  p.q_offset = SALE_AUTO;
  // Sizes are the caller's, unchecked until a plan is made: wrap rather than overflow.
  const auto strides = [&](int64_t heads, int64_t tokens) {
    const uint64_t head = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(head_dim);
    return sale_strides{static_cast<int64_t>(head * static_cast<uint64_t>(heads)), static_cast<int64_t>(head),
                        head_dim};
  };
  p.q = p.out = strides(q_heads, q_len);
  p.k = p.v = strides(kv_heads, k_len);
  return p;
}

sale_options sale_options_init(void) {
  static const float default_threshold = 0.004f;
  sale_options o{};
  o.struct_size = sizeof o;
  o.thresholds = &default_threshold;
  o.n_thresholds = 1;
  o.format = SALE_INT8;
  o.sink = 32;
  o.local = 128;
  o.dense_below = 1024;
  o.compute = SALE_COMPUTE_EXACT;
  return o;
}

sale_status sale_plan_create(const sale_problem* problem, const sale_options* options, int with_index,
                             sale_plan** plan) {
  return guarded([&] {
    require(problem != nullptr, "problem: null");
    require(options != nullptr, "options: null");
    require(plan != nullptr, "plan: null");
    auto made = std::make_unique<sale_plan>();
    made->plan = make_plan(*problem, *options, with_index != 0);
    *plan = made.release();
  });
}

void sale_plan_destroy(sale_plan* plan) { delete plan; }

sale_workspace sale_plan_workspace(const sale_plan* plan) {
  if (plan == nullptr) return {};
  const WorkspaceMap& w = plan->plan->workspace;
  return {w.total, w.bits_at, w.q_means_at - w.bits_at, w.total - w.q_means_at};
}
const char* sale_plan_backend(const sale_plan* plan) { return plan == nullptr ? "" : plan->plan->backend->name; }
const char* sale_plan_explain(const sale_plan* plan) { return plan == nullptr ? "" : plan->plan->explanation.c_str(); }

// ---- blocks
// ----------------------------------------------------------------------------------------------------------

namespace {

struct Row {
  uint64_t* words;
  int64_t visible;
};

Row block_row(const sale_blocks& blocks, int32_t sequence, int32_t head, int64_t tile) {
  const Plan& plan = *blocks.plan;
  require(sequence >= 0 && sequence < plan.problem.batch, "sequence: ", sequence, " is not in 0 .. ",
          plan.problem.batch - 1);
  require(head >= 0 && head < plan.problem.q_heads, "head: ", head, " is not in 0 .. ", plan.problem.q_heads - 1);
  const Sequence& s = plan.sequences[static_cast<size_t>(sequence)];
  require(tile >= 0 && tile < s.tiles, "tile: ", tile, " is not in 0 .. ", s.tiles - 1);
  const int64_t at = s.bits_at + head * s.words + s.row_word[static_cast<size_t>(tile)];
  return {const_cast<uint64_t*>(blocks.bits.data()) + at, s.visible_blocks(tile)};
}

bool same_blocks(const Plan& a, const Plan& b) {
  return a.bits_words == b.bits_words && a.problem.q_heads == b.problem.q_heads && a.problem.batch == b.problem.batch &&
         std::equal(a.sequences.begin(), a.sequences.end(), b.sequences.begin(),
                    [](const Sequence& x, const Sequence& y) {
                      return x.q_len == y.q_len && x.k_len == y.k_len && x.q_offset == y.q_offset;
                    });
}

}  // namespace

sale_status sale_blocks_create(const sale_plan* plan, sale_blocks** blocks) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    require(blocks != nullptr, "blocks: null");
    auto made = std::make_unique<sale_blocks>();
    made->plan = plan->plan;
    made->bits.resize(static_cast<size_t>(plan->plan->bits_words));
    for (int32_t b = 0; b < made->plan->problem.batch; ++b)
      for (int32_t h = 0; h < made->plan->problem.q_heads; ++h)
        for (int64_t t = 0; t < made->plan->sequences[static_cast<size_t>(b)].tiles; ++t) {
          const Row row = block_row(*made, b, h, t);
          for (int64_t i = 0; i < row.visible; ++i) row.words[i / 64] |= uint64_t{1} << (i % 64);
        }
    *blocks = made.release();
  });
}

void sale_blocks_destroy(sale_blocks* blocks) { delete blocks; }

sale_status sale_blocks_row(const sale_blocks* blocks, int32_t sequence, int32_t head, int64_t tile, int32_t* out,
                            int64_t capacity, int64_t* kept, int64_t* visible) {
  return guarded([&] {
    require(blocks != nullptr, "blocks: null");
    require(capacity >= 0, "capacity: ", capacity, " is negative");
    require(out != nullptr || capacity == 0, "out: null, but capacity is ", capacity);
    require(kept != nullptr, "kept: null");
    require(visible != nullptr, "visible: null");
    const Row row = block_row(*blocks, sequence, head, tile);
    int64_t n = 0;
    for (int64_t i = 0; i < row.visible; ++i) {
      if ((row.words[i / 64] >> (i % 64) & 1) == 0) continue;
      if (n < capacity) out[n] = static_cast<int32_t>(i);
      ++n;
    }
    *kept = n;
    *visible = row.visible;
  });
}

sale_status sale_blocks_set_row(sale_blocks* blocks, int32_t sequence, int32_t head, int64_t tile, const int32_t* kept,
                                int64_t count) {
  return guarded([&] {
    require(blocks != nullptr, "blocks: null");
    require(kept != nullptr, "kept: null");
    const Row row = block_row(*blocks, sequence, head, tile);
    require(count >= 1 && count <= row.visible, "count: ", count, " is not in 1 .. ", row.visible,
            ", the visible blocks");
    for (int64_t i = 0; i < count; ++i)
      require(kept[i] >= 0 && kept[i] < row.visible && (i == 0 || kept[i] > kept[i - 1]), "kept: element ", i, " is ",
              kept[i], "; block numbers ascend, without repeats, below ", row.visible);
    for (int64_t i = 0; i < ceil_div(row.visible, 64); ++i) row.words[i] = 0;
    for (int64_t i = 0; i < count; ++i) row.words[kept[i] / 64] |= uint64_t{1} << (kept[i] % 64);
  });
}

// ---- run
// -------------------------------------------------------------------------------------------------------------

sale_status sale_run(const sale_plan* plan, const void* q, const void* k, const void* v, void* out, float* lse,
                     const sale_index* const* indexes, void* workspace, size_t workspace_bytes, sale_stats* stats) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    const Plan& p = *plan->plan;
    const Extent eq = extent("q", q, p.problem.q, p, p.problem.q_heads, false);
    const Extent ek = extent("k", k, p.problem.k, p, p.problem.kv_heads, true);
    const Extent ev = extent("v", v, p.problem.v, p, p.problem.kv_heads, true);
    check_workspace(p, workspace, workspace_bytes);
    check_outputs(p, eq, ek, ev, out, lse, workspace);
    check_indexes(p, indexes);
    const Call call = make_call(p, q, k, v, out, lse, indexes, workspace, nullptr);
    const auto t0 = Clock::now();
    if (!p.with_index) make_index(call);
    const double index_s = since(t0);
    const auto t1 = Clock::now();
    select_blocks(call);
    const double select_s = since(t1);
    const auto t2 = Clock::now();
    make_means(call);
    attend_blocks(call);
    if (stats == nullptr) return;
    stats->index_s = index_s;
    stats->select_s = select_s;
    stats->attend_s = since(t2);
    count_blocks(p, call.bits, *stats);
  });
}

sale_status sale_select(const sale_plan* plan, const void* q, const void* k, const sale_index* const* indexes,
                        sale_blocks* blocks, void* workspace, size_t workspace_bytes, sale_stats* stats) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    const Plan& p = *plan->plan;
    const Extent eq = extent("q", q, p.problem.q, p, p.problem.q_heads, false);
    const Extent ek = extent("k", k, p.problem.k, p, p.problem.kv_heads, true);
    require(blocks != nullptr, "blocks: null");
    require(same_blocks(*blocks->plan, p), "blocks: made for another problem than the plan's");
    check_workspace(p, workspace, workspace_bytes);
    const Extent space = workspace_extent(p, workspace);
    check_apart(space, eq);
    check_apart(space, ek);
    check_indexes(p, indexes);
    const Call call = make_call(p, q, k, nullptr, nullptr, nullptr, indexes, workspace, blocks->bits.data());
    const auto t0 = Clock::now();
    if (!p.with_index) make_index(call);
    const double index_s = since(t0);
    const auto t1 = Clock::now();
    select_blocks(call);
    if (stats == nullptr) return;
    stats->index_s = index_s;
    stats->select_s = since(t1);
    stats->attend_s = 0;
    count_blocks(p, call.bits, *stats);
  });
}

sale_status sale_attend(const sale_plan* plan, const void* q, const void* k, const void* v, const sale_blocks* blocks,
                        void* out, float* lse, void* workspace, size_t workspace_bytes, sale_stats* stats) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    const Plan& p = *plan->plan;
    const Extent eq = extent("q", q, p.problem.q, p, p.problem.q_heads, false);
    const Extent ek = extent("k", k, p.problem.k, p, p.problem.kv_heads, true);
    const Extent ev = extent("v", v, p.problem.v, p, p.problem.kv_heads, true);
    require(blocks != nullptr, "blocks: null");
    require(same_blocks(*blocks->plan, p), "blocks: made for another problem than the plan's");
    check_workspace(p, workspace, workspace_bytes);
    check_outputs(p, eq, ek, ev, out, lse, workspace);
    Call call = make_call(p, q, k, v, out, lse, nullptr, workspace, blocks->bits.data());
    const auto t0 = Clock::now();
    make_means(call);
    attend_blocks(call);
    if (stats == nullptr) return;
    stats->index_s = stats->select_s = 0;
    stats->attend_s = since(t0);
    count_blocks(p, call.bits, *stats);
  });
}

// ---- backends
// --------------------------------------------------------------------------------------------------------

namespace {
thread_local std::string reason_text;
bool in_list(int32_t i) { return i >= 0 && i < backend_count(); }
}  // namespace

int32_t sale_backend_count(void) { return backend_count(); }
const char* sale_backend_name(int32_t i) { return in_list(i) ? backend(i).name : ""; }
const char* sale_backend_summary(int32_t i) { return in_list(i) ? backend(i).summary : ""; }
const char* sale_backend_why_not(int32_t i) {
  if (!in_list(i)) return "there is no such backend";
  reason_text = backend(i).why_not_machine(machine());
  return reason_text.c_str();
}
const char* sale_backend_why_not_problem(int32_t i, const sale_problem* problem, const sale_options* options) {
  if (!in_list(i)) return "there is no such backend";
  if (problem == nullptr || options == nullptr) return "problem or options: null";
  const sale_status status = guarded([&] {
    check_heads(*problem);
    reason_text = backend(i).why_not(*problem, *options);
  });
  return status == SALE_OK ? reason_text.c_str() : sale_last_error();
}
const char* sale_machine(void) {
  static const std::string text = describe(machine());
  return text.c_str();
}
