// The C ABI of steps and calls: pointers are checked here, everything else in check.cpp.
#include <algorithm>
#include <chrono>
#include <utility>

#include "core/checked.hpp"
#include "core/format.hpp"
#include "core/objects.hpp"
#include "core/sized.hpp"

using namespace sale;

namespace {

// ---- what a call's pointers must be --------------------------------------------------------------------------------

struct Extent {
  const char* name;
  uintptr_t begin, end;
};

void check_apart(const Extent& written, const Extent& other) {
  require(written.end <= other.begin || other.end <= written.begin, written.name, ": overlaps ", other.name);
}

Extent extent(const char* name, const void* base, const sale_strides& s, const Plan& plan, int64_t heads, bool keys) {
  const sale_problem& p = plan.problem;
  // How far a page table reaches cannot be seen from here: one page of paged keys is known to be used.
  const bool paged = keys && p.page_size != 0;
  int64_t tokens = 1;
  for (const Sequence& q : plan.sequences)
    tokens = std::max(tokens, keys ? q.k_start + q.sight.k_len : q.q_start + q.sight.q_len);
  if (paged) tokens = p.page_size;
  const int64_t span = (paged ? 0 : p.batch - 1) * s.batch + (heads - 1) * s.head + (tokens - 1) * s.token + p.head_dim;
  const size_t size = static_cast<size_t>(keys ? kv_bytes(p) : element_bytes(p.dtype));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(base);
  require(base != nullptr, name, ": null");
  require(begin % size == 0, name, ": not aligned to its elements of ", size, " bytes");
  const uintptr_t bytes = static_cast<uintptr_t>(span) * size;
  require(begin <= UINTPTR_MAX - bytes, name, ": reaches beyond the address space");
  plan.stages().space.check(name, base, p.device);
  return {name, begin, begin + bytes};
}

// Scales of an e4m3 tensor's heads.
void check_scales(const char* name, const Plan& plan, const float* at, std::initializer_list<Extent> written) {
  if (at == nullptr) return;
  const sale_problem& p = plan.problem;
  require(p.kv_dtype == SALE_KV_E4M3, name, ": given, but kv_dtype is not SALE_KV_E4M3; pass NULL");
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
  require(begin % 4 == 0, name, ": not aligned to its elements of 4 bytes");
  plan.stages().space.check(name, at, p.device);
  for (const Extent& w : written) check_apart(w, {name, begin, begin + static_cast<uintptr_t>(p.kv_heads) * 4});
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

Extent check_workspace(const Plan& plan, size_t total, const void* workspace, size_t bytes) {
  require(workspace != nullptr, "workspace: null");
  const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace);
  require(begin % 64 == 0, "workspace: not aligned to 64 bytes");
  plan.stages().space.check("workspace", workspace, plan.problem.device);
  require(bytes >= total, "workspace_bytes: ", bytes, " is below the ", total, " this plan needs");
  return {"workspace", begin, begin + total};
}

void check_stream(const Plan& plan, const void* stream) {
  require(plan.problem.device != SALE_HOST || stream == nullptr,
          "stream: given, but the tensors are in host memory; pass NULL");
}

void check_indexes(const Plan& plan, const Layer& layer, const sale_index* const* indexes) {
  if (plan.index != SALE_INDEX_GIVEN) {
    require(indexes == nullptr, "indexes: given, but the plan was made without; pass NULL");
    return;
  }
  require(indexes != nullptr, "indexes: null, but the plan was made with SALE_INDEX_GIVEN");
  for (int32_t b = 0; b < plan.problem.batch; ++b) {
    const Sequence& s = plan.sequences[static_cast<size_t>(b)];
    const sale_index* i = indexes[b];
    require(i != nullptr, "indexes[", b, "]: null");
    const Layer& made = *i->layer;
    require(made.kv_heads == layer.kv_heads && made.head_dim == layer.head_dim, "indexes[", b, "]: made for ",
            made.kv_heads, " kv heads of ", made.head_dim, ", the estimator has ", layer.kv_heads, " of ",
            layer.head_dim);
    require(made.form == layer.form, "indexes[", b, "]: made for ", format_name(made.form.format), " rank ",
            made.form.rank, ", the estimator scans ", format_name(layer.form.format), " rank ", layer.form.rank);
    require(made.backend->stages == layer.backend->stages && made.device == layer.device, "indexes[", b,
            "]: made for backend ", made.backend->name, " and device ", made.device, ", the estimator is of ",
            layer.backend->name, " and device ", layer.device);
    require(made.coding == layer.coding, "indexes[", b,
            "]: made with another k_projection, smoothing or key_scales than the estimator's");
    require(i->length == s.sight.k_len || s.dense, "indexes[", b, "]: holds ", i->length, " keys, the sequence has ",
            s.sight.k_len);
  }
}

// The pages of codes a call brings; none where it needs none. They may stand between those of the keys.
sale_index_pages check_pages(const Plan& plan, const Layer& layer, const sale_index_pages* given,
                             std::initializer_list<Extent> keys, std::initializer_list<Extent> others) {
  if (!plan.paged_index() || (layer.dense && given == nullptr)) {
    require(given == nullptr, "index_pages: given, but the plan was not made with SALE_INDEX_PAGES; pass NULL");
    return {};
  }
  require(given != nullptr, "index_pages: null, but the plan was made with SALE_INDEX_PAGES");
  const sale_index_pages pages = sized(given, "index_pages");
  if (layer.dense) return {};
  require(layer.codes_by_key(), "estimator: gives no smoothing (or key_scales), which index_pages need");
  const sale_problem& p = plan.problem;
  const int64_t least =
      static_cast<int64_t>(layer.stages().index_map(p.kv_heads, p.head_dim, plan.form, p.page_size).page());
  require(pages.memory != nullptr, "index_pages.memory: null");
  require(reinterpret_cast<uintptr_t>(pages.memory) % 64 == 0, "index_pages.memory: not aligned to 64 bytes");
  require(pages.page_bytes >= least && pages.page_bytes % 64 == 0, "index_pages.page_bytes: ", pages.page_bytes,
          " is not a multiple of 64 from ", least, " on, what a page of ", p.page_size, " keys takes");
  require(pages.pages >= 1 && pages.pages <= INT32_MAX, "index_pages.pages: ", pages.pages, " is not in 1 .. 2^31 - 1");
  // As much as an address space holds; what overlaps nothing within it is at least not beyond it.
  constexpr int64_t most = int64_t{1} << 48;
  const Checked bytes = Checked(pages.page_bytes) * Checked(pages.pages);
  require(bytes.ok() && bytes.value() <= most, "index_pages.page_bytes: ", pages.page_bytes, " for ", pages.pages,
          " pages, more than 2^48 bytes");
  const auto begin = reinterpret_cast<uintptr_t>(pages.memory);
  for (const Extent& other : keys)
    check_apart({"index_pages.memory", begin, begin + static_cast<uintptr_t>(least)}, other);
  for (const Extent& other : others)
    check_apart({"index_pages.memory", begin, begin + static_cast<uintptr_t>(bytes.value())}, other);
  layer.stages().space.check("index_pages.memory", pages.memory, p.device);
  if (pages.coded == nullptr) {
    require(pages.made == nullptr, "index_pages.made: given without coded");
    return pages;
  }
  const auto coded = reinterpret_cast<uintptr_t>(pages.coded);
  require(coded % 4 == 0, "index_pages.coded: not aligned to its elements of 4 bytes");
  const Extent numbers{"index_pages.coded", coded, coded + static_cast<uintptr_t>(pages.pages) * 4};
  check_apart(numbers, {"index_pages.memory", begin, begin + static_cast<uintptr_t>(bytes.value())});
  for (const auto* extents : {&keys, &others})
    for (const Extent& other : *extents) check_apart(numbers, other);
  layer.stages().space.check("index_pages.coded", pages.coded, p.device);
  if (pages.made == nullptr) return pages;
  require(reinterpret_cast<uintptr_t>(pages.made) % 8 == 0, "index_pages.made: not aligned to its 8 bytes");
  layer.stages().space.check("index_pages.made", pages.made, p.device);
  return pages;
}

// Nothing is audited for nobody.
void check_audits(const Plan& plan, const sale_stats* stats) {
  require(plan.audit == 0 || (stats != nullptr && stats->audits != nullptr),
          "stats: without audits, but the plan's options ask to audit ", plan.audit, " rows per head");
}

enum class Use { run, select, attend };

// The plan for this layer's form.
const Plan& plan_of(const sale_plan& plan, const Layer& layer) {
  const Plan& first = plan.first();
  require(layer.backend == first.backend && layer.device == first.problem.device, "estimator: of backend ",
          layer.backend->name, " and device ", layer.device, ", the plan's are of ", first.backend->name,
          " and device ", first.problem.device);
  require(layer.q_heads == first.problem.q_heads && layer.kv_heads == first.problem.kv_heads &&
              layer.head_dim == first.problem.head_dim && layer.dtype == first.problem.dtype,
          "estimator: of other heads or another dtype than the plan's");
  require(layer.stages().workers(layer) == first.threads, "estimator: has ", layer.stages().workers(layer),
          " threads, the plan's have ", first.threads);
  require(first.problem.part != 0 || layer.sink >= 32, "estimator: its sink is 0, which is for parts of a sequence");
  for (const auto& each : plan.forms)
    if (each->serves(layer)) return *each;
  fail(SALE_INVALID_ARGUMENT, "estimator: scans ", format_name(layer.form.format), " rank ", layer.form.rank,
       layer.dense ? ", every head dense" : "", ", sink ", layer.sink, ", local ", layer.local,
       "; the plan was made for none like it");
}

// Checks everything, touches nothing.
Call make_call(const sale_plan* plan, const sale_estimator* estimator, const sale_call& c, Use use) {
  require(plan != nullptr, "plan: null");
  require(estimator != nullptr, "estimator: null");
  const Layer& layer = *estimator->layer;
  const Plan& p = plan_of(*plan, layer);
  const sale_problem& x = p.problem;
  const auto strides = [](const sale_strides* given, const sale_strides& otherwise) {
    return given != nullptr ? *given : otherwise;
  };
  Call call{};
  call.plan = &p;
  call.layer = &layer;
  call.strides = {strides(c.q_strides, x.q), strides(c.k_strides, x.k), strides(c.v_strides, x.v),
                  strides(c.out_strides, x.out)};
  if (c.q_strides != nullptr || c.k_strides != nullptr || c.v_strides != nullptr || c.out_strides != nullptr)
    check_strides(x, p.sequences, call.strides);
  const Extent q = extent("q", c.q, call.strides.q, p, x.q_heads, false);
  const Extent k = extent("k", c.k, call.strides.k, p, x.kv_heads, true);
  const Extent space = check_workspace(p, plan->total, c.workspace, c.workspace_bytes);
  check_apart(space, q);
  check_apart(space, k);
  Extent written[2] = {space, space}, values = k;  // out and lse, and v, where they are
  if (use != Use::select) {
    const Extent v = extent("v", c.v, call.strides.v, p, x.kv_heads, true);
    written[0] = extent("out", c.out, call.strides.out, p, x.q_heads, false);
    for (const Extent& other : {q, k, v, space}) check_apart(written[0], other);
    check_apart(space, v);
    values = v;
    if (c.lse != nullptr) {
      written[1] = rows_extent("lse", p, c.lse);
      for (const Extent& other : {q, k, v, space, written[0]}) check_apart(written[1], other);
    }
    call.v = c.v;
    call.out = c.out;
    call.lse = c.lse;
  }
  if (x.part != 0) {
    require(c.reference != nullptr, "reference: null, but the problem's keys are a part of a sequence's");
    const Extent reference = rows_extent("reference", p, c.reference);
    for (const Extent& w : {space, written[0], written[1]}) check_apart(w, reference);
  } else {
    require(c.reference == nullptr, "reference: given, but the problem's keys are whole sequences (part is 0)");
  }
  if (x.page_size != 0) {
    require(c.page_table != nullptr, "page_table: null, but page_size is ", x.page_size);
    p.stages().space.check("page_table", c.page_table, x.device);
  } else {
    require(c.page_table == nullptr, "page_table: given, but page_size is 0");
  }
  if (use == Use::attend) {
    require(c.indexes == nullptr || p.index == SALE_INDEX_GIVEN,
            "indexes: given, but the plan was made without; pass NULL");
    require(c.index_pages == nullptr || p.paged_index(),
            "index_pages: given, but the plan was not made with SALE_INDEX_PAGES; pass NULL");
  } else {
    check_indexes(p, layer, c.indexes);
    call.pages = check_pages(p, layer, c.index_pages, {k, values}, {q, space, written[0], written[1]});
  }
  check_scales("k_scales", p, c.k_scales, {space, written[0], written[1]});
  check_scales("v_scales", p, c.v_scales, {space, written[0], written[1]});
  check_stream(p, c.stream);
  require(c.prepared == 0 || c.prepared == 1, "prepared: ", c.prepared, " is neither 0 nor 1");
  require(c.reserved == 0, "reserved: ", c.reserved, " is not 0");
  call.q = c.q;
  call.k = c.k;
  call.page_table = c.page_table;
  call.k_scales = c.k_scales;
  call.v_scales = c.v_scales;
  call.reference = c.reference;
  call.indexes = p.index == SALE_INDEX_GIVEN && use != Use::attend ? c.indexes : nullptr;
  call.workspace = static_cast<char*>(c.workspace);
  call.bits = reinterpret_cast<uint64_t*>(call.workspace + p.workspace.bits_at);
  call.stream = c.stream;
  call.prepared = c.prepared != 0;
  return call;
}

bool same_blocks(const Plan& a, const Plan& b) {
  return a.stages().q_block == b.stages().q_block && a.problem.device == b.problem.device &&
         a.bits_words == b.bits_words && a.problem.q_heads == b.problem.q_heads && a.problem.batch == b.problem.batch &&
         std::equal(a.sequences.begin(), a.sequences.end(), b.sequences.begin(),
                    [](const Sequence& x, const Sequence& y) {
                      return x.sight.q_len == y.sight.q_len && x.sight.k_len == y.sight.k_len &&
                             x.sight.q_offset == y.sight.q_offset && x.sight.window == y.sight.window &&
                             x.sight.sink == y.sight.sink;
                    });
}

void use_blocks(Call& call, const sale_blocks* blocks) {
  require(blocks != nullptr, "blocks: null");
  require(same_blocks(*blocks->plan, *call.plan), "blocks: made for another problem than the plan's");
  call.bits = blocks->words();
}

// ---- what a call reports -------------------------------------------------------------------------------------------

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

}  // namespace

