#include "device.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "case/random.hpp"

namespace sale_device {

namespace {
// Of compute capability 8.9 or above.
bool has_fp8_products() {
  int major = 0, minor = 0;
  cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
  cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "cudaDeviceGetAttribute");
  return major * 10 + minor >= 89;
}
}  // namespace

Case served(Case c) {
  if (!tested().int4()) return c;
  if (c.format == SALE_FP8) {
    c.rank = c.rank == 0 ? 0 : std::min(c.head_dim, (c.rank + 15) / 16 * 16 + 32);
    if (c.rank == c.head_dim) c.rank = 0;
    c.format = SALE_INT4;
  }
  if (c.compute == SALE_COMPUTE_FP8) {
    const std::vector<sale_compute> all = low_bit_forms();
    sale_case::Random random(c.seed ^ static_cast<uint64_t>(4 * c.k_len + 2 * c.compensate + c.head_dim / 128));
    c.compute = all[static_cast<size_t>(random.below(static_cast<int64_t>(all.size())))];
  }
  return c;
}
std::vector<sale_compute> low_bit_forms() {
  if (!tested().int4()) return {SALE_COMPUTE_FP8};
  if (!has_fp8_products()) return {SALE_COMPUTE_INT8, SALE_COMPUTE_F16};
  return {SALE_COMPUTE_INT8, SALE_COMPUTE_F16, SALE_COMPUTE_FP8};
}
Case served_line(const std::string& line) { return served(sale_case::parse(line)); }

void cuda(cudaError_t e, const char* what) {
  if (e != cudaSuccess) throw Failed(std::string(what) + ": " + cudaGetErrorString(e));
}

