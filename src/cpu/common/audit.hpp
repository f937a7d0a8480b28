// Audit: a few query rows of every head computed again over every key they see, and compared with what was written.
//
//   item      up to 64 lanes (row, head of the group) of one kv head, rows ascending
//   per lane  as in attend.hpp, and the softmax weight that fell into kept blocks
//
//   for each run of 4 key blocks:
//     pack K and V in f32                              <- shared by all lanes
//     for the lanes from the first that sees any:      S = Q K^T, mask, P = 2^(S c - m), kept += P of kept blocks,
//                                                      O += P V
//   exact = O / l; error = |out - exact|_1, size = |exact|_1, mass = kept / l
//
// Products are f32 whatever the plan's are, so that an audit sees what 8-bit or bf16 products do as well. Half of the
// time goes into products at a few lanes a block, so the floor is lanes x keys x d x 4 flops at the f32 rate.
#pragma once

#include "cpu/common/attend.hpp"

namespace sale {
namespace {

class Audit {
public:
  static size_t scratch(const Shape& shape) {
    Arena arena(nullptr);
    lay_out(shape, arena);
    return arena.used;
  }

  static void item(const HeadGroup& h, const int64_t* rows, int64_t begin, int64_t end, AuditedRow* to, void* scratch) {
    Arena arena(scratch);
    Lanes w = lay_out(h.shape, arena);
    w.h = &h, w.rows = rows, w.begin = begin, w.count = end - begin;
    start(w);
    const int64_t blocks = (h.end_key(w.row(w.count - 1)) + k_block - 1) / k_block;
    for (int64_t first = 0; first < blocks; first += run_blocks) {
      // No row sees any of them.
      if ((first + run_blocks) * k_block <= h.first_key(w.row(0)) && first >= h.sink_blocks()) continue;
      step(w, first, blocks - first < run_blocks ? static_cast<int>(blocks - first) : run_blocks);
    }
    for (int64_t i = 0; i < w.count; ++i) to[i] = compare(w, i);
  }

private:
  struct Lanes {
    const HeadGroup* h;
    const int64_t* rows;
    int64_t begin, count;
    float *q, *o, *m, *l;  // [lanes, d], [lanes, d], [lanes], [lanes, 16]
    double* kept;          // [lanes]
    float *s, *p;          // [lanes, run_keys]
    uint32_t *k[run_blocks], *v[run_blocks];

    int64_t row(int64_t lane) const { return rows[(begin + lane) / h->shape.group]; }
    int64_t head(int64_t lane) const { return (begin + lane) % h->shape.group; }
  };

  static Lanes lay_out(const Shape& shape, Arena& arena) {
    const int32_t d = shape.head_dim;
    Lanes w{};
    w.q = arena.take<float>(audit_lanes * d);
    w.o = arena.take<float>(audit_lanes * d);
    w.m = arena.take<float>(audit_lanes);
    w.l = arena.take<float>(audit_lanes * 16);
    w.kept = arena.take<double>(audit_lanes);
    w.s = arena.take<float>(audit_lanes * run_keys);
    w.p = arena.take<float>(audit_lanes * run_keys);
    for (auto& k : w.k) k = arena.take<uint32_t>(ScoreF32::k_words(d));
    for (auto& v : w.v) v = arena.take<uint32_t>(MixF32::v_words(d));
    return w;
  }

  static void start(Lanes& w) {
    const int32_t d = w.h->shape.head_dim;
    std::memset(w.q, 0, static_cast<size_t>(audit_lanes * d) * 4);
    std::memset(w.o, 0, static_cast<size_t>(audit_lanes * d) * 4);
    std::memset(w.l, 0, static_cast<size_t>(audit_lanes * 16) * 4);
    for (int64_t i = 0; i < audit_lanes; ++i) w.m[i] = empty_maximum, w.kept[i] = 0;
    for (int64_t i = 0; i < w.count; ++i)
      load_row(w.h->q, w.h->shape.dtype, w.head(i) * w.h->q_head + w.row(i) * w.h->q_token, d, w.q + i * d);
  }

