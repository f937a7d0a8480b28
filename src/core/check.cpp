// Everything a caller can get wrong that does not need the tensors themselves. Pointers are checked in api.cpp.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/checked.hpp"
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
  Sequence s{};
  s.q_len = pick(p.q_lens, p.q_len);
  s.k_len = pick(p.k_lens, p.k_len);
  s.q_start = pick(p.q_starts, 0);
  s.k_start = pick(p.k_starts, 0);
  const std::string of = p.batch > 1 ? text(" of sequence ", b) : "";
  require(s.q_len >= 1 && s.q_len <= max_tokens, "q_len", of, ": ", s.q_len, " is not in 1 .. 2^31");
  require(s.k_len >= 1 && s.k_len <= max_tokens, "k_len", of, ": ", s.k_len, " is not in 1 .. 2^31");
  require(s.q_start >= 0 && s.q_start <= max_tokens, "q_starts", of, ": ", s.q_start, " is not in 0 .. 2^31");
  require(s.k_start >= 0 && s.k_start <= max_tokens, "k_starts", of, ": ", s.k_start, " is not in 0 .. 2^31");
  s.q_offset = pick(p.q_offsets, p.q_offset);
  if (s.q_offset == SALE_AUTO) {
    require(s.q_len <= s.k_len, "q_offset", of, ": automatic, but q_len ", s.q_len, " exceeds k_len ", s.k_len,
            "; give an offset >= 0");
    s.q_offset = s.k_len - s.q_len;
  }
  require(s.q_offset >= 0 && s.q_offset <= max_tokens, "q_offset", of, ": ", s.q_offset,
          " is neither SALE_AUTO nor in 0 .. 2^31");
  return s;
}

}  // namespace

void check_heads(const sale_problem& p) {
  require(p.struct_size == sizeof(sale_problem), "problem.struct_size: ", p.struct_size, ", this library's is ",
          sizeof(sale_problem), "; header and library versions differ");
  require(p.kv_heads >= 1 && p.kv_heads <= 65536, "kv_heads: ", p.kv_heads, " is not in 1 .. 65536");
  require(p.q_heads >= 1 && p.q_heads <= 65536 && p.q_heads % p.kv_heads == 0, "q_heads: ", p.q_heads,
          " is not a multiple of kv_heads ", p.kv_heads, " in 1 .. 65536");
  require(p.head_dim >= 16 && p.head_dim <= 256 && p.head_dim % 16 == 0, "head_dim: ", p.head_dim,
          " is not a multiple of 16 in 16 .. 256");
  require(p.device >= SALE_HOST, "device: ", p.device, " is neither SALE_HOST nor the ordinal of a CUDA device");
  require(p.page_size >= 0 && p.page_size % 16 == 0, "page_size: ", p.page_size, " is neither 0 nor a multiple of 16");
  require(p.dtype == SALE_F32 || p.dtype == SALE_F16 || p.dtype == SALE_BF16, "dtype: ", static_cast<int>(p.dtype),
          " is not SALE_F32, SALE_F16 or SALE_BF16");
}

namespace {

void check_pages(const sale_problem& p, const std::vector<Sequence>& sequences) {
  if (p.page_size == 0) {
    require(p.pages == 0, "pages: ", p.pages, ", but page_size is 0");
    require(p.page_table == nullptr, "page_table: given, but page_size is 0");
    return;
  }
  require(p.page_table != nullptr, "page_table: null, but page_size is ", p.page_size);
  require(p.k_starts == nullptr, "k_starts: given, but paged keys begin at the first page of their row of page_table");
  int64_t longest = 1;
  for (const Sequence& s : sequences) longest = std::max(longest, s.k_len);
  const int64_t needed = ceil_div(longest, p.page_size);
  require(p.pages >= needed && p.pages <= max_tokens, "pages: ", p.pages, " is not in ", needed,
          " .. 2^31: the longest sequence has ", longest, " keys in pages of ", p.page_size);
}

}  // namespace

