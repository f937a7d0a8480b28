// Selection: which key blocks of a query tile can matter. docs/numerics.md sections 2 to 4.
//
//   item      one kv head, T query tiles, G heads: U = T*G lanes (head, tile)
//   lanes     of a vector are queries: a tile is 4 panels of 16
//   codes     of a panel: [rank/4 words][16 queries], 4 int8 a word
//
//   per lane, once:   code the queries; thresholds T[64] from sink and local keys (exact integers, 4 digit products)
//   for each chunk of 8 key blocks, for each lane, for each candidate block:
//       D = 32 keys x 64 queries of int8 products      floor: AMX 0.125 cycles a score at rank 128, VNNI 1
//       M = max over keys, per query                   one vector maximum per 16 scores: 0.03 to 0.06
//       keep when any float(M) * scale >= T            once per block
//
// `Scan` says how D and M are made. Block lists are bits in the caller's memory.
#pragma once

#include "cpu/common/codes.hpp"
#include "cpu/common/gemm.hpp"

namespace sale {
namespace {

constexpr int64_t scan_blocks = 8;
constexpr int panels = 4;

// The int8 products of a key block with a panel of queries, without tiles. Keys are the broadcast factor, so their
// codes carry DotI8's bias (added to a copy of the chunk) and the queries' sums undo it.
struct ScanDot {
  static constexpr int32_t bias = DotI8::a_bias;

  static int32_t width(int32_t rank) { return rank; }  // of a coded row in bytes
  static void begin() {}
  static void end() {}

  // out[32][16]
  static void products(const int8_t* keys, const uint32_t* panel, int32_t width, const int32_t* undo, int32_t* out) {
    multiply_keys<1>(keys, panel, width, undo, [&](int64_t j, int, const i32x16& acc) { store(out + j * 16, acc); });
  }
  // m[b][p] = max over the 32 keys of block b, for each of the four panels of q.
  static void maxima(const int8_t* keys, int64_t blocks, const uint32_t* q, int32_t width, const int32_t* undo,
                     i32x16 (*m)[panels]) {
    for (int64_t b = 0; b < blocks; ++b, keys += k_block * width) {
      for (int p = 0; p < panels; p += tile_panels) {
        i32x16 top[tile_panels];
        for (int i = 0; i < tile_panels; ++i) top[i] = splat(INT32_MIN);
        multiply_keys<tile_panels>(keys, q + p * 16 * (width / 4), width, undo + p * 16,
                                   [&](int64_t, int i, const i32x16& acc) { top[i] = max(top[i], acc); });
        for (int i = 0; i < tile_panels; ++i) m[b][p + i] = top[i];
      }
    }
  }

private:
  template <int P, class F>
  SALE_INLINE void multiply_keys(const int8_t* keys, const uint32_t* q, int32_t width, const int32_t* undo, F&& each) {
    constexpr int R = tile_rows;
    const int64_t words = width / 4;
    i32x16 start[P];
    for (int p = 0; p < P; ++p) start[p] = load(undo + p * 16);
    const uint32_t* k = reinterpret_cast<const uint32_t*>(keys);
    for (int64_t j = 0; j < k_block; j += R) {
      i32x16 acc[R][P];
      for (int i = 0; i < R; ++i)
        for (int p = 0; p < P; ++p) acc[i][p] = start[p];
      for (int64_t w = 0; w < words; ++w)
        for (int i = 0; i < R; ++i)
          for (int p = 0; p < P; ++p)
            acc[i][p] = DotI8::step(acc[i][p], k[(j + i) * words + w], q + (p * words + w) * 16);
      for (int i = 0; i < R; ++i)
        for (int p = 0; p < P; ++p) each(j + i, p, acc[i][p]);
    }
  }
};

// ln x for x > 0, the same bits everywhere.
static double natural_log(double x) {
  int64_t w = __builtin_bit_cast(int64_t, x);
  int64_t e = (w >> 52) - 1023;
  w = (w & 0xfffffffffffff) | 0x3ff0000000000000;
  double z = __builtin_bit_cast(double, w);
  if (z >= 1.4142135623730951) {
    z *= 0.5;
    ++e;
  }
  const double t = (z - 1) / (z + 1), u = t * t;
  double s = 1.0 / 17;
  for (int k = 15; k >= 3; k -= 2) s = s * u + 1.0 / k;
  s = s * u + 1;
  return static_cast<double>(e) * 0.693147180559945286226764 + 2 * t * s;
}

template <class Scan>
struct Select {
  struct Lane {
    int head;
    int64_t tile, rows;
    uint32_t* codes;      // [panels][width/4][16]
    int32_t* undo;        // [64]
    float* scale;         // [64], per query
    float* threshold;     // [64]
    int64_t first, last;  // candidate blocks
    uint64_t* bits;
  };

