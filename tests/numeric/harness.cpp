#include "harness.hpp"

#include <unistd.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>

#include "case/random.hpp"

namespace sale_test {

using sale_case::Random;

void expect(bool condition, const std::string& what) {
  if (!condition) throw Failed(what);
}

void ok(sale_status status, const char* call) {
  if (status != SALE_OK) throw Failed(std::string(call) + ": " + sale_status_name(status) + ": " + sale_last_error());
}

Estimator make_estimator(const sale_layer& l) {
  sale_estimator* estimator = nullptr;
  ok(sale_estimator_create(&l, &estimator), "sale_estimator_create");
  return Estimator(estimator);
}

Plan make_plan(const sale_problem& p, const sale_options& o, const Estimator& e, int32_t with_index) {
  sale_options asked = o;
  asked.with_index = with_index;
  const sale_estimator* const one = e.get();
  sale_plan* plan = nullptr;
  ok(sale_plan_create(&p, &asked, &one, 1, &plan), "sale_plan_create");
  return Plan(plan);
}

Index make_index(const Estimator& e, int64_t capacity, int32_t page_size) {
  sale_index_options o{};
  o.struct_size = sizeof o;
  o.capacity = capacity;
  o.page_size = page_size;
  sale_index* index = nullptr;
  ok(sale_index_create(e.get(), &o, &index), "sale_index_create");
  return Index(index);
}

Blocks make_blocks(const Plan& plan) {
  sale_blocks* blocks = nullptr;
  ok(sale_blocks_create(plan.get(), &blocks), "sale_blocks_create");
  return Blocks(blocks);
}

sale_workspace workspace_of(const Plan& plan) {
  sale_workspace w{};
  w.struct_size = sizeof w;
  ok(sale_plan_workspace(plan.get(), &w), "sale_plan_workspace");
  expect(w.total == w.tables + w.key_index + w.selection + w.scratch, "workspace: total is not the sum of its parts");
  return w;
}

sale_case::Memory make_workspace(const Plan& plan) { return sale_case::Memory(workspace_of(plan).total, 0xcb, 64); }

sale_layer with_backend(sale_layer l, const std::string& backend) {
  l.backend = backend.c_str();
  return l;
}

Step::Step(const sale_problem& p, const sale_layer& l, const sale_options& o, int32_t with_index)
    : layer(make_estimator(l)), plan(make_plan(p, o, layer, with_index)), workspace(make_workspace(plan)) {}

void Step::run(sale_call c) const {
  c.workspace = workspace.begin(), c.workspace_bytes = workspace.size();
  ok(sale_run(plan.get(), layer.get(), &c), "sale_run");
}
void Step::select(sale_call c, const Blocks& blocks) const {
  c.workspace = workspace.begin(), c.workspace_bytes = workspace.size();
  c.blocks = blocks.get();
  ok(sale_select(plan.get(), layer.get(), &c), "sale_select");
}
void Step::attend(sale_call c, const Blocks& blocks) const {
  c.workspace = workspace.begin(), c.workspace_bytes = workspace.size();
  c.blocks = blocks.get();
  ok(sale_attend(plan.get(), layer.get(), &c), "sale_attend");
}

namespace {

sale_backend_facts facts_of(int32_t i) {
  sale_backend_facts facts{};
  facts.struct_size = sizeof facts;
  ok(sale_backend_describe(i, &facts), "sale_backend_describe");
  return facts;
}

}  // namespace

bool on_device(const std::string& backend) {
  for (int32_t i = 0; i < sale_backend_count(); ++i)
    if (backend == sale_backend_name(i)) return facts_of(i).on_device != 0;
  return false;
}

std::string last_backend() { return sale_backend_name(sale_backend_count() - 1); }

const std::vector<std::string>& usable_backends() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> n;
    for (int32_t i = 0; i < sale_backend_count(); ++i)
      if (facts_of(i).on_device == 0 && *sale_backend_why_not(i) == '\0') n.push_back(sale_backend_name(i));
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

int64_t row_bytes(const Case& c) {
  const int64_t rank = c.rank == 0 ? c.head_dim : c.rank;
  return c.format == SALE_FP4 ? rank / 2 + (rank + 31) / 32 : rank;
}
int64_t block_scales(const Case& c) { return c.format == SALE_INT4 ? 4 : 1; }

std::vector<std::string> backends_for(const Instance& in) {
  std::vector<std::string> names;
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    const std::string name = sale_backend_name(i);
    if (!in.c.backend.empty() && in.c.backend != name) continue;
    if (*sale_backend_why_not(i) == '\0' &&
        *sale_backend_why_not_problem(i, &in.problem, &in.layer, &in.options) == '\0')
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
      for (int64_t t = 0; t < tiles; ++t) lists[b].back().push_back(read_row(blocks, {static_cast<int32_t>(b), h, t}));
    }
  return lists;
}