Buffer::Buffer(size_t bytes, unsigned char fill) : size_(bytes) {
  void* p = nullptr;
  cuda(cudaMalloc(&p, bytes + margin), "cudaMalloc");
  data_ = static_cast<std::byte*>(p);
  cuda(cudaMemset(data_, fill, bytes), "cudaMemset");
  cuda(cudaMemset(data_ + bytes, 0xcb, margin), "cudaMemset");
}
Buffer::Buffer(const void* host, size_t bytes) : Buffer(bytes) { put(host); }
Buffer::~Buffer() { cudaFree(data_); }
void Buffer::put(const void* host) { cuda(cudaMemcpy(data_, host, size_, cudaMemcpyHostToDevice), "cudaMemcpy"); }
void Buffer::get(void* host) const {
  cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  cuda(cudaMemcpy(host, data_, size_, cudaMemcpyDeviceToHost), "cudaMemcpy");
}
bool Buffer::margin_intact() const {
  if (data_ == nullptr) return true;
  std::vector<unsigned char> m(margin);
  cuda(cudaMemcpy(m.data(), data_ + size_, margin, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return std::all_of(m.begin(), m.end(), [](unsigned char c) { return c == 0xcb; });
}

Stream::Stream() { cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
Stream::~Stream() { cudaStreamDestroy(stream_); }
void Stream::wait() const { cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

Copy::Copy(Instance& instance)
    : in(instance),
      problem(instance.problem),
      layer(instance.layer),
      options(instance.options),
      fused_(instance.c.layout == sale_case::Layout::fused),
      q_(in.q.memory->size()),
      k_(fused_ ? 0 : in.k.memory->size()),
      v_(fused_ ? 0 : in.v.memory->size()),
      out_(in.out.memory->size()),
      lse_(in.lse->size()) {
  problem.device = layer.device = 0;
  layer.backend = tested().name;
  if (paged()) make_pages();
  if (!in.reference.empty()) reference_ = Buffer(in.reference.data(), in.reference.size() * 4);
  send();
}

sale_call Copy::call() const {
  sale_call c = sale_call_init();
  c.q = q(), c.k = k(), c.v = v(), c.out = out(), c.lse = lse();
  c.page_table = pages(0);
  c.reference = in.reference.empty() ? nullptr : reinterpret_cast<const float*>(reference_.data());
  return c;
}

std::vector<int32_t> Copy::table() const {
  std::vector<int32_t> entries(table_.size() / 4);
  table_.get(entries.data());
  return entries;
}

// Pages of all sequences in one pool, in random order; what no key uses is NaN, and no page number.
void Copy::make_pages() {
  const int64_t size = in.c.page_size, heads = in.c.kv_heads, d = in.c.head_dim, page = heads * size * d;
  int64_t total = 3, longest = 0;
  for (const auto& s : in.sequences) {
    const int64_t n = (s.k_len + size - 1) / size;
    total += n;
    longest = std::max(longest, n);
  }
  std::vector<int32_t> order(static_cast<size_t>(total));
  std::iota(order.begin(), order.end(), 0);
  sale_case::Random random(in.c.seed + 77);
  for (int64_t i = total - 1; i > 0; --i)
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(random.below(i + 1))]);
  std::vector<int32_t> table(static_cast<size_t>(in.c.batch * longest), -1);
  std::vector<uint16_t> k(static_cast<size_t>(total * page), 0xffff), v = k;
  size_t next = 0;
  for (int64_t b = 0; b < in.c.batch; ++b) {
    const int64_t keys = in.sequences[static_cast<size_t>(b)].k_len;
    for (int64_t first = 0; first < keys; first += size) {
      const int32_t p = order[next++];
      table[static_cast<size_t>(b * longest + first / size)] = p;
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t j = first; j < std::min(first + size, keys); ++j) {
          const size_t to = static_cast<size_t>(p * page + (h * size + j - first) * d);
          std::memcpy(&k[to], in.k.row(b, h, j), static_cast<size_t>(d) * 2);
          std::memcpy(&v[to], in.v.row(b, h, j), static_cast<size_t>(d) * 2);
        }
    }
  }
  k_pages_ = Buffer(k.data(), k.size() * 2);
  v_pages_ = Buffer(v.data(), v.size() * 2);
  table_ = Buffer(table.data(), table.size() * 4);
  problem.page_size = in.c.page_size;
  problem.pages = longest;
  problem.k = problem.v = {page, size * d, d};
  problem.k_starts = nullptr;
}

const void* Copy::keys(int64_t b) const { return paged() ? k() : row(in.k, k(), b, 0, 0); }

std::byte* Copy::row(const sale_case::Tensor& tensor, const void* base, int64_t b, int64_t h, int64_t token) const {
  return static_cast<std::byte*>(const_cast<void*>(base)) + (tensor.row(b, h, token) - tensor.data());
}

void Copy::send() {
  q_.put(in.q.memory->begin());
  if (!fused_) k_.put(in.k.memory->begin());
  if (!fused_) v_.put(in.v.memory->begin());
  clear_outputs();
}

void Copy::clear_outputs() {
  in.clear_outputs();
  out_.put(in.out.memory->begin());
  lse_.put(in.lse->begin());
}

void Copy::fetch() {
  out_.get(in.out.memory->begin());
  lse_.get(in.lse->begin());
}

bool Copy::margins_intact() const {
  for (const Buffer* b : {&q_, &k_, &v_, &out_, &lse_, &k_pages_, &v_pages_, &table_})
    if (!b->margin_intact()) return false;
  return true;
}

Index Copy::index(int64_t b, int64_t capacity) const {
  return make_index(make_estimator(layer), capacity != 0 ? capacity : in.sequences[static_cast<size_t>(b)].k_len,
                    problem.page_size);
}

void Copy::update(const Index& index, int64_t b, int64_t keys_now, cudaStream_t stream) const {
  ok(sale_index_update(index.get(), keys(b), problem.k, keys_now, pages(b), stream), "sale_index_update");
}

std::vector<std::byte> bytes_of(const sale_case::Memory& m) { return {m.begin(), m.begin() + m.size()}; }

Work::Work(const sale_problem& p, const sale_layer& l, const sale_options& o, int32_t with_index)
    : layer(make_estimator(l)), plan(make_plan(p, o, layer, with_index)), workspace(workspace_of(plan).total) {}

sale_call Work::in(sale_call c) const {
  c.workspace = workspace.data(), c.workspace_bytes = workspace.size();
  return c;
}
sale_status Work::try_run(const sale_call& c) const {
  const sale_call here = in(c);
  return sale_run(plan.get(), layer.get(), &here);
}
void Work::run(const sale_call& c) const { ok(try_run(c), "sale_run"); }
void Work::select(const sale_call& c, const Blocks& blocks) const {
  sale_call here = in(c);
  here.blocks = blocks.get();
  ok(sale_select(plan.get(), layer.get(), &here), "sale_select");
}
void Work::attend(const sale_call& c, const Blocks& blocks) const {
  sale_call here = in(c);
  here.blocks = blocks.get();
  ok(sale_attend(plan.get(), layer.get(), &here), "sale_attend");
}

Lists read_wide_lists(const Instance& in, const Blocks& blocks) {
  Lists lists(in.sequences.size());
  for (size_t b = 0; b < lists.size(); ++b)
    for (int32_t h = 0; h < in.c.q_heads; ++h) {
      lists[b].emplace_back();
      for (int64_t t = 0; t * tested().tile < in.sequences[b].q_len; ++t)
        lists[b].back().push_back(read_row(blocks.get(), {static_cast<int32_t>(b), h, t}));
    }
  return lists;
}

Lists narrow(const Lists& wide, const Instance& in) {
  Lists lists(wide.size());
  for (size_t b = 0; b < wide.size(); ++b)
    for (const auto& head : wide[b]) {
      lists[b].emplace_back();
      for (int64_t t = 0; t * 64 < in.sequences[b].q_len; ++t)
        lists[b].back().push_back(head[static_cast<size_t>(t * 64 / tested().tile)]);
    }
  return lists;
}

Result run(Copy& copy) {
  Instance& in = copy.in;
  Result r;
  for (int64_t b = 0; b < in.c.batch; ++b) {
    r.indexes.push_back(copy.index(b));
    copy.update(r.indexes.back(), b, in.sequences[static_cast<size_t>(b)].k_len);
  }
  std::vector<const sale_index*> given;
  for (const Index& i : r.indexes) given.push_back(i.get());
  const bool with = in.c.with_index;
  sale_call call = copy.call();
  {
    const Work work(copy, with);
    expect(sale_plan_q_block(work.plan.get()) == tested().tile, "sale_plan_q_block: another tile");
    copy.clear_outputs();
    sale_stats stats{};
    stats.struct_size = sizeof stats;
    std::vector<sale_head_stats> heads(static_cast<size_t>(in.c.batch) * static_cast<size_t>(in.c.q_heads));
    stats.heads = heads.data();
    call.stats = &stats;
    call.indexes = with ? given.data() : nullptr;
    work.run(call);
    copy.fetch();
    expect(work.workspace.margin_intact() && copy.margins_intact(), "sale_run wrote behind a buffer");
    expect(in.outputs_intact(), "sale_run wrote outside out's or lse's rows");
    r.out = bytes_of(*in.out.memory);
    r.lse = bytes_of(*in.lse);
    r.kept = stats.kept_blocks;
    r.visible = stats.visible_blocks;
    int64_t kept = 0;
    for (const sale_head_stats& h : heads) kept += h.kept_blocks;
    expect(kept == r.kept, "stats: the heads' kept blocks do not add up");
  }
  // The plan's tables once for both calls.
  const Work work(copy, !with);
  ok(sale_plan_prepare(work.plan.get(), work.workspace.data(), work.workspace.size(), nullptr), "sale_plan_prepare");
  call.prepared = 1;
  call.stats = nullptr;
  call.indexes = with ? nullptr : given.data();
  const Blocks blocks = make_blocks(work.plan);
  work.select(call, blocks);
  r.lists = read_wide_lists(in, blocks);
  int64_t kept = 0;
  for (const auto& s : r.lists)
    for (const auto& h : s)
      for (const auto& row : h) kept += static_cast<int64_t>(row.size());
  expect(kept == r.kept, "sale_select keeps " + std::to_string(kept) + " blocks, sale_run " + std::to_string(r.kept));
  copy.clear_outputs();
  work.attend(call, blocks);
  copy.fetch();
  expect(work.workspace.margin_intact() && in.outputs_intact(), "sale_attend wrote outside its outputs");
  expect(r.out == bytes_of(*in.out.memory) && r.lse == bytes_of(*in.lse),
         "sale_run differs from sale_select and sale_attend");
  return r;
}

}  // namespace sale_device
