#include "harness.hpp"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <mutex>
#include <thread>

namespace sale_test {

void expect(bool condition, const std::string& what) {
  if (!condition) throw Failed(what);
}

void ok(sale_status status, const char* call) {
  if (status != SALE_OK) throw Failed(std::string(call) + ": " + sale_status_name(status) + ": " + sale_last_error());
}

Plan make_plan(const sale_problem& p, const sale_options& o, bool with_index) {
  sale_plan* plan = nullptr;
  ok(sale_plan_create(&p, &o, with_index, &plan), "sale_plan_create");
  return Plan(plan);
}

Index make_index(const sale_problem& p, const sale_options& o, int64_t capacity) {
  sale_index* index = nullptr;
  ok(sale_index_create(&p, &o, capacity, &index), "sale_index_create");
  return Index(index);
}

Blocks make_blocks(const Plan& plan) {
  sale_blocks* blocks = nullptr;
  ok(sale_blocks_create(plan.get(), &blocks), "sale_blocks_create");
  return Blocks(blocks);
}

sale_case::Memory make_workspace(const Plan& plan) {
  const sale_workspace w = sale_plan_workspace(plan.get());
  expect(w.total == w.key_index + w.selection + w.scratch, "workspace: total is not the sum of its parts");
  return sale_case::Memory(w.total, 0xcb, 64);
}

sale_options with_backend(sale_options o, const std::string& backend) {
  o.backend = backend.c_str();
  return o;
}

const std::vector<std::string>& usable_backends() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> n;
    for (int32_t i = 0; i < sale_backend_count(); ++i)
      if (*sale_backend_why_not(i) == '\0') n.push_back(sale_backend_name(i));
    return n;
  }();
  return names;
}

std::string unusable_backends() {
  std::string s;
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string why = sale_backend_why_not(i);
    if (!why.empty()) s += "backend " + std::string(sale_backend_name(i)) + " not tested: " + why + "\n";
  }
  return s;
}

std::vector<std::string> backends_for(const Instance& in) {
  std::vector<std::string> names;
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string name = sale_backend_name(i);
    if (!in.c.backend.empty() && in.c.backend != name) continue;
    if (*sale_backend_why_not(i) == '\0' && *sale_backend_why_not_problem(i, &in.problem, &in.options) == '\0')
      names.push_back(name);
  }
  return names;
}

Lists read_lists(const Instance& in, const sale_blocks* blocks) {
  Lists lists(in.sequences.size());
  for (size_t b = 0; b < lists.size(); ++b)
    for (int32_t h = 0; h < in.c.q_heads; ++h) {
      lists[b].emplace_back();
      const int64_t tiles = (in.sequences[b].q_len + SALE_Q_BLOCK - 1) / SALE_Q_BLOCK;
      for (int64_t t = 0; t < tiles; ++t) {
        int64_t kept = 0, visible = 0, again = 0;
        const int32_t sequence = static_cast<int32_t>(b);
        ok(sale_blocks_row(blocks, sequence, h, t, nullptr, 0, &kept, &visible), "sale_blocks_row");
        std::vector<int32_t> row(static_cast<size_t>(kept));
        ok(sale_blocks_row(blocks, sequence, h, t, row.data(), kept, &again, &visible), "sale_blocks_row");
        expect(again == kept, "sale_blocks_row: the count changed");
        lists[b].back().push_back(std::move(row));
      }
    }
  return lists;
}

namespace {

std::vector<const sale_index*> pointers(const std::vector<Index>& indexes) {
  std::vector<const sale_index*> p;
  for (const Index& i : indexes) p.push_back(i.get());
  return p;
}

std::vector<std::byte> copy(const sale_case::Memory& m) { return {m.begin(), m.begin() + m.size()}; }

}  // namespace

