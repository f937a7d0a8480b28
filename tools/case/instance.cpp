#include "case/instance.hpp"

#include <algorithm>
#include <cmath>

namespace sale_case {
namespace {

constexpr unsigned char input_fill = 0xff;   // NaN in every type: a gap that is read shows
constexpr unsigned char output_fill = 0xcb;  // a large negative number in every type
constexpr int64_t packed_gap = 3;            // tokens between packed sequences

template <class... Words>
[[noreturn]] void refuse(const Words&... words) {
  std::string s;
  ((s += words), ...);
  throw Error(s);
}

// Bytes of a tensor, or a refusal: every size here comes from a line of text.
size_t tensor_bytes(const sale_strides& s, int64_t batch, int64_t heads, int64_t tokens, int64_t d, sale_dtype t,
                    int64_t most) {
  const auto wide = [](int64_t a, int64_t b) { return static_cast<__int128>(a) * b; };
  const __int128 elements = wide(s.batch, batch - 1) + wide(s.head, heads - 1) + wide(s.token, tokens - 1) + d;
  const __int128 bytes = elements * bytes_of(t);
  if (bytes > most) refuse("the tensors of this problem need more than ", std::to_string(most), " bytes each");
  return static_cast<size_t>(bytes);
}

// Products of sizes that are within 2^31 each may pass 2^63: they are capped here and refused by tensor_bytes.
int64_t times(int64_t a, int64_t b) {
  int64_t r;
  return __builtin_mul_overflow(a, b, &r) ? INT64_MAX / 4 : std::min(r, INT64_MAX / 4);
}

sale_strides strides_of(Layout layout, int64_t heads, int64_t tokens, int64_t d) {
  switch (layout) {
    case Layout::bhld: return {times(times(heads, tokens), d), times(tokens, d), d};
    case Layout::fused:  // out only
    case Layout::blhd: return {times(times(tokens, heads), d), d, times(heads, d)};
    case Layout::packed: return {0, d, times(heads, d)};
    case Layout::padded: break;
  }
  const int64_t row = d + 16, head = times(tokens, row) + 48;
  return {times(heads, head) + 80, head, row};
}

}  // namespace

size_t Tensor::offset(int64_t b, int64_t h, int64_t token) const {
  const int64_t at = b * strides.batch + h * strides.head + (starts[static_cast<size_t>(b)] + token) * strides.token;
  return first + static_cast<size_t>(at * bytes_of(dtype));
}

std::vector<float> Tensor::head(int64_t b, int64_t h) const {
  const int64_t n = lengths[static_cast<size_t>(b)];
  std::vector<float> values(static_cast<size_t>(n * head_dim));
  for (int64_t i = 0; i < n; ++i) {
    const std::byte* from = row(b, h, i);
    for (int64_t c = 0; c < head_dim; ++c)
      values[static_cast<size_t>(i * head_dim + c)] = load(from + c * bytes_of(dtype), dtype);
  }
  return values;
}

void Tensor::set_head(int64_t b, int64_t h, const std::vector<float>& values) {
  for (int64_t i = 0; i < lengths[static_cast<size_t>(b)]; ++i) {
    std::byte* to = row(b, h, i);
    for (int64_t c = 0; c < head_dim; ++c)
      store(to + c * bytes_of(dtype), dtype, values[static_cast<size_t>(i * head_dim + c)]);
  }
}

Memory::Ranges Tensor::ranges() const {
  Memory::Ranges r;
  const size_t bytes = static_cast<size_t>(head_dim * bytes_of(dtype));
  for (size_t b = 0; b < lengths.size(); ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < lengths[b]; ++i) {
        const size_t at = offset(static_cast<int64_t>(b), h, i);
        r.emplace_back(at, at + bytes);
      }
  return r;
}

Instance::Instance(const Case& the_case, int64_t most_bytes) : c(the_case) {
  check();
  const auto pick = [](const std::vector<int64_t>& list, int64_t b, int64_t otherwise) {
    return list.empty() ? otherwise : list[static_cast<size_t>(b)];
  };
  int64_t q_at = 0, k_at = 0;
  for (int64_t b = 0; b < c.batch; ++b) {
    Sequence s{pick(c.q_lens, b, c.q_len), pick(c.k_lens, b, c.k_len), pick(c.q_offsets, b, c.q_offset), 0, 0};
    if (s.q_offset == SALE_AUTO) s.q_offset = s.k_len - s.q_len;
    if (s.q_offset < 0) refuse("offset=auto: sequence ", std::to_string(b), " has more queries than keys");
    if (c.layout == Layout::packed) {
      s.q_start = q_at;
      s.k_start = k_at;
      q_at += s.q_len + packed_gap;
      k_at += s.k_len + packed_gap;
    }
    longest_q_ = std::max(longest_q_, s.q_len);
    longest_k_ = std::max(longest_k_, s.k_len);
    sequences.push_back(s);
  }
  lay_out(most_bytes);
  if (c.rank != 0 && c.rank != c.head_dim) {
    q_projection = random_projections(c.seed, c.kv_heads, c.head_dim, c.rank);
    k_projection = q_projection;
  }
  describe();
  fill(*this);
}

// Only what the tensors themselves need; the rest is for the library to refuse.
void Instance::check() const {
  const auto within = [](const char* word, int64_t value, int64_t most) {
    if (value < 1 || value > most) refuse(word, "=", std::to_string(value), ": not in 1 .. ", std::to_string(most));
  };
  within("batch", c.batch, 65536);
  within("qheads", c.q_heads, 65536);
  within("kvheads", c.kv_heads, 65536);
  within("d", c.head_dim, 4096);
  if (c.rank != 0) within("estimator: rank", c.rank, c.head_dim);
  const int64_t most = int64_t{1} << 31;
  within("q", c.q_len, most);
  within("k", c.k_len, most);
  for (int64_t n : c.q_lens) within("qlens", n, most);
  for (int64_t n : c.k_lens) within("klens", n, most);
}

void Instance::lay_out(int64_t most) {
  const int64_t d = c.head_dim;
  const bool packed = c.layout == Layout::packed;
  const auto make = [&](Tensor& t, int64_t heads, bool keys, unsigned char fill) {
    int64_t tokens = keys ? longest_k_ : longest_q_;
    if (packed) {
      const Sequence& last = sequences.back();
      tokens = keys ? last.k_start + last.k_len : last.q_start + last.q_len;
    }
    t.dtype = c.dtype;
    t.heads = heads;
    t.head_dim = d;
    t.strides = strides_of(c.layout, heads, tokens, d);
    for (const Sequence& s : sequences) {
      t.starts.push_back(keys ? s.k_start : s.q_start);
      t.lengths.push_back(keys ? s.k_len : s.q_len);
    }
    t.memory =
        std::make_shared<Memory>(tensor_bytes(t.strides, packed ? 1 : c.batch, heads, tokens, d, c.dtype, most), fill);
  };
  make(out, c.q_heads, false, output_fill);
  if (c.layout == Layout::fused) {
    const int64_t heads = c.q_heads + 2 * int64_t{c.kv_heads}, tokens = std::max(longest_q_, longest_k_);
    make(q, heads, false, input_fill);
    q.strides = strides_of(Layout::blhd, heads, tokens, d);
    q.memory = std::make_shared<Memory>(tensor_bytes(q.strides, c.batch, heads, tokens, d, c.dtype, most), input_fill);
    q.heads = c.q_heads;
    k = v = q;
    k.heads = v.heads = c.kv_heads;
    for (Tensor* t : {&k, &v})
      for (size_t b = 0; b < sequences.size(); ++b) t->lengths[b] = sequences[b].k_len;
    k.first = static_cast<size_t>(c.q_heads * d * bytes_of(c.dtype));
    v.first = k.first + static_cast<size_t>(c.kv_heads * d * bytes_of(c.dtype));
  } else {
    make(q, c.q_heads, false, input_fill);
    make(k, c.kv_heads, true, input_fill);
    make(v, c.kv_heads, true, input_fill);
  }
  const size_t rows = tensor_bytes({0, longest_q_, 1}, 1, times(c.batch, c.q_heads), longest_q_, 1, SALE_F32, most);
  lse = std::make_unique<Memory>(rows, output_fill);
}

void Instance::describe() {
  problem.struct_size = sizeof problem;
  problem.device = SALE_HOST;
  problem.batch = c.batch;
  problem.q_heads = c.q_heads;
  problem.kv_heads = c.kv_heads;
  problem.head_dim = c.head_dim;
  problem.dtype = c.dtype;
  problem.q_len = c.q_len;
  problem.k_len = c.k_len;
  problem.q_offset = c.q_offset;
  problem.scale = c.scale;
  problem.window = c.window;
  problem.window_sink = c.window_sink ? 1 : 0;
  problem.q = q.strides;
  problem.k = k.strides;
  problem.v = v.strides;
  problem.out = out.strides;
  const auto list = [](const std::vector<int64_t>& l) { return l.empty() ? nullptr : l.data(); };
  problem.q_lens = list(c.q_lens);
  problem.k_lens = list(c.k_lens);
  problem.q_offsets = list(c.q_offsets);
  if (c.layout == Layout::packed) {
    problem.q_starts = q.starts.data();
    problem.k_starts = k.starts.data();
  }
  layer.struct_size = sizeof layer;
  layer.q_heads = c.q_heads;
  layer.kv_heads = c.kv_heads;
  layer.head_dim = c.head_dim;
  layer.dtype = c.dtype;
  layer.device = SALE_HOST;
  layer.thresholds = c.taus.data();
  layer.n_thresholds = static_cast<int64_t>(c.taus.size());
  layer.format = c.format;
  layer.rank = c.rank;
  layer.q_projection = q_projection.empty() ? nullptr : q_projection.data();
  layer.k_projection = k_projection.empty() ? nullptr : k_projection.data();
  layer.sink = c.sink;
  layer.local = c.local;
  layer.backend = c.backend.empty() ? nullptr : c.backend.c_str();
  layer.threads = c.threads;
  options.struct_size = sizeof options;
  options.dense_below = c.dense_below;
  options.compute = c.compute;
  options.compensate = c.compensate ? 1 : 0;
}

sale_call Instance::call() const {
  sale_call one{};
  one.struct_size = sizeof one;
  one.q = q.data();
  one.k = k.data();
  one.v = v.data();
  one.out = out.data();
  one.lse = reinterpret_cast<float*>(lse->begin());
  one.reference = reference.empty() ? nullptr : reference.data();
  return one;
}

float Instance::scale() const { return c.scale != 0 ? c.scale : 1.0f / std::sqrt(static_cast<float>(c.head_dim)); }

void Instance::clear_outputs() {
  out.memory->refill();
  lse->refill();
}

bool Instance::outputs_intact() const {
  Memory::Ranges rows;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.q_heads; ++h) {
      const size_t at = static_cast<size_t>((b * c.q_heads + h) * longest_q_ * 4);
      rows.emplace_back(at, at + static_cast<size_t>(sequences[static_cast<size_t>(b)].q_len * 4));
    }
  return out.memory->untouched_outside(out.ranges()) && lse->untouched_outside(rows);
}

}  // namespace sale_case