std::vector<Sequence> check_problem(const sale_problem& p) {
  check_heads(p);
  require(p.batch >= 1 && p.batch <= 65536, "batch: ", p.batch, " is not in 1 .. 65536");
  require(p.scale == 0 || (std::isfinite(p.scale) && p.scale > 0), "scale: ", p.scale,
          " is neither 0 (automatic) nor positive and finite");
  std::vector<Sequence> sequences;
  int64_t q_tokens = 1, k_tokens = 1, rows = 1;
  for (int32_t b = 0; b < p.batch; ++b) {
    sequences.push_back(check_sequence(p, b));
    const Sequence& s = sequences.back();
    q_tokens = std::max(q_tokens, s.q_start + s.q_len);
    k_tokens = std::max(k_tokens, s.k_start + s.k_len);
    rows = std::max(rows, s.q_len);
  }
  for (Sequence& s : sequences) s.lse_rows = rows;
  require((Checked(p.batch) * Checked(p.q_heads) * Checked(rows) * Checked(4)).ok(), "lse: more than 2^62 bytes");
  check_strides("q", p.q, p.head_dim, p.batch, p.q_heads, q_tokens);
  check_pages(p, sequences);
  const bool paged = p.page_size != 0;  // the batch axis is then one of pages, how many is the table's business
  check_strides("k", p.k, p.head_dim, paged ? 1 : p.batch, p.kv_heads, paged ? p.page_size : k_tokens);
  check_strides("v", p.v, p.head_dim, paged ? 1 : p.batch, p.kv_heads, paged ? p.page_size : k_tokens);
  check_strides("out", p.out, p.head_dim, p.batch, p.q_heads, q_tokens);
  if (p.q_starts == nullptr) {
    check_disjoint(p.out, p.head_dim, p.batch, p.q_heads, rows);
  } else {
    // Packed: sequences share the batch axis, so their row ranges must be apart.
    check_disjoint(p.out, p.head_dim, 1, p.q_heads, q_tokens);
    std::vector<std::pair<int64_t, int64_t>> spans;  // in elements of the token axis
    for (int32_t b = 0; b < p.batch; ++b) {
      const Sequence& s = sequences[static_cast<size_t>(b)];
      spans.emplace_back(b * p.out.batch + s.q_start * p.out.token,
                         b * p.out.batch + (s.q_start + s.q_len) * p.out.token);
    }
    std::sort(spans.begin(), spans.end());
    for (size_t i = 1; i < spans.size(); ++i)
      require(spans[i - 1].second <= spans[i].first || p.out.token == 0,
              "q_starts: two sequences write the same rows of out");
  }
  return sequences;
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

Estimator check_estimator(const sale_options& o, int32_t kv_heads, int32_t head_dim) {
  require(o.struct_size == sizeof(sale_options), "options.struct_size: ", o.struct_size, ", this library's is ",
          sizeof(sale_options), "; header and library versions differ");
  require(o.format == SALE_INT4 || o.format == SALE_INT8 || o.format == SALE_FP8,
          "format: ", static_cast<int>(o.format), " is not SALE_INT4, SALE_INT8 or SALE_FP8");
  Estimator e;
  e.format = o.format;
  e.rank = o.rank == 0 ? head_dim : o.rank;
  e.projected = e.rank != head_dim;
  if (!e.projected) {
    require(o.q_projection == nullptr && o.k_projection == nullptr, "projections: given, but rank ", o.rank,
            " scans all ", head_dim, " coordinates without one");
    return e;
  }
  if (o.format == SALE_FP8) {
    require(e.rank >= 4 && e.rank % 4 == 0 && e.rank <= 60 && e.rank < head_dim, "rank: ", o.rank,
            " is neither 0, head_dim ", head_dim, ", nor for SALE_FP8 a multiple of 4 in 4 .. ",
            std::min(60, head_dim - 4));
  } else {
    require(e.rank >= 16 && e.rank % 16 == 0 && e.rank <= head_dim, "rank: ", o.rank,
            " is neither 0 nor a multiple of 16 up to head_dim ", head_dim);
  }
  const int64_t n = int64_t{kv_heads} * head_dim * e.rank;
  const auto copy = [&](const char* name, const float* from) {
    require(from != nullptr, name, ": null, but rank ", o.rank, " is below head_dim ", head_dim);
    for (int64_t i = 0; i < n; ++i)
      require(std::isfinite(from[i]), name, ": element ", i, " is ", from[i], ", not finite");
    return std::vector<float>(from, from + n);
  };
  e.q_projection = copy("q_projection", o.q_projection);
  e.k_projection = copy("k_projection", o.k_projection);
  return e;
}

std::vector<float> check_thresholds(const sale_options& o, int32_t q_heads) {
  require(o.thresholds != nullptr, "thresholds: null; give one value or one per query head");
  require(o.n_thresholds == 1 || o.n_thresholds == q_heads, "n_thresholds: ", o.n_thresholds,
          " is neither 1 nor q_heads ", q_heads);
  for (int64_t i = 0; i < o.n_thresholds; ++i)
    require(std::isfinite(o.thresholds[i]) && o.thresholds[i] >= 0, "thresholds: element ", i, " is ", o.thresholds[i],
            ", not finite and >= 0");
  std::vector<float> t(static_cast<size_t>(q_heads), o.thresholds[0]);
  if (o.n_thresholds > 1) std::copy(o.thresholds, o.thresholds + o.n_thresholds, t.begin());
  return t;
}

void check_regions(const sale_problem& p, const sale_options& o) {
  const int32_t least = p.reference != nullptr ? 0 : 32;
  require(o.sink >= least && o.sink <= 256 && o.sink % 32 == 0, "sink: ", o.sink, " is not a multiple of 32 in ", least,
          " .. 256");
  require(o.local >= 32 && o.local <= 1024 && o.local % 32 == 0, "local: ", o.local,
          " is not a multiple of 32 in 32 .. 1024");
  require(o.dense_below >= 0, "dense_below: ", o.dense_below, " is negative");
  require(o.compute == SALE_COMPUTE_EXACT || o.compute == SALE_COMPUTE_INT8 || o.compute == SALE_COMPUTE_FP8 ||
              o.compute == SALE_COMPUTE_F16,
          "compute: ", static_cast<int>(o.compute),
          " is not SALE_COMPUTE_EXACT, SALE_COMPUTE_INT8, SALE_COMPUTE_FP8 or SALE_COMPUTE_F16");
  require(o.compensate == 0 || o.compensate == 1, "compensate: ", o.compensate, " is neither 0 nor 1");
  require(o.audit >= 0 && o.audit <= 65536, "audit: ", o.audit, " is not in 0 .. 65536");
  require(o.threads >= 0 && o.threads <= 1024, "threads: ", o.threads, " is not in 0 .. 1024");
}

}  // namespace sale