  struct Scratch {
    Lane* lanes;
    float *x, *y, *z;         // [64, d]: rows, smoothed, projected
    int8_t* codes;            // [64, width]
    int8_t *q_hi, *q_lo;      // [64, d]
    uint32_t *qp_hi, *qp_lo;  // the same, packed
    int32_t *undo_hi, *undo_lo;
    float *row_scale, *key_scale;
    int8_t *k_hi, *k_lo;         // [reference keys, d]
    int64_t* key_at;             // [reference keys]
    float* s;                    // [reference keys][16]
    int32_t *hh, *x1, *x2, *ll;  // [32][16]
    int8_t* chunk;               // biased codes of a chunk
  };

  static int64_t reference_keys(const Shape& s) { return s.sink + s.local + 2 * q_block; }

  static Scratch lay_out(const Shape& shape, int64_t lanes, Arena& a) {
    const int32_t d = shape.head_dim;
    const int64_t keys = reference_keys(shape), rows = q_block;
    Scratch s{};
    s.lanes = a.take<Lane>(lanes);
    s.x = a.take<float>(rows * d);
    s.y = a.take<float>(rows * d);
    s.z = a.take<float>(rows * shape.rank);
    s.q_hi = a.take<int8_t>(rows * d);
    s.codes = a.take<int8_t>(rows * Scan::width(shape.rank));
    s.q_lo = a.take<int8_t>(rows * d);
    s.qp_hi = a.take<uint32_t>(rows * d / 4);
    s.qp_lo = a.take<uint32_t>(rows * d / 4);
    s.undo_hi = a.take<int32_t>(rows);
    s.undo_lo = a.take<int32_t>(rows);
    s.row_scale = a.take<float>(rows);
    s.key_scale = a.take<float>(keys);
    s.k_hi = a.take<int8_t>(keys * d);
    s.k_lo = a.take<int8_t>(keys * d);
    s.key_at = a.take<int64_t>(keys);
    s.s = a.take<float>(keys * 16);
    s.hh = a.take<int32_t>(k_block * 16);
    s.x1 = a.take<int32_t>(k_block * 16);
    s.x2 = a.take<int32_t>(k_block * 16);
    s.ll = a.take<int32_t>(k_block * 16);
    s.chunk = a.take<int8_t>(scan_blocks * k_block * Scan::width(shape.rank));
    for (int64_t u = 0; u < lanes; ++u) {
      Lane lane{};
      lane.codes = a.take<uint32_t>(rows * Scan::width(shape.rank) / 4);
      lane.undo = a.take<int32_t>(rows);
      lane.scale = a.take<float>(rows);
      lane.threshold = a.take<float>(rows);
      if (s.lanes != nullptr) s.lanes[u] = lane;
    }
    return s;
  }

  static size_t scratch(const Shape& shape, int64_t tiles) {
    Arena arena(nullptr);
    lay_out(shape, tiles * shape.group, arena);
    return arena.used;
  }