// ---- plan ----------------------------------------------------------------------------------------

sale_status sale_plan_create(const sale_problem* problem, const sale_options* options,
                             const sale_estimator* const* estimators, int64_t n_estimators, sale_plan** plan) {
  return guarded([&] {
    const sale_problem p = sized(problem, "problem");
    const sale_options o = sized(options, "options");
    require(estimators != nullptr, "estimators: null");
    require(n_estimators >= 1, "n_estimators: ", n_estimators, " is below 1");
    require(plan != nullptr, "plan: null");
    auto made = std::make_unique<sale_plan>();
    made->total = 0;
    for (int64_t i = 0; i < n_estimators; ++i) {
      require(estimators[i] != nullptr, "estimators[", i, "]: null");
      const Layer& layer = *estimators[i]->layer;
      const auto like = [&](const auto& each) { return each->serves(layer); };
      if (i == 0 || std::none_of(made->forms.begin(), made->forms.end(), like)) {
        made->forms.push_back(make_plan(p, o, layer));
        made->total = std::max(made->total, made->forms.back()->workspace.total);
      } else {
        check_runs(p, o, layer);
      }
      const Plan& first = made->first();
      require(layer.backend == first.backend && layer.stages().workers(layer) == first.threads, "estimators[", i,
              "]: of backend ", layer.backend->name, " with ", layer.stages().workers(layer),
              " threads, the first is of ", first.backend->name, " with ", first.threads);
    }
    made->explanation = explain(made->first(), *estimators[0]->layer);
    *plan = made.release();
  });
}