  static bool keeps(const Lanes& w, int64_t lane, int64_t block) {
    const int64_t word = w.h->row_word[w.row(lane) / q_block] + block / 64;
    return (w.h->bits[w.head(lane) * w.h->head_words + word] >> (block % 64) & 1) != 0;
  }

  // Key blocks [first, first + blocks), at most a run of them.
  static void step(const Lanes& w, int64_t first, int blocks) {
    const HeadGroup& h = *w.h;
    const int32_t d = h.shape.head_dim;
    for (int b = 0; b < blocks; ++b) {
      const int64_t key = (first + b) * k_block, keys = h.k_len - key < k_block ? h.k_len - key : k_block;
      ScoreF32::pack_k(h, key, keys, w.k[b]);
      MixF32::pack_v(h, key, keys, w.v[b]);
    }
    int64_t lane = 0;
    while (h.end_key(w.row(lane)) <= first * k_block) ++lane;
    lane = lane / row_step * row_step;
    const int64_t padded = (w.count + row_step - 1) / row_step * row_step - lane;
    ScoreF32::scores(h, padded, w.q + lane * d, nullptr, w.k, blocks, w.s);
    const int columns = blocks * static_cast<int>(k_block);
    for (int64_t i = 0; i < padded; ++i) {
      float *s = w.s + i * run_keys, *p = w.p + i * run_keys;
      // Lanes that are there to fill up see nothing.
      const int64_t seen = lane + i < w.count ? h.end_key(w.row(lane + i)) - first * k_block : 0;
      for (int64_t c = seen < 0 ? 0 : seen; c < columns; ++c) s[c] = -__builtin_inff();
      const int64_t behind = lane + i < w.count ? h.first_key(w.row(lane + i)) - first * k_block : 0;
      const int64_t sink = h.sink - first * k_block;
      for (int64_t c = sink < 0 ? 0 : sink; c < behind && c < columns; ++c) s[c] = -__builtin_inff();
      soften(w, lane + i, first, blocks, s, p);
    }
    MixF32::mix(h, padded, w.p, w.v, blocks, w.o + lane * d);
  }

  static void soften(const Lanes& w, int64_t lane, int64_t first, int blocks, const float* s, float* p) {
    const int32_t d = w.h->shape.head_dim;
    const float before = w.m[lane];
    Attend<ScoreF32, MixF32>::soften_row(s, blocks * static_cast<int>(k_block), splat(w.h->shape.scale * log2e),
                                         w.m[lane], w.l + lane * 16, w.o + lane * d, d, p);
    if (lane >= w.count) return;
    if (w.m[lane] != before) w.kept[lane] *= static_cast<double>(__builtin_exp2f(before - w.m[lane]));
    for (int b = 0; b < blocks; ++b)
      if ((first + b) * k_block < w.h->end_key(w.row(lane)) && keeps(w, lane, first + b))
        w.kept[lane] += static_cast<double>(sum_lanes(load(p + b * k_block) + load(p + b * k_block + 16)));
  }

  static AuditedRow compare(const Lanes& w, int64_t lane) {
    const HeadGroup& h = *w.h;
    const int32_t d = h.shape.head_dim;
    alignas(64) float out[256];
    load_row(h.out, h.shape.dtype, w.head(lane) * h.out_head + w.row(lane) * h.out_token, d, out);
    float l = sum_lanes(load(w.l + lane * 16));
    if (w.m[lane] == empty_maximum && l < 1.0f) l = 0;  // as in attend.hpp
    const double inverse = l == 0 ? 0 : 1 / static_cast<double>(l);
    AuditedRow row{0, 0, l == 0 ? 1 : w.kept[lane] * inverse};
    if (row.mass > 1) row.mass = 1;  // two sums of the same, in another order
    for (int32_t c = 0; c < d; ++c) {
      const double exact = static_cast<double>(w.o[lane * d + c]) * inverse;
      row.error += __builtin_fabs(static_cast<double>(out[c]) - exact);
      row.size += __builtin_fabs(exact);
    }
    return row;
  }
};

}  // namespace
}  // namespace sale
