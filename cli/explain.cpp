// sale explain: what would happen to a problem line, without doing it.
#include "arguments.hpp"
#include "case/instance.hpp"
#include "command.hpp"
#include "lab/problem_lines.hpp"
#include "lab/text.hpp"

namespace sale::cli {

namespace {

// The case's plan without its tensors: those of a million tokens need not fit in memory to be explained.
CasePlan plan_of(const sale_case::Case& c) {
  sale_problem p = sale_problem_init(c.q_heads, c.kv_heads, c.head_dim, c.dtype, c.q_len, c.k_len);
  p.batch = c.batch;
  const auto array = [&](const std::vector<int64_t>& list) { return list.empty() ? nullptr : list.data(); };
  p.q_offset = c.q_offset, p.scale = c.scale;
  p.q_lens = array(c.q_lens), p.k_lens = array(c.k_lens), p.q_offsets = array(c.q_offsets);
  sale_layer l = sale_layer_init(c.q_heads, c.kv_heads, c.head_dim, c.dtype);
  l.thresholds = c.taus.data(), l.n_thresholds = static_cast<int64_t>(c.taus.size());
  l.format = c.format, l.rank = c.rank, l.sink = c.sink, l.local = c.local, l.threads = c.threads;
  sale_options o = sale_options_init();
  o.dense_below = c.dense_below, o.compute = c.compute, o.compensate = c.compensate ? 1 : 0;
  std::vector<float> projections;
  if (c.rank > 0 && c.rank < c.head_dim && c.head_dim <= 256 && c.kv_heads > 0 && c.kv_heads <= 4096) {
    projections.resize(static_cast<size_t>(int64_t{c.kv_heads} * c.head_dim * c.rank));
    l.q_projection = l.k_projection = projections.data();
  }
  if (on_device(c.backend)) p.device = device_ordinal;
  return CasePlan(p, l, o, c.backend);
}

}  // namespace

void add_explain(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "explain", "Say which backend would run a problem line, why the others would not, and what it needs");
  auto words = std::make_shared<std::vector<std::string>>();
  auto file = std::make_shared<std::string>();
  auto json = std::make_shared<std::string>();
  add_line_options(*command, *words, *file);
  command->add_option("--json", *json, "write the result there");
  command->callback([=, &action] {
    action = [=] {
      Json all = json_head("explain");
      all["problems"] = Json::array();
      for (const std::string& line : lines_of(*words, *file)) {
        const sale_case::Case c = sale_case::parse(line);
        const CasePlan plan = plan_of(c);
        fmt::print("problem    {}\n{}\n", sale_case::print(c), sale_plan_explain(plan.get()));
        const sale_workspace w = plan.needs();
        all["problems"].push_back({{"problem", sale_case::print(c)},
                                   {"backend", sale_plan_backend(plan.get())},
                                   {"workspace_bytes", w.total},
                                   {"table_bytes", w.tables},
                                   {"key_index_bytes", w.key_index},
                                   {"selection_bytes", w.selection},
                                   {"scratch_bytes", w.scratch},
                                   {"explanation", sale_plan_explain(plan.get())}});
      }
      if (!json->empty()) write_json(*json, all);
      return int{good};
    };
  });
}

}  // namespace sale::cli
