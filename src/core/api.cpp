// The C ABI: pointers are checked here, everything else in check.cpp.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "core/checked.hpp"
#include "core/objects.hpp"

using namespace sale;

namespace {

struct Extent {
  const char* name;
  uintptr_t begin, end;
};

Extent extent(const char* name, const void* base, const sale_strides& s, const Plan& plan, int64_t heads, bool keys) {
  const sale_problem& p = plan.problem;
  // How far a page table reaches cannot be seen from here: one page of paged keys is known to be used.
  const bool paged = keys && p.page_size != 0;
  int64_t tokens = 1;
  for (const Sequence& q : plan.sequences) tokens = std::max(tokens, keys ? q.k_start + q.k_len : q.q_start + q.q_len);
  if (paged) tokens = p.page_size;
  const int64_t span = (paged ? 0 : p.batch - 1) * s.batch + (heads - 1) * s.head + (tokens - 1) * s.token + p.head_dim;
  const size_t size = static_cast<size_t>(element_bytes(p.dtype));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(base);
  require(base != nullptr, name, ": null");
  require(begin % size == 0, name, ": not aligned to its elements of ", size, " bytes");
  const uintptr_t bytes = static_cast<uintptr_t>(span) * size;
  require(begin <= UINTPTR_MAX - bytes, name, ": reaches beyond the address space");
  plan.stages().space.check(name, base, p.device);
  return {name, begin, begin + bytes};
}

void check_apart(const Extent& written, const Extent& other) {
  require(written.end <= other.begin || other.end <= written.begin, written.name, ": overlaps ", other.name);
}

void check_workspace(const Plan& plan, const void* workspace, size_t bytes) {
  require(workspace != nullptr, "workspace: null");
  require(reinterpret_cast<uintptr_t>(workspace) % 64 == 0, "workspace: not aligned to 64 bytes");
  plan.stages().space.check("workspace", workspace, plan.problem.device);
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
            "]: made for ", format_name(i->estimator.format), " rank ", i->estimator.rank, ", the plan scans ",
            format_name(plan.estimator.format), " rank ", plan.estimator.rank);
    require(i->backend->stages == plan.backend->stages && i->problem.device == plan.problem.device, "indexes[", b,
            "]: made for backend ", i->backend->name, " and device ", i->problem.device, ", the plan runs on ",
            plan.backend->name, " and device ", plan.problem.device);
    require(same_projection(i->estimator.k_projection, plan.estimator.k_projection), "indexes[", b,
            "]: made with another k_projection than the plan's");
    require(i->length == s.k_len || s.dense, "indexes[", b, "]: holds ", i->length, " keys, the sequence has ",
            s.k_len);
  }
}

// Wall-clock seconds of the stages, for those who ask: that takes waiting for a device.
class Laps {
public:
  Laps(const Call& call, const sale_stats* stats) : call_(call), on_(stats != nullptr) { lap(); }
  double lap() {
    if (!on_) return 0;
    call_.plan->stages().wait(call_);
    const Clock::time_point now = Clock::now();
    return std::chrono::duration<double>(now - std::exchange(start_, now)).count();
  }

private:
  using Clock = std::chrono::steady_clock;
  const Call& call_;
  bool on_;
  Clock::time_point start_;
};

Call make_call(const Plan& plan, const void* q, const void* k, const void* v, void* out, float* lse,
               const sale_index* const* indexes, void* workspace, const sale_blocks* blocks, void* stream) {
  char* w = static_cast<char*>(workspace);
  uint64_t* bits = blocks != nullptr ? blocks->words() : reinterpret_cast<uint64_t*>(w + plan.workspace.bits_at);
  const Call call{&plan, q, k, v, out, lse, plan.with_index ? indexes : nullptr, w, bits, stream};
  plan.stages().check(call);
  return call;
}

void check_stream(const Plan& plan, const void* stream) {
  require(plan.problem.device != SALE_HOST || stream == nullptr,
          "stream: given, but the tensors are in host memory; pass NULL");
}

void count_blocks(const Call& call, sale_stats& stats) {
  const Plan& plan = *call.plan;
  stats.kept_blocks = stats.visible_blocks = 0;
  constexpr int64_t step = 256;
  int64_t kept[step];
  const int64_t heads = plan.problem.q_heads, all = plan.problem.batch * heads;
  int64_t visible = 0;
  for (int64_t i = 0; i < all; ++i) {
    if (i % step == 0) plan.stages().count(call, i, std::min(step, all - i), kept);
    if (i % heads == 0) {
      const Sequence& s = plan.sequences[static_cast<size_t>(i / heads)];
      visible = 0;
      for (int64_t t = 0; t < s.tiles; ++t) visible += s.visible_blocks(t);
    }
    stats.kept_blocks += kept[i % step];
    stats.visible_blocks += visible;
    if (stats.heads != nullptr) stats.heads[i] = {kept[i % step], visible};
  }
}

