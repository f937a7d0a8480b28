// What is asked and how it is to be done, as values: a part of sale.hpp, which says more.
#ifndef SALE_PROBLEM_HPP
#define SALE_PROBLEM_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
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
  // Rows see so many keys up to their own, and with `sink` the layer's sink besides; 0: all.
  Problem& window(int64_t keys, bool sink = false) {
    return problem_.window = keys, problem_.window_sink = sink, *this;
  }
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

}  // namespace v0
}  // namespace sale

#endif  // SALE_PROBLEM_HPP