  // int8 rows [64, width] to panels, with what undoes the keys' bias.
  static void pack(const int8_t* rows, int32_t width, uint32_t* to, int32_t* undo) {
    const uint32_t* at[q_block];
    for (int64_t r = 0; r < q_block; ++r) at[r] = reinterpret_cast<const uint32_t*>(rows + r * width);
    pack_panels(at, panels, width / 4, to);
    for (int64_t r = 0; r < q_block; ++r) {
      int32_t sum = 0;
      for (int32_t c = 0; c < width; ++c) sum += rows[r * width + c];
      undo[r] = -Scan::bias * sum;
    }
  }

  static void bias_bytes(int8_t* to, const int8_t* from, int64_t n) {
    if (Scan::bias == 0) {
      if (to != from) std::memcpy(to, from, static_cast<size_t>(n));
      return;
    }
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(from[i] ^ 0x80);
  }

  // ---- queries ----

  static void code_queries(const HeadGroup& h, Lane& lane, const Scratch& w) {
    const Shape& s = h.shape;
    const int32_t d = s.head_dim;
    const float* x = w.x;
    if (s.format == SALE_INT4) {
      for (int64_t r = 0; r < lane.rows; ++r)
        for (int32_t c = 0; c < d; c += 16)
          store(w.y + r * d + c, load(w.x + r * d + c) - load(h.q_mean + lane.head * d + c));
      x = w.y;
    }
    if (h.q_projection != nullptr) {
      project(x, lane.rows, d, h.q_projection, s.rank, w.z);
      x = w.z;
    }
    const int64_t width = Scan::width(s.rank);
    std::memset(w.codes, 0, static_cast<size_t>(q_block * width));
    for (int64_t r = 0; r < q_block; ++r) lane.scale[r] = 0;
    const auto code = [&](int64_t first, int64_t step, int64_t count, float levels) {
      Range range;
      for (int64_t i = 0, r = first; i < count && r < lane.rows; ++i, r += step)
        Range::include(range, x + r * s.rank, s.rank);
      const Quantizer z(range.value(), levels);
      for (int64_t i = 0, r = first; i < count; ++i, r += step) {
        lane.scale[r] = z.scale;
        if (r < lane.rows) Quantizer::bytes(z, x + r * s.rank, s.rank, w.codes + r * width);
      }
    };
    if (s.format == SALE_INT4) {
      for (int64_t r = 0; r < q_block; ++r)
        if (r % 16 < 8) code(r, 8, 2, 7.0f);
    } else {
      code(0, 1, q_block, 127.0f);
    }
    pack(w.codes, Scan::width(s.rank), lane.codes, lane.undo);
  }

  // ---- reference ----

  // Digits of the sink and local keys of a tile; returns how many there are (a multiple of 32, absent ones at position
  // INT64_MAX).
  static int64_t reference(const HeadGroup& h, int64_t tile, const Scratch& w) {
    const int32_t d = h.shape.head_dim;
    const int64_t end = h.end_block(tile), sink = h.sink_end(tile), local = h.local_block(tile);
    alignas(64) float x[k_block * 256];
    int64_t n = 0;
    for (int64_t b = sink > 0 ? 0 : local; b < end; b = b + 1 == sink && local > b + 1 ? local : b + 1) {
      const int64_t key = b * k_block, keys = h.k_len - key < k_block ? h.k_len - key : k_block;
      smooth(h, key, keys, x);
      for (int64_t j = 0; j < k_block; ++j, ++n) {
        w.key_at[n] = j < keys ? key + j : INT64_MAX;
        w.key_scale[n] = 0;
        if (j < keys) {
          w.key_scale[n] = digits(x + j * d, d, w.k_hi + n * d, w.k_lo + n * d);
        } else {
          std::memset(w.k_hi + n * d, 0, static_cast<size_t>(d));
          std::memset(w.k_lo + n * d, 0, static_cast<size_t>(d));
        }
      }
    }
    bias_bytes(w.k_hi, w.k_hi, n * d);
    bias_bytes(w.k_lo, w.k_lo, n * d);
    return n;
  }