std::vector<int32_t> read_row(const sale_blocks* blocks, sale_tile at) {
  sale_row_counts counts{}, again{};
  ok(sale_blocks_row(blocks, at, nullptr, 0, &counts), "sale_blocks_row");
  std::vector<int32_t> row(static_cast<size_t>(counts.kept));
  ok(sale_blocks_row(blocks, at, row.data(), counts.kept, &again), "sale_blocks_row");
  expect(again.kept == counts.kept && again.visible == counts.visible, "sale_blocks_row: the counts changed");
  return row;
}

void check_bulk(const Lists& lists, const sale_blocks* blocks) {
  sale_csr_counts counts{};
  ok(sale_blocks_csr(blocks, nullptr, 0, nullptr, 0, &counts), "sale_blocks_csr");
  std::vector<int64_t> starts(static_cast<size_t>(counts.rows) + 1), word_starts(starts.size());
  std::vector<int32_t> indices(static_cast<size_t>(counts.kept));
  ok(sale_blocks_csr(blocks, starts.data(), counts.rows, indices.data(), counts.kept, &counts), "sale_blocks_csr");
  uint64_t* words = nullptr;
  int64_t rows = 0;
  ok(sale_blocks_words(blocks, &words, word_starts.data(), counts.rows, &rows), "sale_blocks_words");
  expect(rows == counts.rows, "sale_blocks_words and sale_blocks_csr count other rows");
  size_t r = 0;
  for (const auto& sequence : lists)
    for (const auto& head : sequence)
      for (const std::vector<int32_t>& row : head) {
        expect(r < static_cast<size_t>(rows), "sale_blocks_csr has fewer rows than there are");
        const std::vector<int32_t> csr(indices.begin() + starts[r], indices.begin() + starts[r + 1]);
        expect(csr == row, "sale_blocks_csr: row " + std::to_string(r) + " is not sale_blocks_row's");
        std::vector<int32_t> bits;
        for (int64_t bit = 0; bit < 64 * (word_starts[r + 1] - word_starts[r]); ++bit)
          if ((words[word_starts[r] + bit / 64] >> (bit % 64) & 1) != 0) bits.push_back(static_cast<int32_t>(bit));
        expect(bits == row, "sale_blocks_words: row " + std::to_string(r) + " is not sale_blocks_row's");
        ++r;
      }
  expect(r == static_cast<size_t>(rows), "sale_blocks_csr has more rows than there are");
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
  const sale_layer layer = with_backend(in.layer, backend);
  Result r;
  {
    const Estimator estimator = make_estimator(layer);
    for (size_t b = 0; b < in.sequences.size(); ++b) {
      r.indexes.push_back(make_index(estimator, in.sequences[b].k_len));
      ok(sale_index_update(r.indexes.back().get(), in.keys(static_cast<int64_t>(b)), in.problem.k,
                           in.sequences[b].k_len, nullptr, nullptr),
         "sale_index_update");
    }
  }
  const auto given = pointers(r.indexes);
  const bool with = in.c.with_index;
  sale_call call = in.call();
  sale_stats stats{};
  stats.struct_size = sizeof stats;
  call.stats = &stats;
  {
    const Step step(in.problem, layer, in.options, with);
    expect(backend == sale_plan_backend(step.plan.get()), "sale_plan_backend: not the one asked for");
    expect(backend == sale_estimator_backend(step.layer.get()), "sale_estimator_backend: not the one asked for");
    in.clear_outputs();
    std::vector<sale_head_stats> heads(static_cast<size_t>(in.c.batch) * static_cast<size_t>(in.c.q_heads));
    stats.heads = heads.data();
    call.indexes = with ? given.data() : nullptr;
    step.run(call);
    expect(in.outputs_intact(), "sale_run wrote outside out's or lse's rows");
    r.out = copy(*in.out.memory);
    r.lse = copy(*in.lse);
    r.kept = stats.kept_blocks;
    r.visible = stats.visible_blocks;
    int64_t kept = 0;
    for (const sale_head_stats& h : heads) kept += h.kept_blocks;
    expect(kept == r.kept, "stats: the heads' kept blocks do not add up");
    stats.heads = nullptr;
  }
  const Step step(in.problem, layer, in.options, !with);
  const Blocks blocks = make_blocks(step.plan);
  call.indexes = with ? nullptr : given.data();
  step.select(call, blocks);
  expect(stats.kept_blocks == r.kept && stats.visible_blocks == r.visible,
         "sale_select keeps other blocks than sale_run");
  r.lists = read_lists(in, blocks.get());
  check_bulk(r.lists, blocks.get());
  in.clear_outputs();
  call.stats = nullptr;
  call.indexes = nullptr;
  step.attend(call, blocks);
  expect(in.outputs_intact(), "sale_attend wrote outside out's or lse's rows");
  expect(r.out == copy(*in.out.memory) && r.lse == copy(*in.lse), "sale_run differs from sale_select and sale_attend");
  return r;
}

