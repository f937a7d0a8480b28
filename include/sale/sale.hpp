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
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sale/problem.hpp"
#include "sale/sale.h"

namespace sale {
inline namespace v0 {

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
inline sale_index_pages index_pages(void* memory, size_t page_bytes, int64_t pages, int32_t* coded = nullptr,
                                    int64_t* made = nullptr) {
  return {sizeof(sale_index_pages), memory, static_cast<int64_t>(page_bytes), pages, coded, made};
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
