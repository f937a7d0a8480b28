// Pages of codes: what is refused about them, of a plan and of a call.
#include "contract.hpp"

namespace sale_contract {
namespace {

constexpr auto bad = SALE_INVALID_ARGUMENT;

// Two sequences of 150 keys in pages of 32, an estimator with smoothing vectors.
struct Paged : Good {
  Paged() : pool(static_cast<size_t>(10 * page * 2), 0, 64), smoothing(static_cast<size_t>(2 * d)) {
    problem.page_size = 32, problem.pages = 5;
    problem.k = problem.v = {page, 32 * d, d};
    for (int32_t i = 0; i < 10; ++i) table.push_back(9 - i);
    layer.smoothing = smoothing.data();
    options.with_index = SALE_INDEX_PAGES;
  }
  sale_status make(sale_plan** plan) const {
    const sale_estimator* e = estimator();
    return sale_plan_create(&problem, &options, &e, 1, plan);
  }
  static constexpr int64_t d = 64, page = 2 * 32 * d;
  sale_case::Memory pool;
  std::vector<float> smoothing;
  std::vector<int32_t> table;
};

struct PagedCall {
  explicit PagedCall(Paged& paged) : g(paged), estimator(g.estimator()) {
    must(g.make(&plan));
    least = static_cast<int64_t>(sale_index_page_bytes(estimator, 32));
    codes = std::make_unique<sale_case::Memory>(static_cast<size_t>(10 * least), 0xab, 64);
    space = std::make_unique<sale_case::Memory>(workspace_of(plan).total, 0x5a, 64);
    pages.struct_size = sizeof pages;
    pages.memory = codes->begin(), pages.page_bytes = least, pages.pages = 10;
    call = g.in->call();
    call.k = call.v = g.pool.begin();
    call.page_table = g.table.data();
    call.index_pages = &pages;
    call.blocks = g.blocks(plan);
    call.workspace = space->begin(), call.workspace_bytes = space->size();
    g.in->clear_outputs();
  }
  ~PagedCall() { sale_plan_destroy(plan); }
  bool untouched() const {
    return g.in->out.memory->untouched_outside({}) && g.in->lse->untouched_outside({}) &&
           space->untouched_outside({}) && codes->untouched_outside({});
  }
  Paged& g;
  const sale_estimator* estimator;
  sale_plan* plan = nullptr;
  int64_t least;
  std::unique_ptr<sale_case::Memory> codes, space;
  sale_index_pages pages{};
  sale_call call;
};

void refuse(const std::string& what, const std::string& named, const std::function<void(PagedCall&)>& change) {
  for (const bool run : {true, false}) {
    Paged g;
    PagedCall a(g);
    change(a);
    refused((run ? "run: " : "select: ") + what,
            run ? sale_run(a.plan, a.estimator, &a.call) : sale_select(a.plan, a.estimator, &a.call), bad, named);
    EXPECT_TRUE(a.untouched()) << what;
  }
}

TEST(IndexPages, TheGoodOnesAreGood) {
  Paged g;
  PagedCall a(g);
  EXPECT_EQ(sale_run(a.plan, a.estimator, &a.call), SALE_OK) << sale_last_error();
  EXPECT_FALSE(a.codes->untouched_outside({})) << "no codes were put into the pages";
  EXPECT_EQ(sale_select(a.plan, a.estimator, &a.call), SALE_OK) << sale_last_error();
  a.call.index_pages = nullptr;
  EXPECT_EQ(sale_attend(a.plan, a.estimator, &a.call), SALE_OK) << "attention needs no codes: " << sale_last_error();
}

TEST(IndexPages, OfACall) {
  refuse("no index pages", "index_pages: null", [](PagedCall& a) { a.call.index_pages = nullptr; });
  refuse("indexes beside index pages", "indexes", [](PagedCall& a) {
    static const sale_index* const none[2]{};
    a.call.indexes = none;
  });
  for (const size_t size : {size_t{0}, sizeof(sale_index_pages) - 1, sizeof(sale_index_pages) + 8})
    refuse("index_pages.struct_size " + std::to_string(size), "index_pages.struct_size",
           [&](PagedCall& a) { a.pages.struct_size = size; });
  refuse("index pages without memory", "index_pages.memory", [](PagedCall& a) { a.pages.memory = nullptr; });
  refuse("index pages misaligned", "index_pages.memory",
         [](PagedCall& a) { a.pages.memory = shifted(a.pages.memory, 32); });
  for (const int64_t by : {-64, -1, 1, 32})
    refuse("index page of " + std::to_string(by) + " bytes more", "index_pages.page_bytes",
           [&](PagedCall& a) { a.pages.page_bytes += by; });
  refuse("index pages without end", "index_pages.page_bytes",
         [](PagedCall& a) { a.pages.page_bytes = INT64_MAX / 64 * 64; });
  refuse("index pages beyond any address space", "index_pages.page_bytes",
         [](PagedCall& a) { a.pages.page_bytes = int64_t{1} << 58; });
  for (const int64_t n : {int64_t{0}, int64_t{-1}, int64_t{1} << 31})
    refuse(std::to_string(n) + " index pages", "index_pages.pages", [&](PagedCall& a) { a.pages.pages = n; });
  refuse("index pages in the workspace", "index_pages.memory: overlaps",
         [](PagedCall& a) { a.pages.memory = a.call.workspace; });
  refuse("index pages over the keys", "index_pages.memory", [](PagedCall& a) { a.pages.memory = a.g.pool.begin(); });
}

// Numbers of keys that pages hold codes of.
TEST(IndexPages, ThatSayWhatTheyHold) {
  refuse("coded misaligned", "index_pages.coded",
         [](PagedCall& a) { a.pages.coded = shifted(static_cast<int32_t*>(a.pages.memory), 2); });
  refuse("coded in the pages", "index_pages.coded",
         [](PagedCall& a) { a.pages.coded = static_cast<int32_t*>(a.pages.memory); });
  refuse("coded in the workspace", "index_pages.coded",
         [](PagedCall& a) { a.pages.coded = static_cast<int32_t*>(a.call.workspace); });
  refuse("made without coded", "index_pages.made", [](PagedCall& a) {
    static int64_t number;
    a.pages.made = &number;
  });
  refuse("made misaligned", "index_pages.made", [](PagedCall& a) {
    static int32_t numbers[10];
    static int64_t made;
    a.pages.coded = numbers, a.pages.made = shifted(&made, 4);
  });
  // A header from before they could: what follows its struct is not looked at.
  Paged g;
  PagedCall a(g);
  a.pages.struct_size = offsetof(sale_index_pages, coded);
  a.pages.coded = shifted(static_cast<int32_t*>(a.pages.memory), 2);
  EXPECT_EQ(sale_run(a.plan, a.estimator, &a.call), SALE_OK) << sale_last_error();
}

TEST(IndexPages, SlotsThatAreForgotten) {
  Paged g;
  const sale_estimator* estimator = g.estimator();
  std::vector<int32_t> coded(20, 32);
  std::vector<int64_t> slots{-1, 5, 2 * 32 + 31, 2 * 32 + 7, 10 * 32, int64_t{1} << 62};
  const auto good = [&] {
    return sale_index_slots{sizeof(sale_index_slots), coded.data(), 2, 10, 10, 32, slots.data(),
                            std::ssize(slots),        nullptr};
  };
  const auto not_so = [&](const std::string& what, const std::string& named,
                          const std::function<void(sale_index_slots&)>& change) {
    sale_index_slots s = good();
    change(s);
    refused(what, sale_index_forget(estimator, &s), bad, named);
    EXPECT_EQ(std::count(coded.begin(), coded.end(), 32), 20) << what;
  };
  sale_index_slots whole = good();
  refused("no estimator", sale_index_forget(nullptr, &whole), bad, "estimator");
  refused("no slots at all", sale_index_forget(estimator, nullptr), bad, "slots");
  not_so("a size from the future", "struct_size", [](auto& s) { s.struct_size += 8; });
  not_so("no numbers", "coded", [](auto& s) { s.coded = nullptr; });
  not_so("numbers misaligned", "coded", [](auto& s) { s.coded = shifted(s.coded, 2); });
  not_so("no layers", "layers", [](auto& s) { s.layers = 0; });
  not_so("layers over each other", "layer_stride", [](auto& s) { s.layer_stride = 9; });
  not_so("no pages", "pages", [](auto& s) { s.pages = 0; });
  for (const int32_t size : {0, -32, 16, 48})
    not_so("pages of " + std::to_string(size), "page_size", [&](auto& s) { s.page_size = size; });
  not_so("no slots", "slots", [](auto& s) { s.slots = nullptr; });
  not_so("slots misaligned", "slots", [](auto& s) { s.slots = shifted(s.slots, 4); });
  not_so("fewer than none", "n_slots", [](auto& s) { s.n_slots = -1; });
  not_so("a stream on the host", "stream", [](auto& s) { s.stream = &s; });

  EXPECT_EQ(sale_index_forget(estimator, &whole), SALE_OK) << sale_last_error();
  std::vector<int32_t> expected(20, 32);
  expected[0] = expected[10] = 5;
  expected[2] = expected[12] = 7;
  EXPECT_EQ(coded, expected);
  whole.slots = nullptr, whole.n_slots = 0;
  EXPECT_EQ(sale_index_forget(estimator, &whole), SALE_OK) << sale_last_error();
  EXPECT_EQ(coded, expected);
}

// A plan without them takes none.
TEST(IndexPages, WhereNoneAreWanted) {
  Paged g;
  PagedCall a(g);
  g.options.with_index = SALE_INDEX_OF_CALL;
  sale_plan* own = nullptr;
  must(g.make(&own));
  const sale_case::Memory space(workspace_of(own).total, 0x5a, 64);
  a.call.workspace = space.begin(), a.call.workspace_bytes = space.size();
  refused("run: index pages for a plan without", sale_run(own, a.estimator, &a.call), bad, "index_pages");
  refused("attend: index pages for a plan without", sale_attend(own, a.estimator, &a.call), bad, "index_pages");
  EXPECT_TRUE(a.untouched());
  sale_plan_destroy(own);
}

TEST(IndexPages, OfAPlan) {
  const auto plan = [](const std::string& what, const std::string& named, const std::function<void(Paged&)>& change) {
    Paged g;
    change(g);
    sale_plan* p = nullptr;
    refused(what, g.make(&p), bad, named);
    EXPECT_EQ(p, nullptr) << what;
  };
  plan("an index source of 3", "with_index", [](Paged& g) { g.options.with_index = 3; });
  plan("index pages of 48 keys", "page_size: 48", [](Paged& g) { g.problem.page_size = 48; });
  plan("index pages without smoothing", "smoothing", [](Paged& g) { g.layer.smoothing = nullptr; });
  plan("index pages for keys in order", "page_size: 0", [](Paged& g) { g.problem = g.in->problem; });
  static const std::vector<int64_t> below{0, -1}, above{151, 0};
  plan("k_coded negative", "k_coded of sequence 1: -1", [](Paged& g) { g.problem.k_coded = below.data(); });
  plan("k_coded beyond the keys", "k_coded of sequence 0: 151", [](Paged& g) { g.problem.k_coded = above.data(); });
}

// A layer whose every head is dense needs none.
TEST(IndexPages, DenseLayersDoWithout) {
  Paged g;
  g.taus.assign(4, 0.0f);
  g.layer.thresholds = g.taus.data(), g.layer.n_thresholds = 4;
  g.layer.smoothing = nullptr;
  PagedCall a(g);
  a.call.index_pages = nullptr;
  EXPECT_EQ(sale_run(a.plan, a.estimator, &a.call), SALE_OK) << sale_last_error();
}

TEST(IndexPages, Bytes) {
  Paged g;
  EXPECT_EQ(sale_index_page_bytes(nullptr, 32), 0u);
  for (const int32_t size : {-32, 0, 16, 48}) EXPECT_EQ(sale_index_page_bytes(g.estimator(), size), 0u) << size;
  EXPECT_EQ(sale_index_page_bytes(g.estimator(), 32), 2u * (32 * 64 + 64));
  g.layer.smoothing = nullptr;
  EXPECT_EQ(sale_index_page_bytes(g.estimator(), 32), 0u);
}

}  // namespace
}  // namespace sale_contract
