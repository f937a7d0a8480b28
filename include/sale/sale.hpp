// SALE for C++20: a thin layer over sale.h. Owners instead of handles, one exception type instead of statuses.
//
//     sale::Problem problem(1, 32, 8, tokens, tokens, 128, SALE_BF16);   // shapes: see sale_problem in sale.h
//     sale::Plan plan(problem, sale::Options().threshold(0.004f));      // checks, picks a backend
//     sale::Workspace workspace(plan.workspace().total);
//     plan.run({.q = q, .k = k, .v = v, .out = out}, workspace);
//
// A model has an Estimator for every layer and one Plan a step for all of them:
//
//     std::vector<sale::Estimator> layers;                              // once: sale::Estimator(problem, options)
//     sale::Plan plan(problem, sale::Options(), layers);                // a step
//     plan.run(layers[i], {.q = q, .k = k, .v = v, .out = out}, workspace);
//
// Everything here is inline over the C functions; units, limits and layouts are those of sale.h: sizes, strides and
// offsets in elements, "bytes" where bytes are meant, tensors [batch, head, token, head_dim].
//
// Errors: every member may throw sale::Error with the library's status and sentence; std::bad_alloc stays
// std::bad_alloc. Threads: an Estimator or a Plan may be used by any number of threads at once, each with its own
// Workspace. A KeyIndex or BlockList has one writer, or many readers, at a time. Problem, Options and Workspace are
// plain values.
#ifndef SALE_SALE_HPP
#define SALE_SALE_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sale/sale.h"

