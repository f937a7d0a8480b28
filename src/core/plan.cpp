#include "core/plan.hpp"

#include <algorithm>
#include <cmath>

#include "core/status.hpp"

namespace sale {

std::vector<float> check_thresholds(const sale_options& o, int32_t q_heads);
void check_regions(const sale_problem& p, const sale_options& o);

namespace {

void lay_out_bits(Plan& plan) {
  constexpr int64_t most = int64_t{1} << 24;  // keeps a plan's own memory within some hundred MB
  Checked pairs = 0;
  for (Sequence& s : plan.sequences) {
    s.q_block = plan.stages().q_block;
    s.tiles = ceil_div(s.q_len, s.q_block);
    pairs = pairs + Checked(s.tiles) * Checked(plan.problem.kv_heads);
  }
  require(pairs.ok() && pairs.value() <= most, "problem: ", pairs.value(),
          " pairs of a query tile and a kv head are more than the ", most,
          " one plan can hold; split the batch or the heads");
  int64_t at = 0;
  for (Sequence& s : plan.sequences) {
    s.row_word.resize(static_cast<size_t>(s.tiles) + 1);
    for (int64_t t = 0; t < s.tiles; ++t)
      s.row_word[static_cast<size_t>(t) + 1] = s.row_word[static_cast<size_t>(t)] + ceil_div(s.visible_blocks(t), 64);
    s.words = s.row_word.back();
    s.bits_at = at;
    at += s.words * plan.problem.q_heads;
  }
  plan.bits_words = at;
}

// A pseudo-key stands for whole blocks. Of a part of a sequence's keys the last one may be dropped too.
void check_stand_ins(const Plan& plan) {
  if (!plan.compensate || plan.problem.reference == nullptr) return;
  for (const Sequence& s : plan.sequences) {
    const int64_t last_tile = (s.tiles - 1) * s.q_block + s.q_offset;
    require(s.k_len % k_block == 0 || last_tile + 1 - plan.local < round_up(s.k_len, k_block),
            "compensate: with a reference, rows beyond ", s.k_len,
            " keys: their last block may be dropped and holds fewer than ", k_block, "; cut parts at multiples of it");
  }
}

void choose_audited(Plan& plan, const sale_options& o) {
  Checked rows = 0;
  for (const Sequence& s : plan.sequences) rows = rows + std::min<int64_t>(o.audit, s.q_len);
  require(rows.value() <= int64_t{1} << 24, "audit: ", o.audit, " rows of ", plan.problem.batch,
          " sequences are more than the 2^24 one plan can hold");
  for (Sequence& s : plan.sequences) s.audited = audit_rows(s.q_len, o.audit, o.audit_seed);
}

void lay_out_workspace(Plan& plan, const sale_options& o) {
  const sale_problem& p = plan.problem;
  const Stages& stages = plan.stages();
  Areas areas;
  for (Sequence& s : plan.sequences) {
    s.index_at = areas.end();
    if (!plan.with_index && !s.dense)
      areas.add(static_cast<int64_t>(stages.index_map(p.kv_heads, p.head_dim, plan.estimator, s.k_len).total));
  }
  plan.workspace.bits_at = areas.add(Checked(plan.bits_words) * Checked(8));
  plan.workspace.scratch_at = areas.end();
  stages.plan(plan, o, areas);
  plan.workspace.total = areas.end();
}

std::string explain(const Plan& plan, const std::string& notes) {
  const WorkspaceMap& w = plan.workspace;
  int dense_heads = 0;
  for (float t : plan.thresholds) dense_heads += t == 0;
  int64_t dense_sequences = 0;
  for (const Sequence& s : plan.sequences) dense_sequences += s.dense;
  std::string e = text("backend    ", plan.backend->name, " (", plan.backend->summary, ")\n");
  if (!notes.empty()) e += "not used   " + notes + "\n";
  e += text("blocks     ", plan.stages().q_block, " queries x ", k_block, " keys; sink ", plan.sink, ", local ",
            plan.local, " keys always kept\n");
  e += text("estimator  ", format_name(plan.estimator.format), ", ", plan.estimator.rank, " of ", plan.problem.head_dim,
            " coordinates", plan.estimator.projected ? " of a projection" : "", "\n");
  e += text("dense      ", dense_heads, " of ", plan.problem.q_heads, " query heads by threshold 0, ", dense_sequences,
            " of ", plan.problem.batch, " sequences by length\n");
  if (plan.audit > 0) e += text("audit      ", plan.audit, " rows of every sequence and query head\n");
  e += plan.stages().explain(plan);
  e += text("workspace  ", w.total, " bytes: key index ", w.bits_at, ", selection ", w.scratch_at - w.bits_at,
            ", scratch ", w.total - w.scratch_at, "\n");
  return e;
}

}  // namespace

const char* format_name(sale_format f) { return f == SALE_INT4 ? "INT4" : f == SALE_INT8 ? "INT8" : "FP8"; }

size_t Areas::add(Checked bytes) {
  const size_t start = at_;
  require((Checked(static_cast<int64_t>(at_)) + bytes + Checked(area_alignment)).ok(),
          "problem: the workspace would exceed 2^62 bytes");
  at_ += static_cast<size_t>(round_up(bytes.value(), area_alignment));
  return start;
}

std::vector<int64_t> audit_rows(int64_t q_len, int64_t count, uint64_t seed) {
  count = std::min(count, q_len);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i) {
    // splitmix64, its i-th number.
    uint64_t x = seed + 0x9e3779b97f4a7c15u * (static_cast<uint64_t>(i) + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    const int64_t begin = i * q_len / count, end = (i + 1) * q_len / count;
    rows.push_back(begin + static_cast<int64_t>(x % static_cast<uint64_t>(end - begin)));
  }
  return rows;
}

std::unique_ptr<Plan> make_plan(const sale_problem& p, const sale_options& o, bool with_index) {
  auto plan = std::make_unique<Plan>();
  plan->sequences = check_problem(p);
  plan->estimator = check_estimator(o, p.kv_heads, p.head_dim);
  plan->thresholds = check_thresholds(o, p.q_heads);
  check_regions(p, o);
  plan->problem = p;
  plan->group = p.q_heads / p.kv_heads;
  plan->scale = p.scale != 0 ? p.scale : 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  plan->sink = o.sink;
  plan->local = o.local;
  plan->compute = o.compute;
  plan->compensate = o.compensate != 0;
  plan->audit = o.audit;
  plan->with_index = with_index;
  const bool all_dense = std::all_of(plan->thresholds.begin(), plan->thresholds.end(), [](float t) { return t == 0; });
  for (Sequence& s : plan->sequences) s.dense = all_dense || s.k_len < o.dense_below;
  std::string notes;
  plan->backend = &choose_backend(p, o, notes);
  choose_audited(*plan, o);
  lay_out_bits(*plan);
  check_stand_ins(*plan);
  lay_out_workspace(*plan, o);
  plan->explanation = explain(*plan, notes);
  return plan;
}

}  // namespace sale