void sale_plan_destroy(sale_plan* plan) { delete plan; }

sale_status sale_plan_workspace(const sale_plan* plan, sale_workspace* workspace) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    const auto& largest = **std::max_element(plan->forms.begin(), plan->forms.end(), [](const auto& a, const auto& b) {
      return a->workspace.total < b->workspace.total;
    });
    const WorkspaceMap& w = largest.workspace;
    fill(workspace, "workspace",
         sale_workspace{0, w.total, w.index_at, w.bits_at - w.index_at, w.scratch_at - w.bits_at,
                        w.total - w.scratch_at});
  });
}
const char* sale_plan_backend(const sale_plan* plan) { return plan == nullptr ? "" : plan->first().backend->name; }
int64_t sale_plan_q_block(const sale_plan* plan) { return plan == nullptr ? 0 : plan->first().stages().q_block; }
const char* sale_plan_explain(const sale_plan* plan) { return plan == nullptr ? "" : plan->explanation.c_str(); }

sale_status sale_plan_prepare(const sale_plan* plan, void* workspace, size_t workspace_bytes, void* stream) {
  return guarded([&] {
    require(plan != nullptr, "plan: null");
    const Plan& p = plan->first();
    check_workspace(p, plan->total, workspace, workspace_bytes);
    check_stream(p, stream);
    p.stages().prepare(p, static_cast<char*>(workspace), stream);
  });
}