namespace sale {
// The inline namespace keeps these names apart from those inside the library when both end up in one program.
inline namespace v0 {

// What every failure throws. what() names the argument, its value and what is allowed.
class Error : public std::runtime_error {
public:
  Error(sale_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  sale_status status() const noexcept { return status_; }

private:
  sale_status status_;
};

// Throws what the last C call on this thread left behind.
inline void check(sale_status status) {
  if (status != SALE_OK) throw Error(status, sale_last_error());
}

// ---- what is asked ---------------------------------------------------------------------------------------------

// A sale_problem that owns its arrays. Setters return the problem, so they chain.
class Problem {
public:
  // Contiguous [batch, heads, tokens, head_dim] tensors, causal, the queries at the end of the keys.
  Problem(int32_t batch, int32_t q_heads, int32_t kv_heads, int64_t q_len, int64_t k_len, int32_t head_dim,
          sale_dtype dtype)
      : problem_(sale_problem_init(q_heads, kv_heads, head_dim, dtype, q_len, k_len)) {
    problem_.batch = batch;
  }

  Problem& q_offset(int64_t position) { return problem_.q_offset = position, *this; }
  Problem& not_causal() { return q_offset(problem_.k_len); }
  Problem& scale(float s) { return problem_.scale = s, *this; }
  Problem& strides(sale_strides q, sale_strides k, sale_strides v, sale_strides out) {
    problem_.q = q, problem_.k = k, problem_.v = v, problem_.out = out;
    return *this;
  }
  // Ragged batches; each array [batch], copied. See sale_problem.
  Problem& q_lens(std::span<const int64_t> n) { return keep(q_lens_, n, "q_lens"); }
  Problem& k_lens(std::span<const int64_t> n) { return keep(k_lens_, n, "k_lens"); }
  Problem& q_offsets(std::span<const int64_t> n) { return keep(q_offsets_, n, "q_offsets"); }
  // Tensors, indexes, block lists and workspaces in a CUDA device's memory.
  Problem& device(int32_t ordinal) { return problem_.device = ordinal, *this; }
  // Keys and values in pages, whose table every call brings. See sale_problem.
  Problem& paged(int32_t page_size, int64_t pages) {
    return problem_.page_size = page_size, problem_.pages = pages, *this;
  }
  // Keys that are a part of a sequence's: every call brings a reference. See sale_problem.
  Problem& part(bool on = true) { return problem_.part = on, *this; }
  Problem& q_starts(std::span<const int64_t> n) { return keep(q_starts_, n, "q_starts"); }
  Problem& k_starts(std::span<const int64_t> n) { return keep(k_starts_, n, "k_starts"); }
  Problem& k_coded(std::span<const int64_t> n) { return keep(k_coded_, n, "k_coded"); }

  // For the C functions; valid while this problem lives and is not changed.
  sale_problem c() const {
    sale_problem p = problem_;
    p.q_lens = at(q_lens_), p.k_lens = at(k_lens_), p.q_offsets = at(q_offsets_);
    p.q_starts = at(q_starts_), p.k_starts = at(k_starts_), p.k_coded = at(k_coded_);
    return p;
  }

private:
  using Array = std::vector<int64_t>;
  static const int64_t* at(const Array& a) { return a.empty() ? nullptr : a.data(); }
  // The C side cannot see how long an array is.
  Problem& keep(Array& to, std::span<const int64_t> from, const char* name) {
    if (!std::in_range<int32_t>(from.size()) || static_cast<int32_t>(from.size()) != problem_.batch)
      throw Error(SALE_INVALID_ARGUMENT, std::string(name) + " has " + std::to_string(from.size()) +
                                             " entries; one per sequence is needed, " + std::to_string(problem_.batch));
    to.assign(from.begin(), from.end());
    return *this;
  }
  sale_problem problem_;
  Array q_lens_, k_lens_, q_offsets_, q_starts_, k_starts_, k_coded_;
};

// ---- how it is to be done --------------------------------------------------------------------------------------

// What a layer and what a step is to be like: sale_layer and sale_options that own their arrays; starts from the
// defaults.
class Options {
public:
  Options() : layer_(sale_layer_init(1, 1, 16, SALE_F32)), options_(sale_options_init()) {}

  // tau: one for all heads, or one per query head (copied). 0 = dense head.
  Options& threshold(float tau) { return thresholds_.assign(1, tau), *this; }
  Options& thresholds(std::span<const float> taus) {
    if (taus.empty()) throw Error(SALE_INVALID_ARGUMENT, "thresholds: none given; 1 or one per query head are allowed");
    return thresholds_.assign(taus.begin(), taus.end()), *this;
  }
  // All coordinates, without projection.
  Options& estimator(sale_format format) {
    layer_.format = format, layer_.rank = 0;
    q_projection_.clear(), k_projection_.clear();
    return *this;
  }
  // `rank` coordinates; projections [kv_heads, head_dim, rank] each, copied.
  Options& estimator(sale_format format, int32_t rank, std::span<const float> q_projection,
                     std::span<const float> k_projection) {
    if (q_projection.size() != k_projection.size())
      throw Error(SALE_INVALID_ARGUMENT, "q_projection has " + std::to_string(q_projection.size()) +
                                             " numbers and k_projection " + std::to_string(k_projection.size()) +
                                             "; both are [kv_heads, head_dim, rank]");
    layer_.format = format, layer_.rank = rank;
    q_projection_.assign(q_projection.begin(), q_projection.end());
    k_projection_.assign(k_projection.begin(), k_projection.end());
    return *this;
  }
  // [kv_heads, head_dim] and, for FP8, [kv_heads], copied; an empty span: the keys' own. See sale_layer.
  Options& smoothing(std::span<const float> vectors, std::span<const float> key_scales = {}) {
    smoothing_.assign(vectors.begin(), vectors.end());
    key_scales_.assign(key_scales.begin(), key_scales.end());
    return *this;
  }
  Options& sink(int32_t keys) { return layer_.sink = keys, *this; }
  Options& local(int32_t keys) { return layer_.local = keys, *this; }
  // SALE_AUTO, the default: where sparse attention pays.
  Options& dense_below(int64_t keys) { return options_.dense_below = keys, *this; }
  // Attention over every key: no estimate, no selection, the same kernel.
  Options& dense() { return dense_below(std::numeric_limits<int64_t>::max()); }
  Options& compute(sale_compute c) { return options_.compute = c, *this; }
  Options& backend(std::string name) { return backend_ = std::move(name), *this; }  // "" = the library's choice
  Options& threads(int32_t n) { return layer_.threads = n, *this; }                 // 0 = one per CPU
  // The caller's threads in place of the library's, see sale_parallel_for.
  Options& parallel_for(sale_parallel_for f, void* context, int32_t threads) {
    layer_.parallel_for = f, layer_.parallel_context = context, layer_.threads = threads;
    return *this;
  }
  Options& compensate(bool on) { return options_.compensate = on, *this; }
  // Rows per query head whose exact attention every run computes besides, see sale_head_audit; 0 = none.
  Options& audit(int32_t rows, uint64_t seed = 0) { return options_.audit = rows, options_.audit_seed = seed, *this; }

  // For the C functions; valid while these options live and are not changed. The layer of a problem's heads, type and
  // device: whether arrays of the right size were given is checked here, since the C side sees pointers only.
  sale_layer layer(const Problem& problem) const {
    const sale_problem p = problem.c();
    sale_layer l = layer_;
    l.q_heads = p.q_heads, l.kv_heads = p.kv_heads, l.head_dim = p.head_dim, l.dtype = p.dtype, l.device = p.device;
    const int64_t vectors = int64_t{p.kv_heads} * p.head_dim;
    fits("q_projection", q_projection_, vectors * l.rank, "[kv_heads, head_dim, rank]");
    fits("smoothing", smoothing_, vectors, "[kv_heads, head_dim]");
    fits("key_scales", key_scales_, p.kv_heads, "[kv_heads]");
    if (!thresholds_.empty())
      l.thresholds = thresholds_.data(), l.n_thresholds = static_cast<int64_t>(thresholds_.size());
    if (!q_projection_.empty()) l.q_projection = q_projection_.data(), l.k_projection = k_projection_.data();
    if (!smoothing_.empty()) l.smoothing = smoothing_.data();
    if (!key_scales_.empty()) l.key_scales = key_scales_.data();
    if (!backend_.empty()) l.backend = backend_.c_str();
    return l;
  }
  sale_options c() const { return options_; }

private:
  static void fits(const char* name, const std::vector<float>& given, int64_t needed, const char* shape) {
    if (!given.empty() && static_cast<int64_t>(given.size()) != needed)
      throw Error(SALE_INVALID_ARGUMENT, std::string(name) + " has " + std::to_string(given.size()) + " numbers; " +
                                             std::to_string(needed) + " are needed (" + shape + ")");
  }
  sale_layer layer_;
  sale_options options_;
  std::vector<float> thresholds_, q_projection_, k_projection_, smoothing_, key_scales_;
  std::string backend_;
};

// ---- layer -----------------------------------------------------------------------------------------------------

// What belongs to one layer of a model: made once, where weights are loaded. Plans and indexes keep what they need of
// it.
class Estimator {
public:
  // Of the problem its heads, head_dim, type and device are used.
  Estimator(const Problem& problem, const Options& options) {
    const sale_layer l = options.layer(problem);
    sale_estimator* raw = nullptr;
    check(sale_estimator_create(&l, &raw));
    handle_.reset(raw);
  }
  std::string backend() const { return sale_estimator_backend(get()); }
  int64_t q_block() const { return sale_estimator_q_block(get()); }
  // Bytes of an index in caller's memory, and of a page of codes; 0 when there is none, see sale.h.
  size_t index_memory(int64_t capacity) const { return sale_index_memory(get(), capacity); }
  size_t index_page_bytes(int32_t page_size) const { return sale_index_page_bytes(get(), page_size); }
  sale_estimator* get() const noexcept { return handle_.get(); }

private:
  struct Free {
    void operator()(sale_estimator* p) const { sale_estimator_destroy(p); }
  };
  std::unique_ptr<sale_estimator, Free> handle_;
};

// ---- memory ----------------------------------------------------------------------------------------------------

// Uninitialised bytes, aligned to 64. Keep one per thread and let it grow.
class Workspace {
public:
  Workspace() = default;
  explicit Workspace(size_t bytes) { need(bytes); }
  // At least `bytes`; the contents are lost when it grows.
  void need(size_t bytes) {
    if (bytes <= size_) return;
    data_.reset(), size_ = 0;
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
    size_ = bytes;
  }
  void* data() const noexcept { return data_.get(); }
  size_t size() const noexcept { return size_; }

private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

// What a run works in: a Workspace, or the caller's own bytes (on a device: device memory).
struct Bytes {
  void* data = nullptr;
  size_t size = 0;
  bool prepared = false;  // Plan::prepare has been here
  Bytes(const Workspace& w) : data(w.data()), size(w.size()) {}
  Bytes(void* at, size_t bytes) : data(at), size(bytes) {}
};

// Of one head's audit, or of a sum of several.
inline double relative_l1(const sale_head_audit& a) { return a.size > 0 ? a.error / a.size : 0; }
inline double retained_mass(const sale_head_audit& a) { return a.rows > 0 ? a.mass / static_cast<double>(a.rows) : 1; }

// What a run reports. heads and audits: [batch * q_heads], sequence-major; heads filled when `per_head` is set
// beforehand, audits when the options ask for one.
struct Stats {
  bool per_head = false;
  double index_s = 0, select_s = 0, attend_s = 0, audit_s = 0;
  int64_t kept_blocks = 0, visible_blocks = 0;
  std::vector<sale_head_stats> heads;
  std::vector<sale_head_audit> audits;
  double density() const {
    return visible_blocks > 0 ? static_cast<double>(kept_blocks) / static_cast<double>(visible_blocks) : 1;
  }
};

// ---- key index and block list ----------------------------------------------------------------------------------

// The low-bit codes of one sequence's keys, kept beside the KV cache.
class KeyIndex {
public:
  // page_size: of the keys' pages, 0 when they are not paged. memory: device or host memory to use, or null.
  KeyIndex(const Estimator& estimator, int64_t capacity, int32_t page_size = 0, void* memory = nullptr,
           size_t memory_bytes = 0) {
    const sale_index_options o{sizeof o, capacity, page_size, memory, memory_bytes};
    sale_index* raw = nullptr;
    check(sale_index_create(estimator.get(), &o, &raw));
    handle_.reset(raw);
  }
  KeyIndex(const Problem& problem, const Options& options, int64_t capacity)
      : KeyIndex(Estimator(problem, options), capacity, problem.c().page_size) {}
  // k: the sequence's first key; k_len: keys there are now. See sale_index_update.
  void update(const void* k, sale_strides k_strides, int64_t k_len, const int32_t* pages = nullptr,
              void* stream = nullptr) {
    check(sale_index_update(get(), k, k_strides, k_len, pages, stream));
  }
  void truncate(int64_t k_len) { check(sale_index_truncate(get(), k_len)); }
  int64_t length() const { return sale_index_length(get()); }
  size_t bytes() const { return sale_index_bytes(get()); }
  sale_index* get() const noexcept { return handle_.get(); }

private:
  struct Free {
    void operator()(sale_index* p) const { sale_index_destroy(p); }
  };
  std::unique_ptr<sale_index, Free> handle_;
};

class Plan;

// The kept key blocks of every (sequence, query head, query tile); all of them until a selection is written to it.
class BlockList {
public:
  explicit BlockList(const Plan& plan);
  struct Row {
    std::vector<int32_t> kept;  // ascending
    int64_t visible = 0;
  };
  Row row(int32_t sequence, int32_t head, int64_t tile) const {
    sale_row_counts counts{};
    check(sale_blocks_row(get(), {sequence, head, tile}, nullptr, 0, &counts));
    Row row{std::vector<int32_t>(static_cast<size_t>(counts.kept)), counts.visible};
    check(sale_blocks_row(get(), {sequence, head, tile}, row.kept.data(), counts.kept, &counts));
    return row;
  }
  // Every row at once, see sale_blocks_csr.
  struct Csr {
    std::vector<int64_t> starts;
    std::vector<int32_t> indices;
  };
  Csr csr() const {
    sale_csr_counts counts{};
    check(sale_blocks_csr(get(), nullptr, 0, nullptr, 0, &counts));
    Csr all{std::vector<int64_t>(static_cast<size_t>(counts.rows) + 1),
            std::vector<int32_t>(static_cast<size_t>(counts.kept))};
    check(sale_blocks_csr(get(), all.starts.data(), counts.rows, all.indices.data(), counts.kept, &counts));
    return all;
  }
  void set_row(int32_t sequence, int32_t head, int64_t tile, std::span<const int32_t> kept) {
    check(sale_blocks_set_row(get(), {sequence, head, tile}, kept.data(), static_cast<int64_t>(kept.size())));
  }
  int64_t q_block() const noexcept { return q_block_; }  // rows of a tile
  sale_blocks* get() const noexcept { return handle_.get(); }

private:
  struct Free {
    void operator()(sale_blocks* p) const { sale_blocks_destroy(p); }
  };
  std::unique_ptr<sale_blocks, Free> handle_;
  int64_t q_block_;
};

// ---- plan ------------------------------------------------------------------------------------------------------

struct Tensors {
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void* out = nullptr;
  float* lse = nullptr;                                        // NULL, or [batch, q_heads, longest q_len]
  const int32_t* page_table = nullptr;                         // of paged keys
  const float* reference = nullptr;                            // of parts
  std::optional<sale_index_pages> index_pages = std::nullopt;  // of plans made with Keys::coded_in_pages
};
// `pages` pages of `page_bytes`, one after the other.
inline sale_index_pages index_pages(void* memory, size_t page_bytes, int64_t pages) {
  return {sizeof(sale_index_pages), memory, static_cast<int64_t>(page_bytes), pages};
}
// One per sequence: {index.get(), ...}.
using Indexes = std::span<const sale_index* const>;

class Plan {
public:
  enum class Keys {
    indexed_each_run = SALE_INDEX_OF_CALL,
    have_an_index = SALE_INDEX_GIVEN,
    coded_in_pages = SALE_INDEX_PAGES
  };
  // With an estimator of its own, from the options: for those who have one layer.
  Plan(const Problem& problem, const Options& options, Keys keys = Keys::indexed_each_run)
      : own_(std::make_shared<const Estimator>(problem, options)) {
    const sale_estimator* one = own_->get();
    make(problem, options, {&one, 1}, keys);
  }
  // For the layers of a model. Of the options those of a step are used; estimators are not kept.
  Plan(const Problem& problem, const Options& options, std::span<const Estimator> layers,
       Keys keys = Keys::indexed_each_run) {
    std::vector<const sale_estimator*> all;
    all.reserve(layers.size());
    for (const Estimator& e : layers) all.push_back(e.get());
    make(problem, options, all, keys);
  }
  sale_workspace workspace() const {
    sale_workspace w{};
    w.struct_size = sizeof w;
    check(sale_plan_workspace(get(), &w));
    return w;
  }
  std::string backend() const { return sale_plan_backend(get()); }
  std::string explain() const { return sale_plan_explain(get()); }
  int64_t q_block() const { return sale_plan_q_block(get()); }
  // Once a step: calls with the workspace it returns find the plan's tables there, see sale_plan_prepare.
  Bytes prepare(Bytes workspace, void* stream = nullptr) const {
    check(sale_plan_prepare(get(), workspace.data, workspace.size, stream));
    workspace.prepared = true;
    return workspace;
  }

  // Index (unless given), select, attend. stream: devices only, see sale.h.
  void run(const Estimator& layer, const Tensors& t, const Bytes& workspace, Indexes indexes = {},
           Stats* stats = nullptr, void* stream = nullptr) const {
    Filling fill(*this, stats);
    const sale_call c = call(t, workspace, indexes, nullptr, fill, stream);
    check(sale_run(get(), layer.get(), &c));
    fill.done();
  }
  void run(const Tensors& t, const Bytes& workspace, Indexes indexes = {}, Stats* stats = nullptr,
           void* stream = nullptr) const {
    run(own(), t, workspace, indexes, stats, stream);
  }
  // The stages on their own; t.v, t.out and t.lse are not used by select.
  void select(const Estimator& layer, const Tensors& t, BlockList& blocks, const Bytes& workspace, Indexes indexes = {},
              Stats* stats = nullptr, void* stream = nullptr) const {
    Filling fill(*this, stats);
    const sale_call c = call(t, workspace, indexes, blocks.get(), fill, stream);
    check(sale_select(get(), layer.get(), &c));
    fill.done();
  }
  void select(const Tensors& t, BlockList& blocks, const Bytes& workspace, Indexes indexes = {}, Stats* stats = nullptr,
              void* stream = nullptr) const {
    select(own(), t, blocks, workspace, indexes, stats, stream);
  }
  void attend(const Estimator& layer, const Tensors& t, const BlockList& blocks, const Bytes& workspace,
              Stats* stats = nullptr, void* stream = nullptr) const {
    Filling fill(*this, stats);
    sale_call c = fields(t, workspace, fill, stream);
    c.blocks = blocks.get();
    check(sale_attend(get(), layer.get(), &c));
    fill.done();
  }
  void attend(const Tensors& t, const BlockList& blocks, const Bytes& workspace, Stats* stats = nullptr,
              void* stream = nullptr) const {
    attend(own(), t, blocks, workspace, stats, stream);
  }
  // Its own estimator; plans made for given layers have none.
  const Estimator& own() const {
    if (!own_) throw Error(SALE_INVALID_ARGUMENT, "estimator: this plan was made for given layers; name one");
    return *own_;
  }
  sale_plan* get() const noexcept { return handle_.get(); }

private:
  void make(const Problem& problem, const Options& options, std::span<const sale_estimator* const> estimators,
            Keys keys) {
    const sale_problem p = problem.c();
    sale_options o = options.c();
    o.with_index = static_cast<int32_t>(keys);
    sale_plan* raw = nullptr;
    check(sale_plan_create(&p, &o, estimators.data(), static_cast<int64_t>(estimators.size()), &raw));
    handle_.reset(raw);
    indexes_ = keys == Keys::have_an_index ? static_cast<size_t>(p.batch) : 0;
    heads_ = static_cast<size_t>(p.batch) * static_cast<size_t>(p.q_heads);
    audits_ = o.audit > 0;
  }
  // Carries a Stats over the C call.
  class Filling {
  public:
    Filling(const Plan& plan, Stats* to) : to_(to) {
      if (to == nullptr) return;
      to->heads.assign(to->per_head ? plan.heads_ : 0, sale_head_stats{});
      stats_.heads = to->heads.empty() ? nullptr : to->heads.data();
      to->audits.assign(plan.audits_ ? plan.heads_ : 0, sale_head_audit{});
      stats_.audits = to->audits.empty() ? nullptr : to->audits.data();
    }
    sale_stats* c() { return to_ == nullptr ? nullptr : &stats_; }
    void done() {
      if (to_ == nullptr) return;
      to_->index_s = stats_.index_s, to_->select_s = stats_.select_s, to_->attend_s = stats_.attend_s;
      to_->audit_s = stats_.audit_s;
      to_->kept_blocks = stats_.kept_blocks, to_->visible_blocks = stats_.visible_blocks;
    }

  private:
    Stats* to_;
    sale_stats stats_ = [] {
      sale_stats s{};
      s.struct_size = sizeof s;
      return s;
    }();
  };
  sale_call fields(const Tensors& t, const Bytes& workspace, Filling& fill, void* stream) const {
    sale_call c = sale_call_init();
    c.q = t.q, c.k = t.k, c.v = t.v, c.out = t.out, c.lse = t.lse;
    c.page_table = t.page_table, c.reference = t.reference;
    c.workspace = workspace.data, c.workspace_bytes = workspace.size, c.prepared = workspace.prepared;
    c.stats = fill.c(), c.stream = stream;
    return c;
  }
  sale_call call(const Tensors& t, const Bytes& workspace, Indexes indexes, sale_blocks* blocks, Filling& fill,
                 void* stream) const {
    sale_call c = fields(t, workspace, fill, stream);
    c.indexes = list(indexes), c.blocks = blocks;
    c.index_pages = t.index_pages.has_value() ? &*t.index_pages : nullptr;
    return c;
  }
  const sale_index* const* list(Indexes indexes) const {
    if (indexes.size() != indexes_)
      throw Error(SALE_INVALID_ARGUMENT, "indexes: " + std::to_string(indexes.size()) + " given; this plan takes " +
                                             std::to_string(indexes_) +
                                             (indexes_ == 0 ? " (it makes its own)" : ", one per sequence"));
    return indexes.empty() ? nullptr : indexes.data();
  }
  struct Free {
    void operator()(sale_plan* p) const { sale_plan_destroy(p); }
  };
  std::shared_ptr<const Estimator> own_;
  std::unique_ptr<sale_plan, Free> handle_;
  size_t indexes_ = 0, heads_ = 0;
  bool audits_ = false;
};

inline BlockList::BlockList(const Plan& plan) : q_block_(plan.q_block()) {
  sale_blocks* raw = nullptr;
  check(sale_blocks_create(plan.get(), &raw));
  handle_.reset(raw);
}

// ---- backends --------------------------------------------------------------------------------------------------

struct BackendInfo {
  std::string name, summary, why_not;  // why_not: "" when this machine can run it
  sale_backend_facts facts;
};
inline std::vector<BackendInfo> backends() {
  std::vector<BackendInfo> all;
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    sale_backend_facts facts{};
    facts.struct_size = sizeof facts;
    check(sale_backend_describe(i, &facts));
    all.push_back({sale_backend_name(i), sale_backend_summary(i), sale_backend_why_not(i), facts});
  }
  return all;
}
// "" when backend i of the list can run this wherever it runs at all, else the first reason.
inline std::string why_not(int32_t i, const Problem& problem, const Options& options) {
  const sale_problem p = problem.c();
  const sale_layer l = options.layer(problem);
  const sale_options o = options.c();
  return sale_backend_why_not_problem(i, &p, &l, &o);
}

}  // namespace v0
}  // namespace sale

#endif  // SALE_SALE_HPP