  SALE_INLINE f32x16 keep_where(const i32x16& at_least, const i32x16& a, const f32x16& x, float otherwise) {
    f32x16 r;
    const f32x16 o = splat(otherwise);
    SALE_EACH {
      const vi seen = (vi)(at_least.p[i] >= a.p[i]);
      r.p[i] = (vf)(((vi)x.p[i] & seen) | ((vi)o.p[i] & ~seen));
    }
    return r;
  }

  // T of a row whose reference is given, for scores of smoothed keys: those are lower by scale q k_mean.
  static float given_threshold(const HeadGroup& h, const float* q, float reference, double log_tau) {
    double mean_score = 0;
    float bad = reference - reference;
    for (int32_t c = 0; c < h.shape.head_dim; ++c) {
      mean_score += static_cast<double>(q[c]) * static_cast<double>(h.index.smoothing[c]);
      bad += q[c] - q[c];
    }
    const double t = (log_tau + static_cast<double>(reference)) - static_cast<double>(h.shape.scale) * mean_score;
    return static_cast<float>(t) + bad;
  }

  static void thresholds(const HeadGroup& h, Lane& lane, const Scratch& w, int64_t n) {
    const int32_t d = h.shape.head_dim;
    if (h.reference != nullptr) {
      const double log_tau = natural_log(h.thresholds[lane.head]);
      const float* given = h.reference + lane.head * h.lse_head + lane.tile * q_block;
      for (int64_t r = 0; r < lane.rows; ++r) lane.threshold[r] = given_threshold(h, w.x + r * d, given[r], log_tau);
      for (int64_t r = lane.rows; r < q_block; ++r) lane.threshold[r] = __builtin_inff();
      return;
    }
    for (int64_t r = 0; r < q_block; ++r) {
      w.row_scale[r] = 0;
      if (r < lane.rows) {
        w.row_scale[r] = digits(w.x + r * d, d, w.q_hi + r * d, w.q_lo + r * d);
      } else {
        std::memset(w.q_hi + r * d, 0, static_cast<size_t>(d));
        std::memset(w.q_lo + r * d, 0, static_cast<size_t>(d));
      }
    }
    pack(w.q_hi, d, w.qp_hi, w.undo_hi);
    pack(w.q_lo, d, w.qp_lo, w.undo_lo);
    const double log_tau = natural_log(h.thresholds[lane.head]);
    for (int64_t r = 0; r < lane.rows; r += 16) panel_thresholds(h, lane, w, n, r, log_tau);
    for (int64_t r = lane.rows; r < q_block; ++r) lane.threshold[r] = __builtin_inff();  // absent rows keep nothing
  }

  static void panel_thresholds(const HeadGroup& h, Lane& lane, const Scratch& w, int64_t n, int64_t row,
                               double log_tau) {
    const int32_t d = h.shape.head_dim;
    const int64_t words = d / 4, base = h.position(lane.tile * q_block + row);
    const uint32_t *hi = w.qp_hi + row * words, *lo = w.qp_lo + row * words;
    const f32x16 row_scale = load(w.row_scale + row) * splat(h.shape.scale);
    int32_t lane_number[16];
    for (int i = 0; i < 16; ++i) lane_number[i] = i;
    const i32x16 numbers = load(lane_number);
    f32x16 top = splat(-__builtin_inff()), bad = splat(0.0f);
    for (int64_t b = 0; b < n; b += k_block) {
      Scan::products(w.k_hi + b * d, hi, d, w.undo_hi + row, w.hh);
      Scan::products(w.k_hi + b * d, lo, d, w.undo_lo + row, w.x1);
      Scan::products(w.k_lo + b * d, hi, d, w.undo_hi + row, w.x2);
      Scan::products(w.k_lo + b * d, lo, d, w.undo_lo + row, w.ll);
      for (int64_t j = 0; j < k_block; ++j) {
        const int64_t key = w.key_at[b + j], ahead = key - base;  // seen by lanes >= ahead
        f32x16 s = (to_float(load(w.hh + j * 16)) * splat(16384.0f) +
                    to_float(load(w.x1 + j * 16) + load(w.x2 + j * 16)) * splat(128.0f)) +
                   to_float(load(w.ll + j * 16));
        s = s * (row_scale * splat(w.key_scale[b + j]));
        if (ahead > 0) {
          const i32x16 first = splat(static_cast<int32_t>(ahead < 16 ? ahead : 16));
          bad = bad + keep_where(numbers, first, s - s, 0.0f);
          s = keep_where(numbers, first, s, -__builtin_inff());
        } else {
          bad = bad + (s - s);
        }
        store(w.s + (b + j) * 16, s);
        top = max(top, s);
      }
    }
    i32x16 count = splat(int32_t{0});
    const f32x16 to_base2 = splat(1.44269502162933349609375f), unit = splat(1048576.0f);
    for (int64_t j = 0; j < n; ++j) count = count + round_small(exp2<6>((load(w.s + j * 16) - top) * to_base2) * unit);
    int32_t counts[16];
    float tops[16], bads[16];
    store(counts, count);
    store(tops, top);
    store(bads, bad);
    for (int64_t i = 0; i < 16; ++i) {
      const double l = natural_log(static_cast<double>(counts[i]) * 0x1p-20);
      lane.threshold[row + i] = static_cast<float>(static_cast<double>(tops[i]) + (log_tau + l)) + bads[i];
    }
  }