sale_oracle::Floats smoothing_of(const Instance& in, int64_t b, int64_t kv) {
  const int64_t d = in.c.head_dim;
  if (in.layer.smoothing != nullptr) return {in.layer.smoothing + kv * d, in.layer.smoothing + (kv + 1) * d};
  return sale_oracle::mean(in.k.head(b, kv), in.sequences[static_cast<size_t>(b)].k_len, d);
}

sale_oracle::Head head_of(const Instance& in, int64_t b, int64_t h) {
  const sale_case::Sequence& s = in.sequences[static_cast<size_t>(b)];
  const int64_t kv = h / (in.c.q_heads / in.c.kv_heads);
  sale_oracle::Head head{in.c.head_dim,    s.q_len,          s.k_len,    s.q_offset, in.q.head(b, h),
                         in.k.head(b, kv), in.v.head(b, kv), in.scale(), {}};
  head.window = in.c.window;
  head.kept_sink = in.c.window_sink ? in.c.sink : 0;
  if (in.reference.empty()) return head;
  const auto first = in.reference.begin() + (b * in.c.q_heads + h) * in.longest_q();
  head.reference = {first, first + s.q_len};
  return head;
}

void give_reference(Instance& in) {
  Random random(in.c.seed + 5);
  in.reference.resize(static_cast<size_t>(in.c.batch * in.c.q_heads * in.longest_q()));
  // Thresholds up to 10, alike in a tile: else its lowest row would keep nearly everything.
  for (size_t i = 0; i < in.reference.size(); i += 64) {
    const float tau = in.tau(static_cast<int64_t>(i) / in.longest_q() % in.c.q_heads);
    const float tile = static_cast<float>(random.between(-1000, 10000)) / 1000 - (tau > 0 ? std::log(tau) : 0);
    for (size_t r = i; r < std::min(i + 64, in.reference.size()); ++r)
      in.reference[r] = tile + static_cast<float>(random.between(0, 1000)) / 1000;
  }
  if (random.one_in(4)) in.reference[in.reference.size() / 2] = -std::numeric_limits<float>::infinity();
  if (random.one_in(8)) in.reference[in.reference.size() / 3] = std::numeric_limits<float>::quiet_NaN();
  in.problem.part = 1;
}

Case make_part(Case c) {
  Random random(c.seed + 6);
  c.q_offsets.clear();
  const int64_t far = std::max(c.k_len, c.q_len) + 2 * c.local;
  c.q_offset = random.one_in(4) ? random.between(0, 300) : random.between(0, 2 * far);
  if (!random.one_in(3)) c.sink = 0;
  c.dense_below = std::min<int64_t>(c.dense_below, 100);
  if (!c.compensate) return c;
  // A pseudo-key stands for a whole block.
  c.k_len = (c.k_len + 31) / 32 * 32;
  for (int64_t& k : c.k_lens) k = (k + 31) / 32 * 32;
  return c;
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

void on_random_cases(uint64_t first_seed, int64_t n, const std::function<void(Case&)>& adjust,
                     const std::function<void(Instance&, const std::string&)>& check) {
  // Where fewer problems are wanted of the generator (sanitizers, emulators), fewer of these too.
  const int64_t some = std::clamp<int64_t>(n * flags().cases / Flags{}.cases, std::min<int64_t>(n, 6), n);
  Tally ignored;
  const std::string failures = in_parallel(
      some,
      [&](int64_t i) {
        Case c = sale_case::random_case(first_seed + static_cast<uint64_t>(i), {900, 8'000'000});
        adjust(c);
        return c;
      },
      [&](const Case& c) {
        Instance in(c);
        for (const std::string& backend : backends_for(in)) check(in, backend);
        return Tally{};
      },
      ignored);
  EXPECT_TRUE(failures.empty()) << failures;
}

std::vector<std::byte> outputs(const Instance& in) {
  std::vector<std::byte> all = copy(*in.out.memory);
  const std::vector<std::byte> lse = copy(*in.lse);
  all.insert(all.end(), lse.begin(), lse.end());
  return all;
}

void regular(Case& c) {
  if (c.data >= sale_case::Data::huge) c.data = sale_case::Data::real_like;
}

std::vector<float> give_smoothing(Instance& in) {
  Random random(in.c.seed + 9);
  std::vector<float> vectors;
  for (int64_t h = 0; h < in.c.kv_heads; ++h)
    for (float x : sale_oracle::mean(in.k.head(0, h), in.sequences[0].k_len, in.c.head_dim))
      vectors.push_back(x + 0.1f * random.normal());
  in.layer.smoothing = vectors.data();
  return vectors;
}

}  // namespace sale_test