// ---- calls ---------------------------------------------------------------------------------------------------------

namespace {

// A call from beginning to end; what is not wanted of select and attend is left out.
void carry_out(const sale_plan* plan, const sale_estimator* estimator, const sale_call* from, Use use) {
  const sale_call c = sized(from, "call");
  sale_stats stats{};
  if (c.stats != nullptr) stats = sized(c.stats, "stats");
  sale_stats* const wanted = c.stats != nullptr ? &stats : nullptr;
  Call call = make_call(plan, estimator, c, use);
  const Stages& stages = call.plan->stages();
  if (use != Use::run) use_blocks(call, c.blocks);
  if (use != Use::select) check_audits(*call.plan, wanted);
  stages.check(call);

  stages.begin(call);
  Laps laps(call, wanted);
  stats.index_s = stats.select_s = stats.attend_s = 0;
  if (use != Use::attend) {
    if (call.plan->index != SALE_INDEX_GIVEN) stages.index(call);
    stats.index_s = laps.lap();
    stages.select(call);
    stats.select_s = laps.lap();
  }
  if (use != Use::select) {
    stages.attend(call);
    stats.attend_s = laps.lap();
  }
  if (wanted == nullptr) return;
  if (use != Use::select && call.plan->audit > 0) {
    stages.audit(call, stats.audits);
    stats.audit_s = laps.lap();
  }
  count_blocks(call, stats);
  fill(c.stats, "stats", stats);
}

}  // namespace

sale_status sale_run(const sale_plan* plan, const sale_estimator* estimator, const sale_call* call) {
  return guarded([&] { carry_out(plan, estimator, call, Use::run); });
}
sale_status sale_select(const sale_plan* plan, const sale_estimator* estimator, const sale_call* call) {
  return guarded([&] { carry_out(plan, estimator, call, Use::select); });
}
sale_status sale_attend(const sale_plan* plan, const sale_estimator* estimator, const sale_call* call) {
  return guarded([&] { carry_out(plan, estimator, call, Use::attend); });
}