  // ---- vote ----

  static void keep(uint64_t* bits, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) bits[b / 64] |= uint64_t{1} << (b % 64);
  }

  static void vote_int8(const HeadGroup& h, const Lane& lane, const int8_t* keys, int64_t first, int64_t blocks) {
    i32x16 m[scan_blocks][panels];
    Scan::maxima(keys, blocks, lane.codes, Scan::width(h.shape.rank), lane.undo, m);
    for (int64_t b = 0; b < blocks; ++b) {
      const f32x16 f = splat((lane.scale[0] * h.shape.scale) * h.index.scales[first + b]);
      bool any = false;
      for (int p = 0; p < panels; ++p) any |= any_not_below(to_float(m[b][p]) * f, load(lane.threshold + p * 16));
      if (any) keep(lane.bits, first + b, first + b + 1);
    }
  }

  static bool vote_int4(const HeadGroup& h, const Lane& lane, const Scratch& w, const int8_t* keys,
                        const float* key_scales, const float* bias) {
    const int32_t width = Scan::width(h.shape.rank);
    const int64_t words = width / 4;
    for (int64_t p = 0; p < panels; ++p) {
      const f32x16 q_scale = load(lane.scale + p * 16), threshold = load(lane.threshold + p * 16);
      if (p * 16 >= lane.rows) return false;
      Scan::products(keys, lane.codes + p * 16 * words, width, lane.undo + p * 16, w.hh);
      for (int g = 0; g < 4; ++g) {
        const f32x16 unit = q_scale * splat(key_scales[g]);
        f32x16 inverse;
        SALE_EACH inverse.p[i] = 1.0f / unit.p[i];
        f32x16 widest = splat(0.0f);
        i32x16 m = splat(INT32_MIN);
        for (int n = 0; n < 4; ++n) {
          for (int e = 0; e < 2; ++e) {
            const int64_t j = 8 * n + 2 * g + e;
            const f32x16 beta = splat(bias[j]) * inverse;
            widest = max(widest, as_float(bits(beta) & splat(int32_t{0x7fffffff})));  // NaN wins: second argument
            m = max(m, load(w.hh + j * 16) + round_small(beta));
          }
        }
        const bool present = lane.rows - p * 16 >= 16;
        if (present ? any_not_below(widest, splat(4194304.0f)) : wide_row(lane, widest, p)) return true;
        if (any_not_below(to_float(m) * (unit * splat(h.shape.scale)), threshold)) return true;
      }
    }
    return false;
  }
  // The same test for a panel with absent rows, whose scales mean nothing.
  static bool wide_row(const Lane& lane, const f32x16& widest, int64_t panel) {
    float v[16];
    store(v, widest);
    for (int64_t i = 0; panel * 16 + i < lane.rows && i < 16; ++i)
      if (!(v[i] < 4194304.0f)) return true;
    return false;
  }

