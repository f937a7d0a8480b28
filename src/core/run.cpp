// The stages, cut into items for the thread pool.
#include <algorithm>

#include "core/checked.hpp"
#include "core/objects.hpp"
#include "cpu/common/load.hpp"

namespace sale {
namespace {

const char* at(const void* base, sale_dtype dtype, int64_t elements) {
  return static_cast<const char*>(base) + elements * (dtype == SALE_F32 ? 4 : 2);
}

// One kv head of one sequence, or a range of its key blocks.
struct Span {
  int32_t sequence, kv_head;
  int64_t begin, end;
};

// Ranges of up to `step` key blocks of every head of the sequences that are not dense.
template <class F>
void each_span(const Plan& plan, int64_t step, F&& f) {
  int64_t total = 0;
  for (const Sequence& s : plan.sequences)
    if (!s.dense) total += ceil_div(ceil_div(s.k_len, k_block), step) * plan.problem.kv_heads;
  plan.pool->run(total, [&](int64_t i, int) {
    for (int32_t b = 0; b < plan.problem.batch; ++b) {
      const Sequence& s = plan.sequences[static_cast<size_t>(b)];
      if (s.dense) continue;
      const int64_t blocks = ceil_div(s.k_len, k_block), ranges = ceil_div(blocks, step);
      const int64_t here = ranges * plan.problem.kv_heads;
      if (i >= here) {
        i -= here;
        continue;
      }
      const int64_t begin = i % ranges * step;
      f(Span{b, static_cast<int32_t>(i / ranges), begin, std::min(begin + step, blocks)});
      return;
    }
  });
}

constexpr int64_t span_blocks = 64;

}  // namespace

HeadGroup Call::head_group(int32_t sequence, int32_t kv_head) const {
  const Plan& p = *plan;
  const sale_problem& x = p.problem;
  const Sequence& s = p.sequences[static_cast<size_t>(sequence)];
  const int64_t head = int64_t{kv_head} * p.group, d = x.head_dim;
  HeadGroup h{};
  h.shape = p.shape();
  h.q = at(q, x.dtype, sequence * x.q.batch + head * x.q.head + s.q_start * x.q.token);
  h.k = at(k, x.dtype, sequence * x.k.batch + kv_head * x.k.head + s.k_start * x.k.token);
  if (v != nullptr) h.v = at(v, x.dtype, sequence * x.v.batch + kv_head * x.v.head + s.k_start * x.v.token);
  if (out != nullptr)
    h.out = const_cast<char*>(at(out, x.dtype, sequence * x.out.batch + head * x.out.head + s.q_start * x.out.token));
  h.lse_head = s.lse_rows;
  if (lse != nullptr) h.lse = lse + (int64_t{sequence} * x.q_heads + head) * s.lse_rows;
  h.q_token = x.q.token;
  h.q_head = x.q.head;
  h.k_token = x.k.token;
  h.v_token = x.v.token;
  h.out_token = x.out.token;
  h.out_head = x.out.head;
  h.q_len = s.q_len;
  h.k_len = s.k_len;
  h.q_offset = s.q_offset;
  h.thresholds = p.thresholds.data() + head;
  h.dense = s.dense;
  h.bits = bits + s.bits_at + head * s.words;
  h.head_words = s.words;
  h.row_word = s.row_word.data();
  const auto floats = [&](size_t offset) { return reinterpret_cast<float*>(workspace + offset); };
  if (p.estimator.format == SALE_INT4) {
    h.q_mean = floats(p.workspace.q_means_at) + (sequence * x.q_heads + head) * d;
    h.bias = floats(s.bias_at) + head * h.bias_stride();
  }
  if (p.compute == SALE_COMPUTE_INT8) h.k_mean = floats(p.workspace.k_means_at) + (sequence * x.kv_heads + kv_head) * d;
  if (s.dense) return h;
  if (indexes != nullptr) {
    h.index = indexes[sequence]->view(kv_head);
  } else {
    const IndexMap m = index_map(x.kv_heads, x.head_dim, p.estimator, s.k_len);
    char* base = workspace + s.index_at;
    h.index.codes = reinterpret_cast<int8_t*>(base + m.codes_at + m.head_codes * static_cast<size_t>(kv_head));
    h.index.scales = reinterpret_cast<float*>(base + m.scales_at + m.head_scales * static_cast<size_t>(kv_head));
    h.index.smoothing = reinterpret_cast<float*>(base + m.smoothing_at) + kv_head * d;
    if (p.estimator.projected) h.index.projection = p.estimator.k_projection.data() + kv_head * d * p.estimator.rank;
  }
  if (p.estimator.projected) h.q_projection = p.estimator.q_projection.data() + kv_head * d * p.estimator.rank;
  return h;
}

void mean_rows(const void* base, sale_dtype dtype, int64_t head_stride, int64_t token_stride, int32_t head,
               int64_t rows, int32_t head_dim, float* to) {
  double sum[256] = {};
  float row[256];
  for (int64_t r = 0; r < rows; ++r) {
    load_row(base, dtype, head * head_stride + r * token_stride, head_dim, row);
    for (int32_t c = 0; c < head_dim; ++c) sum[c] += static_cast<double>(row[c]);
  }
  for (int32_t c = 0; c < head_dim; ++c) to[c] = static_cast<float>(sum[c] / static_cast<double>(rows));
}

void make_index(const Call& call) {
  const Plan& plan = *call.plan;
  const int32_t d = plan.problem.head_dim;
  each_span(plan, int64_t{1} << 40, [&](const Span& span) {
    const HeadGroup h = call.head_group(span.sequence, span.kv_head);
    mean_rows(h.k, h.shape.dtype, 0, h.k_token, 0, h.k_len, d, const_cast<float*>(h.index.smoothing));
  });
  each_span(plan, span_blocks, [&](const Span& span) {
    plan.kernels->index(call.head_group(span.sequence, span.kv_head), span.begin, span.end);
  });
}

void make_means(const Call& call) {
  const Plan& plan = *call.plan;
  const int32_t d = plan.problem.head_dim;
  if (plan.compute == SALE_COMPUTE_INT8 && call.v != nullptr) {
    const int64_t heads = int64_t{plan.problem.batch} * plan.problem.kv_heads;
    plan.pool->run(heads, [&](int64_t i, int) {
      const HeadGroup h = call.head_group(static_cast<int32_t>(i / plan.problem.kv_heads),
                                          static_cast<int32_t>(i % plan.problem.kv_heads));
      mean_rows(h.k, h.shape.dtype, 0, h.k_token, 0, h.k_len, d, const_cast<float*>(h.k_mean));
    });
  }
}

void select_blocks(const Call& call) {
  const Plan& plan = *call.plan;
  const int32_t d = plan.problem.head_dim;
  if (plan.estimator.format == SALE_INT4) {
    each_span(plan, int64_t{1} << 40, [&](const Span& span) {
      const HeadGroup h = call.head_group(span.sequence, span.kv_head);
      for (int32_t g = 0; g < plan.group; ++g)
        mean_rows(h.q, h.shape.dtype, h.q_head, h.q_token, g, h.q_len, d, const_cast<float*>(h.q_mean) + g * d);
    });
    each_span(plan, span_blocks, [&](const Span& span) {
      plan.kernels->bias(call.head_group(span.sequence, span.kv_head), span.begin, span.end);
    });
  }
  plan.pool->run(static_cast<int64_t>(plan.items.size()), [&](int64_t i, int thread) {
    const Item& item = plan.items[static_cast<size_t>(i)];
    plan.kernels->select(
        call.head_group(item.sequence, item.kv_head), item.tile_begin, item.tile_end,
        call.workspace + plan.workspace.scratch_at + plan.workspace.scratch_per_thread * static_cast<size_t>(thread));
  });
}

void attend_blocks(const Call& call) {
  const Plan& plan = *call.plan;
  plan.pool->run(static_cast<int64_t>(plan.items.size()), [&](int64_t i, int thread) {
    const Item& item = plan.items[static_cast<size_t>(i)];
    plan.kernels->attend(
        call.head_group(item.sequence, item.kv_head), item.tile_begin, item.tile_end,
        call.workspace + plan.workspace.scratch_at + plan.workspace.scratch_per_thread * static_cast<size_t>(thread));
  });
}

}  // namespace sale
