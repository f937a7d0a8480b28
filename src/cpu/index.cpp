// Key indexes of the CPU backends: made, grown, kept in pages; and keys and values out of theirs.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>

#include "core/objects.hpp"
#include "cpu/common/load.hpp"
#include "cpu/parts.hpp"

namespace sale::cpu {
namespace {

// Rows [begin, end) copied together.
void gather(const Rows& from, int64_t begin, int64_t end, int32_t head_dim, void* to) {
  const size_t row = static_cast<size_t>(head_dim * element_bytes(from.dtype));
  auto* next = static_cast<char*>(to);
  for (int64_t r = begin; r < end; ++r, next += row) std::memcpy(next, at(from.base, from.dtype, from.at(r)), row);
}

// The numbers that the bytes of SALE_KV_E4M3 are.
constexpr auto e4m3_numbers = [] {
  std::array<float, 256> numbers{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float x = static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa) / 512;  // of the smallest normal numbers
    for (int e = 1; e < exponent; ++e) x *= 2;
    if (exponent == 15 && mantissa == 7) x = std::numeric_limits<float>::quiet_NaN();
    numbers[static_cast<size_t>(code)] = code < 128 ? x : -x;
  }
  return numbers;
}();
static_assert(e4m3_numbers[0x01] == 0x1p-9f && e4m3_numbers[0x08] == 0x1p-6f && e4m3_numbers[0xfe] == -448);

// Such rows [begin, end), widened.
void gather_e4m3(const Rows& from, int64_t begin, int64_t end, int32_t head_dim, float scale, void* to) {
  float row[256];
  for (int64_t r = begin; r < end; ++r) {
    const auto* codes = static_cast<const uint8_t*>(from.base) + from.at(r);
    for (int32_t c = 0; c < head_dim; ++c) row[c] = e4m3_numbers[codes[c]] * scale;
    store_row(to, from.dtype, (r - begin) * head_dim, head_dim, row);
  }
}

// A page of codes of one sequence: where block `b` of a kv head is in it.
struct PageView {
  const Call& call;
  IndexMap map;
  int64_t page_blocks, code_bytes, scale_bytes;
  explicit PageView(const Call& c)
      : call(c),
        map(index_map(c.plan->problem.kv_heads, c.plan->problem.head_dim, c.plan->form, c.plan->problem.page_size)),
        page_blocks(c.plan->problem.page_size / k_block),
        code_bytes(k_block * c.plan->form.row_bytes()),
        scale_bytes(c.plan->form.groups() * 4) {}
  int32_t page_of(int64_t sequence, int64_t b) const {
    return call.page_table[sequence * call.plan->problem.pages + b / page_blocks];
  }
  char* page(const Span& span, int64_t b) const {
    return static_cast<char*>(call.pages.memory) + page_of(span.sequence, b) * call.pages.page_bytes;
  }
  // Keys of the block's page, up to the block's end or the sequence's.
  int32_t keys_to(const Sequence& s, int64_t b) const {
    const int64_t first = b / page_blocks * page_blocks;
    return static_cast<int32_t>(std::min((b + 1) * k_block, s.sight.k_len) - first * k_block);
  }
  int32_t& number(const Sequence& s, int64_t b) const {
    return call.pages.coded[page_of(&s - call.plan->sequences.data(), b)];
  }
  bool coded(const Sequence& s, int64_t b) const {
    return call.pages.coded == nullptr ? b < s.first_uncoded() : number(s, b) >= keys_to(s, b);
  }
  char* codes(const Span& span, int64_t b) const {
    return page(span, b) + map.codes_at + map.head_codes * static_cast<size_t>(span.kv_head) +
           b % page_blocks * code_bytes;
  }
  char* scales(const Span& span, int64_t b) const {
    return page(span, b) + map.scales_at + map.head_scales * static_cast<size_t>(span.kv_head) +
           b % page_blocks * scale_bytes;
  }
};

// Codes out of their pages, where there are some; the others made, and put into theirs. Where pages say what they hold,
// one sequence after the other: a page that two share is made by the first.
void make_paged_index(const Call& call) {
  const Plan& plan = *call.plan;
  const PageView pages(call);
  const auto run = [&](auto&& wanted) {
    each_span(call, span_blocks, wanted, [&](const Span& span) {
      const Sequence& s = plan.sequences[static_cast<size_t>(span.sequence)];
      const HeadGroup h = head_group(call, span.sequence, span.kv_head);
      const auto copy = [&](int64_t b, bool out) {
        const auto one = [&](char* own, char* page, int64_t bytes) {
          std::memcpy(out ? own : page, out ? page : own, static_cast<size_t>(bytes));
        };
        one(reinterpret_cast<char*>(h.index.codes) + b * pages.code_bytes, pages.codes(span, b), pages.code_bytes);
        one(reinterpret_cast<char*>(h.index.scales) + b * pages.scale_bytes, pages.scales(span, b), pages.scale_bytes);
      };
      for (int64_t b = span.begin, end; b < span.end; b = end) {
        const bool coded = pages.coded(s, b);
        for (end = b + 1; end < span.end && pages.coded(s, end) == coded;) ++end;
        if (!coded) state(plan).kernels->index(h, b, end);
        if (!coded && call.pages.made != nullptr && span.kv_head == 0)
          std::atomic_ref(*call.pages.made) += std::min(end * k_block, s.sight.k_len) - b * k_block;
        for (int64_t i = b; i < end && (!coded || !s.dense); ++i) copy(i, coded);
      }
    });
  };
  if (call.pages.coded == nullptr) return run(indexed);
  for (const Sequence& one : plan.sequences) {
    if (!one.indexed) continue;
    run([&](const Sequence& s) { return &s == &one; });
    for (int64_t first = 0; first < Sight::blocks_of(one.sight.k_len); first += pages.page_blocks) {
      int32_t& coded = pages.number(one, first);
      coded = std::max(coded, pages.keys_to(one, first + pages.page_blocks - 1));
    }
  }
}

}  // namespace

