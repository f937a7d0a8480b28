// Everything a caller can get wrong that does not need the tensors themselves. Pointers are checked in api.cpp.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/checked.hpp"
#include "core/format.hpp"
#include "core/plan.hpp"
#include "core/status.hpp"

namespace sale {
namespace {

constexpr int64_t max_tokens = int64_t{1} << 31;

// No two elements of out may share a place: ordered by stride, each axis must step over the extent below it.
void check_disjoint(const sale_strides& s, int32_t head_dim, int64_t batch, int64_t heads, int64_t tokens) {
  struct Axis {
    int64_t stride, extent;
  } axes[] = {{s.batch, batch}, {s.head, heads}, {s.token, tokens}};
  std::sort(std::begin(axes), std::end(axes), [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
  int64_t below = head_dim;
  for (const Axis& a : axes) {
    if (a.extent == 1) continue;
    require(a.stride >= below, "out strides: batch ", s.batch, ", head ", s.head, ", token ", s.token,
            " let rows of out overlap");
    below = a.stride * (a.extent - 1) + below;
  }
}

Sequence check_sequence(const sale_problem& p, int32_t b) {
  const auto pick = [&](const int64_t* list, int64_t otherwise) { return list != nullptr ? list[b] : otherwise; };
  Sequence whole{};
  Sight& s = whole.sight;
  s.q_len = pick(p.q_lens, p.q_len);
  s.k_len = pick(p.k_lens, p.k_len);
  whole.q_start = pick(p.q_starts, 0);
  whole.k_start = pick(p.k_starts, 0);
  const std::string of = p.batch > 1 ? text(" of sequence ", b) : "";
  require(s.q_len >= 1 && s.q_len <= max_tokens, "q_len", of, ": ", s.q_len, " is not in 1 .. 2^31");
  require(s.k_len >= 1 && s.k_len <= max_tokens, "k_len", of, ": ", s.k_len, " is not in 1 .. 2^31");
  require(whole.q_start >= 0 && whole.q_start <= max_tokens, "q_starts", of, ": ", whole.q_start,
          " is not in 0 .. 2^31");
  require(whole.k_start >= 0 && whole.k_start <= max_tokens, "k_starts", of, ": ", whole.k_start,
          " is not in 0 .. 2^31");
  s.q_offset = pick(p.q_offsets, p.q_offset);
  if (s.q_offset == SALE_AUTO) {
    require(s.q_len <= s.k_len, "q_offset", of, ": automatic, but q_len ", s.q_len, " exceeds k_len ", s.k_len,
            "; give an offset >= 0");
    s.q_offset = s.k_len - s.q_len;
  }
  require(s.q_offset >= 0 && s.q_offset <= max_tokens, "q_offset", of, ": ", s.q_offset,
          " is neither SALE_AUTO nor in 0 .. 2^31");
  whole.k_coded = pick(p.k_coded, std::min(s.q_offset, s.k_len));
  require(whole.k_coded >= 0 && whole.k_coded <= s.k_len, "k_coded", of, ": ", whole.k_coded, " is not in 0 .. ",
          s.k_len, ", its keys");
  s.last_position = p.part != 0 ? INT64_MAX : s.k_len - 1;
  // One that reaches back to the first key from every row leaves nothing out.
  s.window = p.window == 0 || p.window >= s.q_offset + s.q_len ? Sight::no_window : p.window;
  return whole;
}

}  // namespace

void check_heads(int32_t q_heads, int32_t kv_heads, int32_t head_dim, sale_dtype dtype, int32_t device) {
  require(kv_heads >= 1 && kv_heads <= 65536, "kv_heads: ", kv_heads, " is not in 1 .. 65536");
  require(q_heads >= 1 && q_heads <= 65536 && q_heads % kv_heads == 0, "q_heads: ", q_heads,
          " is not a multiple of kv_heads ", kv_heads, " in 1 .. 65536");
  require(head_dim >= 16 && head_dim <= 256 && head_dim % 16 == 0, "head_dim: ", head_dim,
          " is not a multiple of 16 in 16 .. 256");
  require(device >= SALE_HOST, "device: ", device, " is neither SALE_HOST nor the ordinal of a CUDA device");
  require(dtype == SALE_F32 || dtype == SALE_F16 || dtype == SALE_BF16, "dtype: ", static_cast<int>(dtype),
          " is not SALE_F32, SALE_F16 or SALE_BF16");
}

namespace {

void check_pages(const sale_problem& p, const std::vector<Sequence>& sequences) {
  if (p.page_size == 0) {
    require(p.pages == 0, "pages: ", p.pages, ", but page_size is 0");
    return;
  }
  require(p.k_starts == nullptr, "k_starts: given, but paged keys begin at the first page of their row of page_table");
  int64_t longest = 1;
  for (const Sequence& s : sequences) longest = std::max(longest, s.sight.k_len);
  const int64_t needed = ceil_div(longest, p.page_size);
  require(p.pages >= needed && p.pages <= max_tokens, "pages: ", p.pages, " is not in ", needed,
          " .. 2^31: the longest sequence has ", longest, " keys in pages of ", p.page_size);
}

}  // namespace

std::vector<Sequence> check_problem(const sale_problem& p) {
  check_heads(p.q_heads, p.kv_heads, p.head_dim, p.dtype, p.device);
  require(p.page_size >= 0 && p.page_size % 16 == 0, "page_size: ", p.page_size, " is neither 0 nor a multiple of 16");
  require(p.part == 0 || p.part == 1, "part: ", p.part, " is neither 0 nor 1");
  require(p.kv_dtype == SALE_KV_DTYPE || p.kv_dtype == SALE_KV_E4M3, "kv_dtype: ", static_cast<int>(p.kv_dtype),
          " is not SALE_KV_DTYPE or SALE_KV_E4M3");
  require(p.kv_dtype == SALE_KV_DTYPE || p.page_size != 0,
          "kv_dtype: SALE_KV_E4M3, but page_size is 0; such keys and values are read from pages only");
  require(p.reserved == 0, "reserved: ", p.reserved, " is not 0");
  require(p.window >= 0 && p.window <= max_tokens, "window: ", p.window, " is not in 0 .. 2^31");
  require(p.window_sink == 0 || p.window_sink == 1, "window_sink: ", p.window_sink, " is neither 0 nor 1");
  require(p.window_sink == 0 || p.window != 0, "window_sink: 1, but window is 0: rows see the sink anyway");
  require(p.batch >= 1 && p.batch <= 65536, "batch: ", p.batch, " is not in 1 .. 65536");
  require(p.scale == 0 || (std::isfinite(p.scale) && p.scale > 0), "scale: ", p.scale,
          " is neither 0 (automatic) nor positive and finite");
  std::vector<Sequence> sequences;
  int64_t rows = 1;
  for (int32_t b = 0; b < p.batch; ++b) {
    sequences.push_back(check_sequence(p, b));
    rows = std::max(rows, sequences.back().sight.q_len);
  }
  for (Sequence& s : sequences) s.lse_rows = rows;
  require((Checked(p.batch) * Checked(p.q_heads) * Checked(rows) * Checked(4)).ok(), "lse: more than 2^62 bytes");
  check_pages(p, sequences);
  check_strides(p, sequences, {p.q, p.k, p.v, p.out});
  return sequences;
}

void check_strides(const sale_problem& p, const std::vector<Sequence>& sequences, const Strides& s) {
  int64_t q_tokens = 1, k_tokens = 1;
  for (const Sequence& q : sequences) {
    q_tokens = std::max(q_tokens, q.q_start + q.sight.q_len);
    k_tokens = std::max(k_tokens, q.k_start + q.sight.k_len);
  }
  check_strides("q", s.q, p.head_dim, p.batch, p.q_heads, q_tokens);
  const bool paged = p.page_size != 0;  // the batch axis is then one of pages, how many is the table's business
  check_strides("k", s.k, p.head_dim, paged ? 1 : p.batch, p.kv_heads, paged ? p.page_size : k_tokens);
  check_strides("v", s.v, p.head_dim, paged ? 1 : p.batch, p.kv_heads, paged ? p.page_size : k_tokens);
  check_strides("out", s.out, p.head_dim, p.batch, p.q_heads, q_tokens);
  check_disjoint(s.out, p.head_dim, p.q_starts == nullptr ? p.batch : 1, p.q_heads, q_tokens);
  if (p.q_starts == nullptr) return;
  // Packed: sequences share the batch axis, so their row ranges must be apart.
  std::vector<std::pair<int64_t, int64_t>> spans;  // in elements of the token axis
  for (size_t b = 0; b < sequences.size(); ++b) {
    const int64_t from = static_cast<int64_t>(b) * s.out.batch + sequences[b].q_start * s.out.token;
    spans.emplace_back(from, from + sequences[b].sight.q_len * s.out.token);
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i)
    require(spans[i - 1].second <= spans[i].first || s.out.token == 0,
            "q_starts: two sequences write the same rows of out");
}

void check_strides(const char* name, const sale_strides& s, int32_t head_dim, int64_t batch, int64_t heads,
                   int64_t tokens) {
  const struct {
    const char* axis;
    int64_t stride, extent;
  } axes[] = {{"batch", s.batch, batch}, {"head", s.head, heads}, {"token", s.token, tokens}};
  Checked span = head_dim;
  for (const auto& a : axes) {
    require(a.stride >= 0, name, " strides: ", a.axis, " stride ", a.stride, " is negative");
    span = span + Checked(a.stride) * Checked(a.extent - 1);
  }
  require(span.ok() && (span * Checked(4)).ok(), name, " strides: the tensor spans more than 2^62 bytes");
  require(tokens == 1 || s.token >= head_dim, name, " strides: token stride ", s.token, " is below head_dim ", head_dim,
          " with ", tokens, " tokens");
  // 0 repeats a head; what of out would then be written twice is refused by check_disjoint.
  require(heads == 1 || s.head >= head_dim || s.head == 0, name, " strides: head stride ", s.head,
          " is below head_dim ", head_dim, " with ", heads, " heads");
}

namespace {

std::vector<float> copied(const char* name, const float* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    require(std::isfinite(from[i]), name, ": element ", i, " is ", from[i], ", not finite");
  return {from, from + n};
}

// Format, rank and projections.
void check_form(const sale_layer& l, Layer& to) {
  require(*format_name(l.format) != 0, "format: ", static_cast<int>(l.format),
          " is not SALE_INT4, SALE_FP4, SALE_INT8 or SALE_FP8");
  to.form = {l.format, l.rank == 0 ? l.head_dim : l.rank, l.rank != 0 && l.rank != l.head_dim};
  const int32_t rank = to.form.rank;
  if (!to.form.projected) {
    require(l.q_projection == nullptr && l.k_projection == nullptr, "projections: given, but rank ", l.rank,
            " scans all ", l.head_dim, " coordinates without one");
    return;
  }
  if (l.format == SALE_FP8) {
    require(rank >= 4 && rank % 4 == 0 && rank <= 60 && rank < l.head_dim, "rank: ", l.rank, " is neither 0, head_dim ",
            l.head_dim, ", nor for SALE_FP8 a multiple of 4 in 4 .. ", std::min(60, l.head_dim - 4));
  } else {
    require(rank >= 16 && rank % 16 == 0 && rank <= l.head_dim, "rank: ", l.rank,
            " is neither 0 nor a multiple of 16 up to head_dim ", l.head_dim);
  }
  const int64_t n = int64_t{l.kv_heads} * l.head_dim * rank;
  const auto copy = [&](const char* name, const float* from) {
    require(from != nullptr, name, ": null, but rank ", l.rank, " is below head_dim ", l.head_dim);
    return copied(name, from, n);
  };
  to.q_projection = copy("q_projection", l.q_projection);
  to.k_projection = copy("k_projection", l.k_projection);
}

// What codes depend on besides the key.
void check_smoothing(const sale_layer& l, Layer& to) {
  if (l.smoothing != nullptr) to.smoothing = copied("smoothing", l.smoothing, int64_t{l.kv_heads} * l.head_dim);
  if (l.key_scales == nullptr) return;
  require(l.format == SALE_FP8, "key_scales: given, but format is ", format_name(l.format),
          ", whose scales are those of blocks; they are for SALE_FP8");
  require(l.smoothing != nullptr, "key_scales: given without smoothing, which they are scales of");
  to.key_scales = copied("key_scales", l.key_scales, l.kv_heads);
  for (size_t i = 0; i < to.key_scales.size(); ++i)
    require(to.key_scales[i] >= std::numeric_limits<float>::min(), "key_scales: element ", i, " is ", to.key_scales[i],
            ", not a positive normal number");
}

void check_thresholds(const sale_layer& l, Layer& to) {
  require(l.thresholds != nullptr, "thresholds: null; give one value or one per query head");
  require(l.n_thresholds == 1 || l.n_thresholds == l.q_heads, "n_thresholds: ", l.n_thresholds,
          " is neither 1 nor q_heads ", l.q_heads);
  for (int64_t i = 0; i < l.n_thresholds; ++i)
    require(std::isfinite(l.thresholds[i]) && l.thresholds[i] >= 0, "thresholds: element ", i, " is ", l.thresholds[i],
            ", not finite and >= 0");
  to.thresholds.assign(static_cast<size_t>(l.q_heads), l.thresholds[0]);
  if (l.n_thresholds > 1) std::copy(l.thresholds, l.thresholds + l.n_thresholds, to.thresholds.begin());
  to.dense = std::all_of(to.thresholds.begin(), to.thresholds.end(), [](float t) { return t == 0; });
}

// FNV-1a over 32-bit words, of all that a key's code depends on.
uint64_t coding_of(const Layer& l) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&](uint32_t word) { hash = (hash ^ word) * 0x100000001b3u; };
  for (const int32_t fact : {l.kv_heads, l.head_dim, static_cast<int32_t>(l.form.format), l.form.rank})
    mix(static_cast<uint32_t>(fact));
  for (const std::vector<float>* values : {&l.k_projection, &l.smoothing, &l.key_scales}) {
    mix(static_cast<uint32_t>(values->size()));
    for (const float value : *values) mix(std::bit_cast<uint32_t>(value));
  }
  return hash;
}

}  // namespace

Layer check_layer(const sale_layer& l) {
  check_heads(l.q_heads, l.kv_heads, l.head_dim, l.dtype, l.device);
  Layer to{};
  to.q_heads = l.q_heads;
  to.kv_heads = l.kv_heads;
  to.head_dim = l.head_dim;
  to.dtype = l.dtype;
  to.device = l.device;
  check_form(l, to);
  check_smoothing(l, to);
  check_thresholds(l, to);
  require(l.sink >= 0 && l.sink <= 256 && l.sink % 32 == 0, "sink: ", l.sink, " is not a multiple of 32 in 0 .. 256");
  require(l.local >= 32 && l.local <= 1024 && l.local % 32 == 0, "local: ", l.local,
          " is not a multiple of 32 in 32 .. 1024");
  to.sink = l.sink;
  to.local = l.local;
  require(l.threads >= 0 && l.threads <= 1024, "threads: ", l.threads, " is not in 0 .. 1024");
  require(l.parallel_for == nullptr || l.threads >= 1, "threads: 0, but parallel_for is given; say how many it has");
  to.coding = coding_of(to);
  return to;
}

void check_options(const sale_options& o) {
  require(o.dense_below >= 0 || o.dense_below == SALE_AUTO, "dense_below: ", o.dense_below,
          " is neither SALE_AUTO nor >= 0");
  require(o.compute == SALE_COMPUTE_EXACT || o.compute == SALE_COMPUTE_INT8 || o.compute == SALE_COMPUTE_FP8 ||
              o.compute == SALE_COMPUTE_F16,
          "compute: ", static_cast<int>(o.compute),
          " is not SALE_COMPUTE_EXACT, SALE_COMPUTE_INT8, SALE_COMPUTE_FP8 or SALE_COMPUTE_F16");
  require(o.compensate == 0 || o.compensate == 1, "compensate: ", o.compensate, " is neither 0 nor 1");
  require(o.audit >= 0 && o.audit <= 65536, "audit: ", o.audit, " is not in 0 .. 65536");
  require(o.with_index >= SALE_INDEX_OF_CALL && o.with_index <= SALE_INDEX_PAGES, "with_index: ", o.with_index,
          " is not SALE_INDEX_OF_CALL, SALE_INDEX_GIVEN or SALE_INDEX_PAGES");
}

}  // namespace sale
