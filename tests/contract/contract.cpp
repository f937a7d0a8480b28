#include "contract.hpp"

#include <cstdlib>
#include <set>

namespace sale_contract {
namespace {

std::set<std::string>& seen() {
  static std::set<std::string> names;
  return names;
}

// `more` may say its own type; 64 coordinates unless it says otherwise.
std::string good_line(const std::string& more) {
  const std::string type = more.find("type=") == std::string::npos ? "type=bf16 " : "";
  return "batch=2 qheads=4 kvheads=2 q=100 k=150 densebelow=0 local=32 threads=2 tau=0.05 " + type + more;
}

}  // namespace

void refused(const std::string& what, sale_status got, sale_status expected, const std::string& named) {
  const std::string message = sale_last_error();
  EXPECT_EQ(got, expected) << what << ": " << sale_status_name(got) << ": " << message;
  EXPECT_NE(message.find(named), std::string::npos) << what << ": '" << message << "' does not name '" << named << "'";
  EXPECT_GT(message.size(), named.size() + 3) << what << ": '" << message << "' says too little";
  EXPECT_TRUE(seen().insert(what).second) << what << " is here twice";
}

void must(sale_status status) {
  if (status != SALE_OK) {
    ADD_FAILURE() << sale_last_error();
    std::abort();
  }
}

int64_t refusals() { return static_cast<int64_t>(seen().size()); }

Good::Good(const std::string& more)
    : in(std::make_unique<sale_case::Instance>(sale_case::parse(good_line(more)))),
      problem(in->problem),
      layer(in->layer),
      options(in->options),
      taus(4, 0.01f),
      lens{100, 50},
      offsets{SALE_AUTO, 3},
      starts{0, 100} {}

void Good::heads(int32_t q_heads, int32_t kv_heads, int32_t head_dim) {
  problem.q_heads = layer.q_heads = q_heads;
  problem.kv_heads = layer.kv_heads = kv_heads;
  problem.head_dim = layer.head_dim = head_dim;
}

sale_estimator* Good::estimator() const {
  sale_estimator* e = nullptr;
  must(sale_estimator_create(&layer, &e));
  owned_.emplace_back(e, [](void* x) { sale_estimator_destroy(static_cast<sale_estimator*>(x)); });
  return e;
}

sale_status Good::make_plan(const sale_estimator* estimator, sale_plan** plan, bool with_index) const {
  sale_options asked = options;
  asked.with_index = with_index ? 1 : 0;
  return sale_plan_create(&problem, &asked, &estimator, 1, plan);
}

sale_plan* Good::plan(const sale_estimator* estimator, bool with_index) const {
  sale_plan* p = nullptr;
  must(make_plan(estimator, &p, with_index));
  owned_.emplace_back(p, [](void* x) { sale_plan_destroy(static_cast<sale_plan*>(x)); });
  return p;
}

sale_status Good::make_index(int64_t capacity, sale_index** index, int32_t page_size) const {
  sale_index_options o = index_options(capacity);
  o.page_size = page_size;
  return sale_index_create(estimator(), &o, index);
}

sale_index* Good::index(int64_t b) const {
  sale_index* i = nullptr;
  const int64_t keys = in->sequences[static_cast<size_t>(b)].k_len;
  must(make_index(keys + 50, &i));
  owned_.emplace_back(i, [](void* x) { sale_index_destroy(static_cast<sale_index*>(x)); });
  must(sale_index_update(i, in->keys(b), problem.k, keys, nullptr, nullptr));
  return i;
}

sale_blocks* Good::blocks(const sale_plan* plan) const {
  sale_blocks* b = nullptr;
  must(sale_blocks_create(plan, &b));
  owned_.emplace_back(b, [](void* x) { sale_blocks_destroy(static_cast<sale_blocks*>(x)); });
  return b;
}

sale_workspace workspace_of(const sale_plan* plan) {
  sale_workspace w{};
  w.struct_size = sizeof w;
  must(sale_plan_workspace(plan, &w));
  return w;
}

sale_index_options index_options(int64_t capacity) {
  sale_index_options o{};
  o.struct_size = sizeof o;
  o.capacity = capacity;
  return o;
}

sale_backend_facts facts_of(int32_t backend) {
  sale_backend_facts facts{};
  facts.struct_size = sizeof facts;
  must(sale_backend_describe(backend, &facts));
  return facts;
}

const char* last_backend() { return sale_backend_name(sale_backend_count() - 1); }

Arguments::Arguments(const Good& good, bool with_index)
    : estimator(good.estimator()), plan(good.plan(estimator, with_index)), call(good.in->call()) {
  call.blocks = good.blocks(plan);
  if (with_index) {
    for (int64_t b = 0; b < good.problem.batch; ++b) list.push_back(good.index(b));
    call.indexes = list.data();
  }
  const size_t total = workspace_of(plan).total;
  // Room behind it for a tensor that is said to begin there.
  space = std::make_unique<sale_case::Memory>(total + (size_t{1} << 18), 0x5a, 64);
  call.workspace = space->begin();
  call.workspace_bytes = total;
  stats.struct_size = sizeof stats;
  stats.kept_blocks = stats.visible_blocks = -7;
  stats.index_s = -7;
  call.stats = &stats;
  good.in->clear_outputs();
}

bool Arguments::untouched(const Good& good) const {
  return good.in->out.memory->untouched_outside({}) && good.in->lse->untouched_outside({}) &&
         space->untouched_outside({}) && stats.kept_blocks == -7 && stats.visible_blocks == -7 && stats.index_s == -7;
}

}  // namespace sale_contract

// Requests for more than there is are part of the tests: the answer is null, not a report.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  const int64_t n = sale_contract::refusals();
  std::printf("%lld distinct bad inputs refused\n", static_cast<long long>(n));
  const bool everything = testing::GTEST_FLAG(filter) == "*";
  return everything && n < 790 ? 1 : result;
}