  // ---- walk ----

  static void start(const HeadGroup& h, int head, int64_t tile, int64_t n_reference, Lane& lane, const Scratch& w) {
    const int64_t begin = h.first_block(tile), end = h.end_block(tile);
    const Sight::Candidates candidates = h.candidates(tile);
    lane.head = head;
    lane.tile = tile;
    lane.rows = h.rows(tile);
    lane.bits = h.bits + head * h.head_words + h.row_word[tile];
    lane.first = candidates.first, lane.last = candidates.last;
    for (int64_t i = 0; i < h.row_word[tile + 1] - h.row_word[tile]; ++i) lane.bits[i] = 0;
    const bool dense = h.dense || h.thresholds[head] == 0;
    keep(lane.bits, 0, h.sink_blocks() < begin ? h.sink_blocks() : begin);
    keep(lane.bits, begin, lane.first);
    keep(lane.bits, dense ? lane.first : lane.last, end);
    if (dense || is_local(h.thresholds[head])) lane.last = lane.first;
    if (lane.first == lane.last) return;
    for (int64_t r = 0; r < lane.rows; ++r)
      load_row(h.q, h.shape.dtype, head * h.q_head + (tile * q_block + r) * h.q_token, h.shape.head_dim,
               w.x + r * h.shape.head_dim);
    code_queries(h, lane, w);
    thresholds(h, lane, w, n_reference);
  }

  static bool needs_reference(const HeadGroup& h, int64_t tile) {
    const Sight::Candidates candidates = h.candidates(tile);
    return h.scanned() && h.reference == nullptr && candidates.last > candidates.first;
  }

  static void item(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
    Arena arena(scratch);
    const int group = h.shape.group;
    const int64_t lanes = (end - begin) * group;
    const Scratch w = lay_out(h.shape, lanes, arena);
    Scan::begin();
    int64_t first = INT64_MAX, last = 0;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t n = needs_reference(h, t) ? reference(h, t, w) : 0;
      for (int g = 0; g < group; ++g) {
        Lane& lane = w.lanes[(t - begin) * group + g];
        start(h, g, t, n, lane, w);
        if (lane.last == lane.first) continue;
        if (lane.first < first) first = lane.first;
        if (lane.last > last) last = lane.last;
      }
    }
    for (; first < last; first += scan_blocks)
      scan(h, w, lanes, first, first + scan_blocks < last ? first + scan_blocks : last);
    Scan::end();
  }

  static void scan(const HeadGroup& h, const Scratch& w, int64_t lanes, int64_t first, int64_t last) {
    const int64_t rank = h.shape.rank, width = Scan::width(h.shape.rank), bytes = k_block * width;
    const bool fp4 = h.shape.format == SALE_FP4;
    for (int64_t j = first * k_block; j < last * k_block; ++j) {
      int8_t* row = w.chunk + (j - first * k_block) * width;
      const int8_t* codes = h.index.codes + j * h.shape.row_bytes;
      if (fp4) unpack_fp4(codes, h.shape.rank, row);
      bias_bytes(row, fp4 ? row : codes, rank);
      if (width > rank) std::memset(row + rank, 0, static_cast<size_t>(width - rank));
    }
    for (int64_t u = 0; u < lanes; ++u) {
      const Lane& lane = w.lanes[u];
      const int64_t begin = lane.first > first ? lane.first : first, end = lane.last < last ? lane.last : last;
      if (begin >= end) continue;
      if (h.shape.format != SALE_INT4) {
        vote_int8(h, lane, w.chunk + (begin - first) * bytes, begin, end - begin);
        continue;
      }
      const float* bias = h.bias + lane.head * h.bias_stride();
      for (int64_t b = begin; b < end; ++b)
        if (vote_int4(h, lane, w, w.chunk + (b - first) * bytes, h.index.scales + b * 4, bias + b * k_block))
          keep(lane.bits, b, b + 1);
    }
  }
};

}  // namespace
}  // namespace sale