// Floats [batch, q_heads, longest q_len]: lse, and a given reference.
Extent rows_extent(const char* name, const Plan& plan, const float* at) {
  const sale_problem& p = plan.problem;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
  require(begin % 4 == 0, name, ": not aligned to its elements of 4 bytes");
  plan.stages().space.check(name, at, p.device);
  const size_t rows = static_cast<size_t>(p.batch) * static_cast<size_t>(p.q_heads) *
                      static_cast<size_t>(plan.sequences.front().lse_rows);
  return {name, begin, begin + rows * 4};
}

void check_reference(const Plan& plan, std::initializer_list<Extent> written) {
  if (plan.problem.reference == nullptr) return;
  const Extent reference = rows_extent("reference", plan, plan.problem.reference);
  for (const Extent& w : written) check_apart(w, reference);
}

// Nothing is audited for nobody.
void check_audits(const Plan& plan, const sale_stats* stats) {
  require(plan.audit == 0 || (stats != nullptr && stats->audits != nullptr),
          "stats: without audits, but the plan's options ask to audit ", plan.audit, " rows per head");
}

// What comes after attend, for those who ask.
void report(const Call& call, Laps& laps, sale_stats* stats) {
  if (stats == nullptr) return;
  stats->attend_s = laps.lap();
  if (call.plan->audit > 0) {
    call.plan->stages().audit(call, stats->audits);
    stats->audit_s = laps.lap();
  }
  count_blocks(call, *stats);
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
  check_reference(plan, {o, space});
  if (lse == nullptr) return;
  const Extent l = rows_extent("lse", plan, lse);
  for (const Extent& other : {q, k, v, o, space}) check_apart(l, other);
  check_reference(plan, {l});
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
  p.device = SALE_HOST;
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
  return {w.total, w.bits_at, w.scratch_at - w.bits_at, w.total - w.scratch_at};
}
const char* sale_plan_backend(const sale_plan* plan) { return plan == nullptr ? "" : plan->plan->backend->name; }
int64_t sale_plan_q_block(const sale_plan* plan) { return plan == nullptr ? 0 : plan->plan->stages().q_block; }
const char* sale_plan_explain(const sale_plan* plan) { return plan == nullptr ? "" : plan->plan->explanation.c_str(); }

// ---- blocks --------------------------------------------------------------------------------------------------------