// Codes [kv_heads, keys rounded up to 32, row_bytes], scales [kv_heads, blocks, groups], smoothing [kv_heads,
// head_dim].
IndexMap index_map(int32_t kv_heads, int32_t head_dim, const Form& e, int64_t keys) {
  const int64_t blocks = ceil_div(keys, k_block);
  IndexMap m{};
  m.head_codes = aligned(blocks * k_block * e.row_bytes());
  m.head_scales = aligned(blocks * e.groups() * 4);
  m.codes_at = 0;
  m.scales_at = m.head_codes * static_cast<size_t>(kv_heads);
  m.smoothing_at = m.scales_at + m.head_scales * static_cast<size_t>(kv_heads);
  m.total = m.smoothing_at + aligned(int64_t{kv_heads} * head_dim * 4);
  return m;
}

IndexView view_of(char* base, const IndexMap& m, const Layer& layer, int32_t kv_head) {
  const size_t h = static_cast<size_t>(kv_head);
  const int64_t d = layer.head_dim;
  IndexView view{};
  view.codes = reinterpret_cast<int8_t*>(base + m.codes_at + m.head_codes * h);
  view.scales = reinterpret_cast<float*>(base + m.scales_at + m.head_scales * h);
  view.smoothing =
      (layer.smoothing.empty() ? reinterpret_cast<const float*>(base + m.smoothing_at) : layer.smoothing.data()) +
      kv_head * d;
  if (layer.form.projected) view.projection = layer.k_projection.data() + kv_head * d * layer.form.rank;
  return view;
}
IndexView view_of(const sale_index& index, int32_t kv_head) {
  return view_of(index.part(0), index.map, *index.layer, kv_head);
}
// Mean over `n` rows, in double, ascending.
void mean_rows(const Rows& rows, int64_t n, int32_t head_dim, float* to) {
  double sum[256] = {};
  float row[256];
  for (int64_t r = 0; r < n; ++r) {
    load_row(rows.base, rows.dtype, rows.at(r), head_dim, row);
    for (int32_t c = 0; c < head_dim; ++c) sum[c] += static_cast<double>(row[c]);
  }
  for (int32_t c = 0; c < head_dim; ++c) to[c] = static_cast<float>(sum[c] / static_cast<double>(n));
}

