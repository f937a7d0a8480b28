#include "core/plan.hpp"

#include <algorithm>
#include <cmath>

#include "core/format.hpp"
#include "core/status.hpp"

namespace sale {
namespace {

void lay_out_bits(Plan& plan) {
  constexpr int64_t most = int64_t{1} << 24;  // keeps a plan's own memory within some hundred MB
  Checked pairs = 0;
  for (Sequence& s : plan.sequences) {
    s.q_block = plan.stages().q_block;
    s.tiles = s.sight.tiles(s.q_block);
    pairs = pairs + Checked(s.tiles) * Checked(plan.problem.kv_heads);
  }
  require(pairs.ok() && pairs.value() <= most, "problem: ", pairs.value(),
          " pairs of a query tile and a kv head are more than the ", most,
          " one plan can hold; split the batch or the heads");
  int64_t at = 0;
  for (Sequence& s : plan.sequences) {
    s.row_word.resize(static_cast<size_t>(s.tiles) + 1);
    for (int64_t t = 0; t < s.tiles; ++t)
      s.row_word[static_cast<size_t>(t) + 1] = s.row_word[static_cast<size_t>(t)] + s.sight.row_words(t, s.q_block);
    s.words = s.row_word.back();
    s.bits_at = at;
    at += s.words * plan.problem.q_heads;
  }
  plan.bits_words = at;
}

// A pseudo-key stands for whole blocks. Of a part of a sequence's keys the last one may be dropped too.
void check_stand_ins(const Plan& plan) {
  if (!plan.compensate || plan.problem.part == 0) return;
  for (const Sequence& s : plan.sequences) {
    const int64_t keys = s.sight.k_len, last_tile = (s.tiles - 1) * s.q_block + s.sight.q_offset;
    require(keys % k_block == 0 || last_tile + 1 - plan.local < round_up(keys, k_block),
            "compensate: of a part, rows beyond ", keys, " keys: their last block may be dropped and holds fewer than ",
            k_block, "; cut parts at multiples of it");
  }
}

void choose_audited(Plan& plan) {
  Checked rows = 0;
  for (Sequence& s : plan.sequences) {
    s.audited = std::min<int64_t>(plan.audit, s.sight.q_len);
    rows = rows + s.audited;
  }
  require(rows.value() <= int64_t{1} << 24, "audit: ", plan.audit, " rows of ", plan.problem.batch,
          " sequences are more than the 2^24 one plan can hold");
}

void lay_out_workspace(Plan& plan) {
  const sale_problem& p = plan.problem;
  const Stages& stages = plan.stages();
  Areas areas;
  stages.tables(plan, areas);
  plan.workspace.index_at = areas.end();
  for (Sequence& s : plan.sequences) {
    s.index_at = areas.end();
    if (s.indexed)
      areas.add(static_cast<int64_t>(stages.index_map(p.kv_heads, p.head_dim, plan.form, s.sight.k_len).total));
  }
  plan.workspace.bits_at = areas.add(Checked(plan.bits_words) * Checked(8));
  plan.workspace.scratch_at = areas.end();
  stages.plan(plan, areas);
  plan.workspace.total = areas.end();
}

}  // namespace

size_t Areas::add(Checked bytes) {
  const size_t start = at_;
  require((Checked(static_cast<int64_t>(at_)) + bytes + Checked(area_alignment)).ok(),
          "problem: the workspace would exceed 2^62 bytes");
  at_ += static_cast<size_t>(round_up(bytes.value(), area_alignment));
  return start;
}

std::string explain(const Plan& plan, const Layer& layer) {
  const WorkspaceMap& w = plan.workspace;
  const auto dense_heads = std::count(layer.thresholds.begin(), layer.thresholds.end(), 0.0f);
  const auto dense_sequences =
      std::count_if(plan.sequences.begin(), plan.sequences.end(), [](const Sequence& s) { return s.dense; });
  std::string e = text("backend    ", plan.backend->name, " (", plan.backend->summary, ")\n");
  if (!layer.not_used.empty()) e += "not used   " + layer.not_used + "\n";
  e += text("blocks     ", plan.stages().q_block, " queries x ", k_block, " keys; sink ", layer.sink, ", local ",
            layer.local, " keys always kept\n");
  e += text("estimator  ", format_name(plan.form.format), ", ", plan.form.rank, " of ", plan.problem.head_dim,
            " coordinates", plan.form.projected ? " of a projection" : "",
            layer.smoothing.empty() ? "" : ", smoothed by the layer's vectors",
            layer.key_scales.empty() ? "" : " and scales", "\n");
  e += text("dense      ", dense_heads, " of ", plan.problem.q_heads, " query heads by threshold 0, ", dense_sequences,
            " of ", plan.problem.batch, " sequences by length\n");
  if (plan.problem.window != 0)
    e += text("window     ", plan.problem.window, " keys", plan.problem.window_sink != 0 ? " and the sink" : "", "\n");
  if (plan.audit > 0) e += text("audit      ", plan.audit, " rows of every sequence and query head\n");
  e += plan.stages().explain(plan, layer);
  e += text("workspace  ", w.total, " bytes: tables ", w.index_at, ", key index ", w.bits_at - w.index_at,
            ", selection ", w.scratch_at - w.bits_at, ", scratch ", w.total - w.scratch_at, "\n");
  return e;
}

void check_runs(const sale_problem& p, const sale_options& o, const Layer& layer) {
  require(p.q_heads == layer.q_heads && p.kv_heads == layer.kv_heads && p.head_dim == layer.head_dim,
          "estimators: made for ", layer.q_heads, " query and ", layer.kv_heads, " kv heads of ", layer.head_dim,
          ", the problem has ", p.q_heads, " and ", p.kv_heads, " of ", p.head_dim);
  require(p.dtype == layer.dtype && p.device == layer.device, "estimators: made for dtype ",
          static_cast<int>(layer.dtype), " on device ", layer.device, ", the problem has ", static_cast<int>(p.dtype),
          " on ", p.device);
  require(p.part != 0 || layer.sink >= 32, "sink: ", layer.sink,
          " is not a multiple of 32 in 32 .. 256; 0 is for parts of a sequence");
  if (o.with_index == SALE_INDEX_PAGES && !layer.dense) {
    require(p.page_size != 0 && p.page_size % k_block == 0, "page_size: ", p.page_size,
            " is not a multiple of 32, as pages of an index are");
    require(!layer.smoothing.empty(), "smoothing: not given by the layer, but with_index is SALE_INDEX_PAGES");
    require(layer.form.format != SALE_FP8 || !layer.key_scales.empty(),
            "key_scales: not given by the layer, but with_index is SALE_INDEX_PAGES");
  }
  if (const std::string why = layer.backend->why_not(p, o); !why.empty())
    fail(SALE_UNSUPPORTED, "backend: ", layer.backend->name, " cannot run this problem: ", why);
  // Until device_test has passed on one: wrong numbers would be worse than none.
  if (p.window != 0 && layer.backend->on_device && !layer.named)
    fail(
        SALE_UNSUPPORTED, "window: ", layer.backend->name,
        " has not been run with windows on a card yet (emulated and compiled only); name the backend to use it anyway");
}

std::unique_ptr<Plan> make_plan(const sale_problem& p, const sale_options& o, const Layer& layer) {
  auto plan = std::make_unique<Plan>();
  plan->sequences = check_problem(p);
  check_options(o);
  check_runs(p, o, layer);
  plan->problem = p;
  plan->problem.q_lens = plan->problem.k_lens = plan->problem.q_offsets = nullptr;
  plan->problem.q_starts = plan->problem.k_starts = plan->problem.k_coded = nullptr;
  plan->group = p.q_heads / p.kv_heads;
  plan->scale = p.scale != 0 ? p.scale : 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  plan->form = layer.form;
  plan->dense = layer.dense;
  plan->sink = layer.sink;
  plan->local = layer.local;
  plan->compute = o.compute;
  plan->compensate = o.compensate != 0;
  plan->audit = o.audit;
  plan->audit_seed = o.audit_seed;
  plan->index = static_cast<sale_index_source>(o.with_index);
  const Backend& b = *layer.backend;
  const int64_t pays = layer.form.projected && layer.form.rank <= 32 ? b.dense_below_projected : b.dense_below;
  const int64_t below = o.dense_below == SALE_AUTO ? pays : o.dense_below;
  for (Sequence& s : plan->sequences) {
    if (p.window_sink != 0 && s.sight.windowed()) s.sight.sink = layer.sink;
    s.dense = layer.dense || s.sight.k_len < below;
    // Pages are kept up for those who will be long enough one day.
    s.indexed = plan->paged_index() ? !layer.dense : !s.dense && plan->index == SALE_INDEX_OF_CALL;
  }
  plan->backend = layer.backend;
  plan->threads = layer.stages().workers(layer);
  choose_audited(*plan);
  lay_out_bits(*plan);
  check_stand_ins(*plan);
  lay_out_workspace(*plan);
  return plan;
}

}  // namespace sale