Result run(Instance& in, const std::string& backend) {
  const sale_options options = with_backend(in.options, backend);
  Result r;
  for (size_t b = 0; b < in.sequences.size(); ++b) {
    r.indexes.push_back(make_index(in.problem, options, in.sequences[b].k_len));
    ok(sale_index_update(r.indexes.back().get(), in.keys(static_cast<int64_t>(b)), in.problem.k, in.sequences[b].k_len,
                         nullptr, nullptr),
       "sale_index_update");
  }
  const auto given = pointers(r.indexes);
  const auto* const indexes = given.data();
  const bool with = in.c.with_index;
  float* const lse = reinterpret_cast<float*>(in.lse->begin());
  {
    const Plan plan = make_plan(in.problem, options, with);
    expect(backend == sale_plan_backend(plan.get()), "sale_plan_backend: not the one asked for");
    const sale_case::Memory workspace = make_workspace(plan);
    in.clear_outputs();
    sale_stats stats{};
    std::vector<sale_head_stats> heads(static_cast<size_t>(in.c.batch) * static_cast<size_t>(in.c.q_heads));
    stats.heads = heads.data();
    ok(sale_run(plan.get(), in.q.data(), in.k.data(), in.v.data(), in.out.data(), lse, with ? indexes : nullptr,
                workspace.begin(), workspace.size(), &stats, nullptr),
       "sale_run");
    expect(in.outputs_intact(), "sale_run wrote outside out's or lse's rows");
    r.out = copy(*in.out.memory);
    r.lse = copy(*in.lse);
    r.kept = stats.kept_blocks;
    r.visible = stats.visible_blocks;
    int64_t kept = 0;
    for (const sale_head_stats& h : heads) kept += h.kept_blocks;
    expect(kept == r.kept, "stats: the heads' kept blocks do not add up");
  }
  const Plan plan = make_plan(in.problem, options, !with);
  const Blocks blocks = make_blocks(plan);
  const sale_case::Memory workspace = make_workspace(plan);
  sale_stats stats{};
  ok(sale_select(plan.get(), in.q.data(), in.k.data(), with ? nullptr : indexes, blocks.get(), workspace.begin(),
                 workspace.size(), &stats, nullptr),
     "sale_select");
  expect(stats.kept_blocks == r.kept && stats.visible_blocks == r.visible,
         "sale_select keeps other blocks than sale_run");
  r.lists = read_lists(in, blocks.get());
  in.clear_outputs();
  ok(sale_attend(plan.get(), in.q.data(), in.k.data(), in.v.data(), blocks.get(), in.out.data(), lse, workspace.begin(),
                 workspace.size(), nullptr, nullptr),
     "sale_attend");
  expect(in.outputs_intact(), "sale_attend wrote outside out's or lse's rows");
  expect(r.out == copy(*in.out.memory) && r.lse == copy(*in.lse), "sale_run differs from sale_select and sale_attend");
  return r;
}

sale_oracle::Head head_of(const Instance& in, int64_t b, int64_t h) {
  const sale_case::Sequence& s = in.sequences[static_cast<size_t>(b)];
  const int64_t kv = h / (in.c.q_heads / in.c.kv_heads);
  return {in.c.head_dim,    s.q_len,          s.k_len,    s.q_offset, in.q.head(b, h),
          in.k.head(b, kv), in.v.head(b, kv), in.scale(), {}};
}

sale_oracle::Form form_of(const Instance& in, int64_t tile) {
  return {in.c.compute, in.c.compensate, in.c.local, in.c.dtype, tile};
}

sale_oracle::Estimator estimator_of(const Instance& in, int64_t h) {
  sale_oracle::Estimator e;
  e.format = in.c.format;
  e.rank = in.c.rank == 0 ? in.c.head_dim : in.c.rank;
  if (in.q_projection.empty()) return e;
  const int64_t kv = h / (in.c.q_heads / in.c.kv_heads);
  e.q_projection = in.q_projection.data() + kv * in.c.head_dim * e.rank;
  e.k_projection = in.k_projection.data() + kv * in.c.head_dim * e.rank;
  return e;
}

void Tally::add(const Tally& t) {
  cases += t.cases;
  backend_runs += t.backend_runs;
  candidates += t.candidates;
  kept += t.kept;
  visible += t.visible;
  exempted += t.exempted;
  worst = std::max(worst, t.worst);
}

namespace {

thread_local char current[1024] = "";

// A read beyond a guard page ends here: say which problem did it before dying.
void say_and_die(int signal) {
  const char* const parts[] = {"\nsignal while running: ", flags().program, " --case \"", current, "\"\n"};
  for (const char* p : parts)
    if (write(2, p, std::strlen(p)) < 0) break;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

}  // namespace

void set_current(const std::string& line) {
  std::strncpy(current, line.c_str(), sizeof current - 1);
  static const bool installed = [] {
    for (int s : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) std::signal(s, say_and_die);
    return true;
  }();
  (void)installed;
}

std::string in_parallel(int64_t n, const std::function<Case(int64_t)>& make,
                        const std::function<Tally(const Case&)>& body, Tally& total) {
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::string failures;
  int count = 0;
  const auto work = [&] {
    while (true) {
      const int64_t i = next++;
      if (i >= n || count >= 10) return;
      const Case c = make(i);
      const std::string line = sale_case::print(c);
      set_current(line);
      try {
        const Tally t = body(c);
        const std::lock_guard lock(mutex);
        total.add(t);
      } catch (const std::exception& e) {
        const std::lock_guard lock(mutex);
        ++count;
        failures += std::string(e.what()) + "\n    " + flags().program + " --case \"" + line + "\"\n";
      }
    }
  };
  std::vector<std::thread> threads;
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  for (unsigned t = 1; t < cores; ++t) threads.emplace_back(work);
  work();
  for (std::thread& t : threads) t.join();
  return failures;
}

}  // namespace sale_test
