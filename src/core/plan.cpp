#include "core/plan.hpp"

#include <algorithm>
#include <cmath>

#include "core/checked.hpp"
#include "core/status.hpp"

namespace sale {

std::vector<Sequence> check_problem(const sale_problem& p);
std::vector<float> check_thresholds(const sale_options& o, int32_t q_heads);
void check_regions(const sale_options& o);

namespace {

constexpr int64_t alignment = 64;

size_t aligned(int64_t bytes) { return static_cast<size_t>(round_up(bytes, alignment)); }

void lay_out_bits(Plan& plan) {
  constexpr int64_t most = int64_t{1} << 24;  // keeps a plan's own memory within some hundred MB
  Checked pairs = 0;
  for (Sequence& s : plan.sequences) {
    s.tiles = ceil_div(s.q_len, q_block);
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

// Neighbouring tiles share the packing of keys and values, so an item should hold about eight (tile, head) pairs; but
// there should be enough items to keep every thread busy. Results do not depend on it.
int64_t tiles_per_item(const Plan& plan) {
  int64_t tiles = 0;
  for (const Sequence& s : plan.sequences) tiles += s.tiles;
  const int64_t shared = std::max<int64_t>(1, 8 / plan.group);
  const int64_t busy = tiles * plan.problem.kv_heads / (4 * plan.pool->threads());
  return std::clamp<int64_t>(busy, 1, shared);
}

// Longest first, so that the last items to be taken are short; ties in a fixed order.
void make_items(Plan& plan) {
  const int64_t step = plan.tiles_per_item;
  for (int32_t b = 0; b < plan.problem.batch; ++b) {
    const Sequence& s = plan.sequences[static_cast<size_t>(b)];
    for (int64_t t = 0; t < s.tiles; t += step)
      for (int32_t h = 0; h < plan.problem.kv_heads; ++h) plan.items.push_back({b, h, t, std::min(t + step, s.tiles)});
  }
  const auto cost = [&](const Item& i) {
    const Sequence& s = plan.sequences[static_cast<size_t>(i.sequence)];
    return (i.tile_end - i.tile_begin) * s.visible_blocks(i.tile_end - 1);
  };
  std::stable_sort(plan.items.begin(), plan.items.end(),
                   [&](const Item& a, const Item& b) { return cost(a) > cost(b); });
}

void lay_out_workspace(Plan& plan) {
  WorkspaceMap& w = plan.workspace;
  const sale_problem& p = plan.problem;
  size_t at = 0;
  const auto area = [&](Checked bytes) {
    const size_t start = at;
    const Checked end = Checked(static_cast<int64_t>(at)) + bytes + Checked(alignment);
    require(end.ok(), "problem: the workspace would exceed 2^62 bytes");
    at += aligned(bytes.value());
    return start;
  };
  for (Sequence& s : plan.sequences) {
    const bool own = !plan.with_index && !s.dense;
    s.index_at = area(own ? static_cast<int64_t>(index_map(p.kv_heads, p.head_dim, plan.estimator, s.k_len).total) : 0);
  }
  const bool int4 = plan.estimator.format == SALE_INT4, int8_products = plan.compute == SALE_COMPUTE_INT8;
  w.bits_at = area(Checked(plan.bits_words) * Checked(8));
  w.q_means_at = area(int4 ? int64_t{p.batch} * p.q_heads * p.head_dim * 4 : 0);
  w.k_means_at = area(int8_products ? int64_t{p.batch} * p.kv_heads * p.head_dim * 4 : 0);
  w.bias_at = at;
  for (Sequence& s : plan.sequences) {
    s.bias_at = at;
    if (int4 && !s.dense) area(p.q_heads * round_up(s.k_len, k_block) * 4);
  }
  w.scratch_at = at;
  const Shape shape = plan.shape();
  w.scratch_per_thread =
      aligned(static_cast<int64_t>(std::max(plan.kernels->select_scratch(shape, plan.tiles_per_item),
                                            plan.kernels->attend_scratch(shape, plan.tiles_per_item))));
  area(static_cast<int64_t>(w.scratch_per_thread * static_cast<size_t>(plan.pool->threads())));
  w.total = at;
}

std::string explain(const Plan& plan, const std::string& notes) {
  const WorkspaceMap& w = plan.workspace;
  int dense_heads = 0;
  for (float t : plan.thresholds) dense_heads += t == 0;
  int64_t dense_sequences = 0;
  for (const Sequence& s : plan.sequences) dense_sequences += s.dense;
  std::string e =
      text("backend    ", plan.backend->name, " (", plan.backend->summary, "), ", plan.pool->threads(), " threads\n");
  if (!notes.empty()) e += "not used   " + notes + "\n";
  e += text("blocks     ", q_block, " queries x ", k_block, " keys; sink ", plan.sink, ", local ", plan.local,
            " keys always kept\n");
  e += text("estimator  INT", static_cast<int>(plan.estimator.format), ", ", plan.estimator.rank, " of ",
            plan.problem.head_dim, " coordinates", plan.estimator.projected ? " of a projection" : "", "\n");
  e += text("dense      ", dense_heads, " of ", plan.problem.q_heads, " query heads by threshold 0, ", dense_sequences,
            " of ", plan.problem.batch, " sequences by length\n");
  e += text("items      ", plan.items.size(), " of up to ", plan.tiles_per_item, " query tiles x ", plan.group,
            " query heads\n");
  e += text("workspace  ", w.total, " bytes: key index ", w.bits_at, ", selection ", plan.bits_words * 8,
            ", means and biases ", w.scratch_at - w.q_means_at, ", scratch ", w.scratch_per_thread, " x ",
            plan.pool->threads(), "\n");
  return e;
}

}  // namespace

IndexMap index_map(int32_t kv_heads, int32_t head_dim, const Estimator& e, int64_t keys) {
  const int64_t blocks = ceil_div(keys, k_block);
  IndexMap m{};
  m.head_codes = aligned(blocks * k_block * e.rank);
  m.head_scales = aligned(blocks * e.groups() * 4);
  m.codes_at = 0;
  m.scales_at = m.head_codes * static_cast<size_t>(kv_heads);
  m.smoothing_at = m.scales_at + m.head_scales * static_cast<size_t>(kv_heads);
  m.total = m.smoothing_at + aligned(int64_t{kv_heads} * head_dim * 4);
  return m;
}

std::unique_ptr<Plan> make_plan(const sale_problem& p, const sale_options& o, bool with_index) {
  auto plan = std::make_unique<Plan>();
  plan->sequences = check_problem(p);
  plan->estimator = check_estimator(o, p.kv_heads, p.head_dim);
  plan->thresholds = check_thresholds(o, p.q_heads);
  check_regions(o);
  plan->problem = p;
  plan->group = p.q_heads / p.kv_heads;
  plan->scale = p.scale != 0 ? p.scale : 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  plan->sink = o.sink;
  plan->local = o.local;
  plan->compute = o.compute;
  plan->with_index = with_index;
  const bool all_dense = std::all_of(plan->thresholds.begin(), plan->thresholds.end(), [](float t) { return t == 0; });
  for (Sequence& s : plan->sequences) s.dense = all_dense || s.k_len < o.dense_below;
  std::string notes;
  plan->backend = &choose_backend(p, o, notes);
  plan->kernels = &plan->backend->kernels(machine());
  plan->pool = shared_pool(o.threads != 0 ? o.threads : machine().cpus);
  lay_out_bits(*plan);
  plan->tiles_per_item = tiles_per_item(*plan);
  make_items(*plan);
  lay_out_workspace(*plan);
  plan->explanation = explain(*plan, notes);
  return plan;
}

}  // namespace sale
