// sale check: problem lines against the oracle in double precision. Block lists must be the definition's to the bit;
// attention over them must be within the bounds of docs/numerics.md.
#include <algorithm>
#include <cmath>

#include "arguments.hpp"
#include "lab/problem_lines.hpp"
#include "lab/text.hpp"
#include "oracle/oracle.hpp"

namespace sale::cli {
namespace {

using sale_case::Instance;
using sale_oracle::BlockLists;

// The element that is furthest from the oracle, in shares of the limit.
struct Worst {
  double share = 0;
  std::string where = "none";
};

struct Verdict {
  int64_t lists = 0, lists_differ = 0;  // rows of blocks
  std::string first_difference;
  int64_t kept = 0, visible = 0;
  Worst out, lse;
  bool good() const { return lists_differ == 0 && out.share <= 1 && lse.share <= 1; }
};

sale_oracle::Head head_of(const Instance& in, int64_t b, int64_t h) {
  const sale_case::Sequence& s = in.sequences[static_cast<size_t>(b)];
  const int64_t kv = h / (in.c.q_heads / in.c.kv_heads);
  sale_oracle::Head head{in.c.head_dim,    s.q_len,          s.k_len,    s.q_offset, in.q.head(b, h),
                         in.k.head(b, kv), in.v.head(b, kv), in.scale(), {}};
  head.window = in.c.window;
  head.kept_sink = in.c.window_sink ? in.c.sink : 0;
  return head;
}

sale_oracle::Estimator estimator_of(const Instance& in, int64_t h) {
  sale_oracle::Estimator e{in.c.format, in.c.rank == 0 ? in.c.head_dim : in.c.rank, nullptr, nullptr};
  if (in.q_projection.empty()) return e;
  const int64_t at = h / (in.c.q_heads / in.c.kv_heads) * in.c.head_dim * e.rank;
  e.q_projection = in.q_projection.data() + at, e.k_projection = in.k_projection.data() + at;
  return e;
}

BlockLists lists_of(const sale_blocks* blocks, int64_t b, int64_t h, int64_t tiles, Verdict& verdict) {
  BlockLists lists;
  for (int64_t t = 0; t < tiles; ++t) {
    BlockList::Row row = row_of(blocks, {static_cast<int32_t>(b), static_cast<int32_t>(h), t});
    verdict.kept += static_cast<int64_t>(row.kept.size()), verdict.visible += row.visible;
    lists.push_back(std::move(row.kept));
  }
  return lists;
}

// Tiles of 128 rows: what of FP8's estimates is within rounding of the threshold may be either.
void compare_wide_lists(const Instance& in, int64_t b, int64_t h, const sale_oracle::Head& head, const BlockLists& got,
                        Verdict& v) {
  const bool undefined = in.c.format == SALE_FP8 && in.c.data == sale_case::Data::huge;
  const auto want = sale_oracle::select_wide(head, estimator_of(in, h), {in.c.sink, in.c.local}, in.tau(h), in.dense(b),
                                             undefined, in.c.dtype);
  for (size_t t = 0; t < want.size(); ++t) {
    ++v.lists;
    if (want[t].allows(got[t])) continue;
    if (v.lists_differ++ == 0) v.first_difference = fmt::format("sequence {} head {} tile {}", b, h, t);
  }
}

// The list of a tile of 128 rows for both its halves.
BlockLists halves(const BlockLists& wide, int64_t tiles) {
  BlockLists lists;
  for (int64_t t = 0; t < tiles; ++t) lists.push_back(wide[static_cast<size_t>(t / 2)]);
  return lists;
}

void compare_lists(const Instance& in, int64_t b, int64_t h, const sale_oracle::Head& head, const BlockLists& got,
                   Verdict& v) {
  const auto mean = sale_oracle::mean(head.k, head.k_len, head.d);
  const auto want =
      sale_oracle::select(head, mean, estimator_of(in, h), {in.c.sink, in.c.local}, in.tau(h), in.dense(b));
  for (size_t t = 0; t < want.size(); ++t) {
    ++v.lists;
    if (got[t] == want[t].kept) continue;
    if (v.lists_differ++ == 0) v.first_difference = fmt::format("sequence {} head {} tile {}", b, h, t);
  }
}

// Twice the tensor type's rounding; for f32 twice what a plain f32 implementation has.
double relative_limit(const Instance& in, const sale_oracle::Head& head, const BlockLists& lists,
                      const sale_oracle::Attention& exact) {
  if (in.c.dtype != SALE_F32) return 2 * sale_case::epsilon(in.c.dtype);
  const auto plain = sale_oracle::attend_plainly(head, lists);
  double worst = 0;
  for (size_t i = 0; i < plain.size(); ++i)
    if (const double e = std::fabs(static_cast<double>(plain[i]) - exact.out[i]) / exact.weighed[i]; std::isfinite(e))
      worst = std::max(worst, e);
  return 2 * worst + 0x1p-21;
}

void note(Worst& worst, double error, double limit, bool alike, const std::string& where) {
  const double share = !alike ? HUGE_VAL : limit > 0 ? error / limit : error > 0 ? HUGE_VAL : 0;
  if (share > worst.share || worst.where == "none") worst = {share, where};
}

// tile: rows of the plan's tiles, by which pseudo-keys are chosen.
void compare_output(const Instance& in, int64_t b, int64_t h, const sale_oracle::Head& head, const BlockLists& lists,
                    int64_t tile, bool device, Verdict& v) {
  // bf16 products, and tensor cores, whose sums are cut off (docs/numerics.md, 6).
  const bool coarse = in.c.dtype == SALE_BF16 || device;
  const sale_oracle::Form form{in.c.compute, in.c.compensate, in.c.local, in.c.dtype, tile};
  const auto exact = sale_oracle::attend(head, lists, form);
  const bool plain = in.c.compute != SALE_COMPUTE_INT8 && !in.c.compensate;
  const auto unquantized = plain ? exact : sale_oracle::attend(head, lists, {});
  const double relative = relative_limit(in, head, lists, unquantized),
               smallest = in.c.dtype == SALE_F16 ? 0x1p-24 : 0x1p-110;
  // A NaN or infinity in V may reach other rows of the tiles that keep its block (docs/numerics.md, 6).
  const bool tainted = std::any_of(head.v.begin(), head.v.end(), [](float x) { return !std::isfinite(x); });
  for (int64_t i = 0; i < head.q_len; ++i) {
    const double reach = exact.reach[static_cast<size_t>(i)];
    if (!(reach / static_cast<double>(head.scale) <= 1e36)) continue;  // scores beyond f32
    const double slack = reach > 64 ? reach * 0x1p-21 : 0;
    for (int64_t c = 0; c < head.d; ++c) {
      const auto at = static_cast<size_t>(i * head.d + c);
      const double got = static_cast<double>(
                       sale_case::load(in.out.row(b, h, i) + c * sale_case::bytes_of(in.c.dtype), in.c.dtype)),
                   want = exact.out[at];
      if (tainted && !std::isfinite(got)) continue;
      const bool alike = std::isfinite(got) == std::isfinite(want);
      if (alike && !std::isfinite(want)) continue;
      const double limit = (relative + 2 * slack) * exact.weighed[at] + exact.doubt[at] + smallest;
      if (!alike || std::fabs(got - want) > v.out.share * limit)
        note(v.out, std::fabs(got - want), limit, alike,
             fmt::format("sequence {} head {} row {} coordinate {}: {:.9g}, exactly {:.9g}", b, h, i, c, got, want));
    }
    const double got = static_cast<double>(in.lse_row(b, h)[i]), want = exact.lse[static_cast<size_t>(i)];
    const bool alike = std::isfinite(got) == std::isfinite(want);
    if (alike && !std::isfinite(want)) continue;
    note(v.lse, std::fabs(got - want), (coarse ? 1e-4 : 1e-5) + 1e-6 * std::fabs(want) + slack, alike,
         fmt::format("lse of sequence {} head {} row {}: {:.9g}, exactly {:.9g}", b, h, i, got, want));
  }
}

Verdict check_on(Instance& in, const std::string& backend) {
  PlacedCase at(in, backend);
  CasePlan plan(at.problem(), in.layer, in.options, backend);
  const Blocks blocks = blocks_for(plan);
  plan.select(at.call(), blocks.get());
  at.clear_outputs();
  plan.attend(at.call(), blocks.get());
  at.fetch();
  Verdict verdict;
  const int64_t rows = sale_plan_q_block(plan.get());
  const bool wide = rows != sale_oracle::tile_rows;
  for (int64_t b = 0; b < in.c.batch; ++b)
    for (int64_t h = 0; h < in.c.q_heads; ++h) {
      const auto head = head_of(in, b, h);
      const BlockLists lists = lists_of(blocks.get(), b, h, (head.q_len + rows - 1) / rows, verdict);
      (wide ? compare_wide_lists : compare_lists)(in, b, h, head, lists, verdict);
      compare_output(in, b, h, head, wide ? halves(lists, head.tiles()) : lists, rows, at.device(), verdict);
    }
  return verdict;
}

void show_verdict(const std::string& backend, const Verdict& v) {
  fmt::print("{:<10} {}  density {:.1f} %, lists {}, out {:.1f} % of its limit, lse {:.1f} %\n", backend,
             v.good() ? "good  " : "FAILED",
             v.visible > 0 ? 100.0 * static_cast<double>(v.kept) / static_cast<double>(v.visible) : 100.0,
             v.lists_differ == 0
                 ? "as defined"
                 : fmt::format("DIFFER in {} of {} (first: {})", v.lists_differ, v.lists, v.first_difference),
             100 * v.out.share, 100 * v.lse.share);
  fmt::print("{:<10} worst: {}\n", "", v.out.where);
  if (v.lse.share > 1) fmt::print("{:<10} {}\n", "", v.lse.where);
}

struct Arguments {
  std::vector<std::string> words;
  std::string file, backend, json;
};

int run(const Arguments& a) {
  Json all = json_head("check");
  all["rows"] = Json::array(), all["not_run"] = Json::array();
  int64_t runs = 0, failed = 0;
  for (const std::string& line : lines_of(a.words, a.file)) {
    Instance in(sale_case::parse(line));
    const BackendChoice choice = backends_for(in, a.backend);
    const std::string problem = sale_case::print(in.c);
    fmt::print("{}\n", problem);
    for (const std::string& backend : choice.usable) {
      const Verdict v = check_on(in, backend);
      show_verdict(backend, v);
      std::fflush(stdout);
      ++runs, failed += v.good() ? 0 : 1;
      const auto share = [](double s) { return std::isfinite(s) ? Json(s) : Json(nullptr); };
      all["rows"].push_back({{"problem", problem},
                             {"backend", backend},
                             {"good", v.good()},
                             {"lists_differ", v.lists_differ},
                             {"out_share_of_limit", share(v.out.share)},
                             {"lse_share_of_limit", share(v.lse.share)},
                             {"worst", v.out.where}});
    }
    for (const auto& [name, why] : choice.refused) {
      fmt::print("{:<10} not run: {}\n", name, why);
      all["not_run"].push_back({{"problem", problem}, {"backend", name}, {"why_not", why}});
    }
  }
  fmt::print("{} runs, {} failed\n", runs, failed);
  if (!a.json.empty()) write_json(a.json, all);
  return failed == 0 ? good : check_failed;
}

}  // namespace

void add_check(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "check", "Compare problem lines with the oracle in double precision, on every usable backend");
  auto a = std::make_shared<Arguments>();
  add_line_options(*command, a->words, a->file);
  command->add_option("--backend", a->backend, "only this one");
  command->add_option("--json", a->json, "write the result there");
  command->callback([a, &action] { action = [a] { return run(*a); }; });
}

}  // namespace sale::cli
