// sale explain: what would happen to a problem line, without doing it.
#include "case/instance.hpp"
#include "command.hpp"
#include "problem_lines.hpp"
#include "text.hpp"

namespace sale::cli {

PlacedCase::PlacedCase(sale_case::Instance& in, const std::string& backend)
    : in_(in), device_(on_device(backend)), fused_(in.c.layout == sale_case::Layout::fused), problem_(in.problem) {
  if (!device_) return;
  problem_.device = device_ordinal;
  const auto copy = [](DeviceMemory& to, const sale_case::Memory& from) {
    to.need(from.size());
    to.put(0, from.begin(), from.size());
  };
  copy(q_, *in.q.memory), copy(out_, *in.out.memory), copy(lse_, *in.lse);
  if (!fused_) copy(k_, *in.k.memory), copy(v_, *in.v.memory);
}
void PlacedCase::clear_outputs() {
  in_.clear_outputs();
  if (device_) out_.put(0, in_.out.memory->begin(), out_.size()), lse_.put(0, in_.lse->begin(), lse_.size());
}
void PlacedCase::fetch() {
  if (device_) out_.get(0, in_.out.memory->begin(), out_.size()), lse_.get(0, in_.lse->begin(), lse_.size());
}

sale_call PlacedCase::call() const {
  sale_call c = in_.call();
  c.q = q(), c.k = k(), c.v = v(), c.out = out(), c.lse = lse();
  return c;
}

CasePlan::CasePlan(const sale_problem& problem, sale_layer layer, sale_options options, const std::string& backend,
                   bool dense)
    : workspace_(problem.device != SALE_HOST) {
  layer.device = problem.device;
  if (!backend.empty()) layer.backend = backend.c_str();
  if (dense) options.dense_below = INT64_MAX;
  sale_estimator* estimator = nullptr;
  sale::check(sale_estimator_create(&layer, &estimator));
  estimator_.reset(estimator);
  const sale_estimator* const one = estimator;
  sale_plan* raw = nullptr;
  sale::check(sale_plan_create(&problem, &options, &one, 1, &raw));
  handle_.reset(raw);
}

sale_workspace CasePlan::needs() const {
  sale_workspace w{};
  w.struct_size = sizeof w;
  sale::check(sale_plan_workspace(get(), &w));
  return w;
}

void CasePlan::with_workspace(sale_call& call) {
  workspace_.need(needs().total);
  const Bytes bytes = workspace_.bytes();
  call.workspace = bytes.data, call.workspace_bytes = bytes.size;
}
void CasePlan::run(sale_call call) {
  with_workspace(call);
  sale::check(sale_run(get(), estimator_.get(), &call));
}
void CasePlan::select(sale_call call, sale_blocks* to) {
  with_workspace(call);
  call.blocks = to;
  sale::check(sale_select(get(), estimator_.get(), &call));
}
void CasePlan::attend(sale_call call, sale_blocks* from) {
  with_workspace(call);
  call.blocks = from;
  sale::check(sale_attend(get(), estimator_.get(), &call));
}

Blocks blocks_for(const CasePlan& plan) {
  sale_blocks* raw = nullptr;
  sale::check(sale_blocks_create(plan.get(), &raw));
  return Blocks(raw);
}

BlockList::Row row_of(const sale_blocks* blocks, sale_tile at) {
  sale_row_counts counts{};
  sale::check(sale_blocks_row(blocks, at, nullptr, 0, &counts));
  BlockList::Row row{std::vector<int32_t>(static_cast<size_t>(counts.kept)), counts.visible};
  sale::check(sale_blocks_row(blocks, at, row.kept.data(), counts.kept, &counts));
  return row;
}

std::string joined(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& w : words) line += (line.empty() ? "" : " ") + w;
  return line;
}

std::vector<std::string> lines_of(const std::vector<std::string>& words, const std::string& file) {
  if (words.empty() == file.empty())
    refuse("problem: give a problem line or --file with lines of them; one of the two");
  return file.empty() ? std::vector<std::string>{joined(words)} : read_lines(file);
}

void add_line_options(CLI::App& command, std::vector<std::string>& words, std::string& file) {
  command.add_option("problem", words, "problem line: words key=value, see below");
  command.add_option("--file", file, "file of problem lines; # starts a comment");
  command.footer("Problem lines are made of these words:\n" + sale_case::grammar() + "\n");
}

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