namespace {

struct Row {
  uint64_t* words;  // in the memory of the plan's device
  int64_t visible;
};

Row block_row(const sale_blocks& blocks, int32_t sequence, int32_t head, int64_t tile) {
  const Plan& plan = *blocks.plan;
  require(sequence >= 0 && sequence < plan.problem.batch, "sequence: ", sequence, " is not in 0 .. ",
          plan.problem.batch - 1);
  require(head >= 0 && head < plan.problem.q_heads, "head: ", head, " is not in 0 .. ", plan.problem.q_heads - 1);
  const Sequence& s = plan.sequences[static_cast<size_t>(sequence)];
  require(tile >= 0 && tile < s.tiles, "tile: ", tile, " is not in 0 .. ", s.tiles - 1);
  return {blocks.words() + s.bits_at + head * s.words + s.row_word[static_cast<size_t>(tile)], s.visible_blocks(tile)};
}

// A row is handled in pieces of this many words.
constexpr int64_t row_piece = 512;

// One head's rows of one sequence, everything kept.
std::vector<uint64_t> all_kept(const Sequence& s) {
  std::vector<uint64_t> words(static_cast<size_t>(s.words));
  for (int64_t t = 0; t < s.tiles; ++t) {
    uint64_t* row = words.data() + s.row_word[static_cast<size_t>(t)];
    for (int64_t i = 0; i < s.visible_blocks(t); ++i) row[i / 64] |= uint64_t{1} << (i % 64);
  }
  return words;
}

bool same_blocks(const Plan& a, const Plan& b) {
  return a.stages().q_block == b.stages().q_block && a.problem.device == b.problem.device &&
         a.bits_words == b.bits_words && a.problem.q_heads == b.problem.q_heads && a.problem.batch == b.problem.batch &&
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
    const Plan& p = *made->plan;
    const Space& space = p.stages().space;
    made->bits = space.allocate(static_cast<size_t>(p.bits_words) * 8, p.problem.device);
    for (const Sequence& s : p.sequences) {
      const std::vector<uint64_t> words = all_kept(s);
      for (int32_t h = 0; h < p.problem.q_heads; ++h)
        space.write(made->words() + s.bits_at + h * s.words, words.data(), words.size() * 8, p.problem.device);
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
    const Plan& plan = *blocks->plan;
    uint64_t piece[row_piece];
    int64_t n = 0;
    for (int64_t i = 0; i < row.visible; ++i) {
      if (i % (64 * row_piece) == 0)
        plan.stages().space.read(piece, row.words + i / 64,
                                 static_cast<size_t>(std::min(row_piece, ceil_div(row.visible - i, 64))) * 8,
                                 plan.problem.device);
      if ((piece[i / 64 % row_piece] >> (i % 64) & 1) == 0) continue;
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
    const Plan& plan = *blocks->plan;
    const int64_t words = ceil_div(row.visible, 64);
    int64_t next = 0;
    for (int64_t at = 0; at < words; at += row_piece) {
      uint64_t piece[row_piece] = {};
      const int64_t n = std::min(row_piece, words - at);
      for (; next < count && kept[next] < (at + n) * 64; ++next)
        piece[kept[next] / 64 - at] |= uint64_t{1} << (kept[next] % 64);
      plan.stages().space.write(row.words + at, piece, static_cast<size_t>(n) * 8, plan.problem.device);
    }
  });
}

// ---- run -----------------------------------------------------------------------------------------------------------

sale_status sale_run(const sale_plan* plan, const void* q, const void* k, const void* v, void* out, float* lse,
                     const sale_index* const* indexes, void* workspace, size_t workspace_bytes, sale_stats* stats,
                     void* stream) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    const Plan& p = *plan->plan;
    const Extent eq = extent("q", q, p.problem.q, p, p.problem.q_heads, false);
    const Extent ek = extent("k", k, p.problem.k, p, p.problem.kv_heads, true);
    const Extent ev = extent("v", v, p.problem.v, p, p.problem.kv_heads, true);
    check_workspace(p, workspace, workspace_bytes);
    check_outputs(p, eq, ek, ev, out, lse, workspace);
    check_indexes(p, indexes);
    check_stream(p, stream);
    check_audits(p, stats);
    const Call call = make_call(p, q, k, v, out, lse, indexes, workspace, nullptr, stream);
    Laps laps(call, stats);
    if (!p.with_index) p.stages().index(call);
    const double index_s = laps.lap();
    p.stages().select(call);
    const double select_s = laps.lap();
    p.stages().attend(call);
    report(call, laps, stats);
    if (stats != nullptr) stats->index_s = index_s, stats->select_s = select_s;
  });
}

sale_status sale_select(const sale_plan* plan, const void* q, const void* k, const sale_index* const* indexes,
                        sale_blocks* blocks, void* workspace, size_t workspace_bytes, sale_stats* stats, void* stream) {
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
    check_reference(p, {space});
    check_indexes(p, indexes);
    check_stream(p, stream);
    const Call call = make_call(p, q, k, nullptr, nullptr, nullptr, indexes, workspace, blocks, stream);
    Laps laps(call, stats);
    if (!p.with_index) p.stages().index(call);
    const double index_s = laps.lap();
    p.stages().select(call);
    if (stats == nullptr) return;
    const double select_s = laps.lap();
    count_blocks(call, *stats);
    stats->index_s = index_s;
    stats->select_s = select_s;
    stats->attend_s = 0;
  });
}

sale_status sale_attend(const sale_plan* plan, const void* q, const void* k, const void* v, const sale_blocks* blocks,
                        void* out, float* lse, void* workspace, size_t workspace_bytes, sale_stats* stats,
                        void* stream) {
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
    check_stream(p, stream);
    check_audits(p, stats);
    const Call call = make_call(p, q, k, v, out, lse, nullptr, workspace, blocks, stream);
    Laps laps(call, stats);
    p.stages().attend(call);
    report(call, laps, stats);
    if (stats != nullptr) stats->index_s = stats->select_s = 0;
  });
}

// ---- backends ------------------------------------------------------------------------------------------------------

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
    check_problem(*problem);
    reason_text = backend(i).why_not(*problem, *options);
  });
  return status == SALE_OK ? reason_text.c_str() : sale_last_error();
}
const char* sale_machine(void) {
  static const std::string text = describe(machine());
  return text.c_str();
}
