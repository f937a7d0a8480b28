#include "lab/problem_lines.hpp"

#include "lab/refuse.hpp"
#include "lab/text.hpp"

namespace sale::lab {

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

namespace {

// A problem that is wrong in itself is so in the library's words, whatever a backend would say of it.
void refuse_wrong_problem(const sale_case::Instance& in) {
  sale_layer any = in.layer;
  any.backend = nullptr;
  sale_estimator* layer = nullptr;
  sale_plan* plan = nullptr;
  sale_status status = sale_estimator_create(&any, &layer);
  if (status == SALE_OK) status = sale_plan_create(&in.problem, &in.options, &layer, 1, &plan);
  const std::string why = status == SALE_OK ? "" : sale_last_error();
  sale_plan_destroy(plan);
  sale_estimator_destroy(layer);
  if (status == SALE_INVALID_ARGUMENT) throw Error(status, why);
}

}  // namespace

BackendChoice backends_for(const sale_case::Instance& in, const std::string& forced) {
  BackendChoice choice;
  const std::string& only = forced.empty() ? in.c.backend : forced;
  bool known = only.empty();
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string name = sale_backend_name(i);
    if (!only.empty() && only != name) continue;
    known = true;
    std::string why = sale_backend_why_not(i);
    sale_problem problem = in.problem;
    sale_layer layer = in.layer;
    if (on_device(name)) problem.device = layer.device = device_ordinal;
    if (why.empty() && in.c.page_size != 0) why = "page_size: problem lines with pages run in the device tests only";
    if (why.empty()) why = sale_backend_why_not_problem(i, &problem, &layer, &in.options);
    if (why.empty())
      choice.usable.push_back(name);
    else
      choice.refused.emplace_back(name, why);
  }
  if (!known) refuse("--backend: '{}' is not a backend; see sale info", only);
  refuse_wrong_problem(in);
  if (choice.usable.empty()) {
    std::string reasons;
    for (const auto& [name, why] : choice.refused)
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", name, why);
    throw Error(SALE_UNSUPPORTED, reasons);
  }
  return choice;
}

std::string backend_for(const sale_case::Instance& in, const std::string& forced) {
  return backends_for(in, forced).usable.front();
}

}  // namespace sale::lab