void update(sale_index& index, const IndexUpdate& u) {
  const Layer& layer = *index.layer;
  const int32_t d = layer.head_dim;
  Workers& pool = *state(layer).workers;
  HeadGroup h{};
  h.shape.dtype = layer.dtype;
  h.shape.head_dim = d;
  h.shape.group = 1;
  h.shape.rank = layer.form.rank;
  h.shape.row_bytes = layer.form.row_bytes();
  h.shape.format = layer.form.format;
  h.k_token = u.strides.token;
  h.k_len = u.k_len;
  const auto rows = [&](int64_t i) {
    return Rows{at(u.k, layer.dtype, i * u.strides.head),
                layer.dtype,
                u.strides.token,
                index.page_size,
                u.strides.batch,
                u.pages};
  };
  const auto head = [&](int64_t i) {
    HeadGroup one = h;
    one.k = rows(i).base;
    one.index = view_of(index, static_cast<int32_t>(i));
    return one;
  };
  if (!index.smoothed)
    pool.run(layer.kv_heads,
             [&](int64_t i, int) { mean_rows(rows(i), u.k_len, d, const_cast<float*>(head(i).index.smoothing)); });
  const int64_t first = index.length / k_block, blocks = ceil_div(u.k_len, k_block);
  const int64_t ranges = ceil_div(blocks - first, span_blocks);
  pool.run(ranges * layer.kv_heads, [&](int64_t i, int) {
    const int64_t begin = first + i % ranges * span_blocks, end = std::min(begin + span_blocks, blocks);
    HeadGroup one = head(i / ranges);
    if (index.page_size == 0) return state(layer).kernels->index(one, begin, end);
    // A block at a time, put together from its pages.
    alignas(64) char block[k_block * 256 * 4];
    one.k_token = d;
    for (int64_t b = begin; b < end; ++b) {
      gather(rows(i / ranges), b * k_block, std::min((b + 1) * k_block, u.k_len), d, block);
      one.k = at(block, layer.dtype, -b * k_block * d);
      state(layer).kernels->index(one, b, b + 1);
    }
  });
}

void codes(const sale_index& index, int32_t head, const int8_t** c, const float** scales, const float** smoothing) {
  const IndexView view = view_of(index, head);
  if (c != nullptr) *c = view.codes;
  if (scales != nullptr) *scales = view.scales;
  if (smoothing != nullptr) *smoothing = view.smoothing;
}

void forget(const Layer&, const sale_index_slots& slots) {
  for (int64_t i = 0; i < slots.n_slots; ++i) {
    const int64_t slot = slots.slots[i], page = slot / slots.page_size;
    if (slot < 0 || page >= slots.pages) continue;
    for (int64_t l = 0; l < slots.layers; ++l) {
      int32_t& coded = slots.coded[l * slots.layer_stride + page];
      coded = std::min(coded, static_cast<int32_t>(slot % slots.page_size));
    }
  }
}

void make_index(const Call& call) {
  const Plan& plan = *call.plan;
  const int32_t d = plan.problem.head_dim;
  if (call.pages.memory != nullptr) return make_paged_index(call);
  if (call.layer->smoothing.empty())
    each_span(call, int64_t{1} << 40, indexed, [&](const Span& span) {
      const HeadGroup h = head_group(call, span.sequence, span.kv_head);
      mean_rows({h.k, h.shape.dtype, h.k_token}, h.k_len, d, const_cast<float*>(h.index.smoothing));
    });
  each_span(call, span_blocks, indexed, [&](const Span& span) {
    const HeadGroup h = head_group(call, span.sequence, span.kv_head);
    if (h.scanned()) state(plan).kernels->index(h, span.begin, span.end);
  });
}

// Pages put in order.
void order_pages(const Call& call) {
  const Plan& plan = *call.plan;
  const sale_problem& x = plan.problem;
  if (x.page_size == 0) return;
  const CpuPlan& mine = state(plan);
  const int64_t heads = x.kv_heads, d = x.head_dim;
  int64_t ranges = 0;
  for (const Sequence& s : plan.sequences) ranges = std::max(ranges, ceil_div(s.sight.k_len, span_blocks * k_block));
  workers(call).run(x.batch * heads * ranges, [&](int64_t i, int) {
    const int64_t b = i / (heads * ranges), head = i / ranges % heads;
    const Sequence& s = plan.sequences[static_cast<size_t>(b)];
    const int64_t from = i % ranges * span_blocks * k_block,
                  end = std::min(from + span_blocks * k_block, s.sight.k_len);
    const int64_t to = (head * mine.gathered_keys + mine.gathered_of[static_cast<size_t>(b)] + from) * d;
    const auto put = [&](const void* base, const sale_strides& by, const float* scales, size_t area) {
      if (base == nullptr || from >= end) return;
      const Rows rows{static_cast<const char*>(base) + head * by.head * kv_bytes(x),
                      x.dtype,
                      by.token,
                      x.page_size,
                      by.batch,
                      call.page_table + b * x.pages};
      char* const place = const_cast<char*>(at(call.workspace + area, x.dtype, to));
      if (x.kv_dtype == SALE_KV_E4M3)
        gather_e4m3(rows, from, end, x.head_dim, scales == nullptr ? 1.0f : scales[head], place);
      else
        gather(rows, from, end, x.head_dim, place);
    };
    put(call.k, call.strides.k, call.k_scales, mine.gathered_k_at);
    put(call.v, call.strides.v, call.v_scales, mine.gathered_v_at);
  });
}

}  // namespace sale::cpu
