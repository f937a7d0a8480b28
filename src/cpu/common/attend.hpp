// Block-sparse attention on the kept blocks, one item at a time.
//
//   item      one kv head, T neighbouring query tiles, all G query heads of the group: U = T*G "lanes" (head, tile)
//   per lane  O [64, d] f32, running maximum m [64], running sums l [64][16] (never reduced until the end), Q rows
//
//   for each chunk of 32 key blocks (f32: 16):
//     pack K and V of every block that any lane keeps          <- shared by U lanes, so packing costs 1/U per lane
//     for each lane, for each strip of 32 rows:
//       for each run of up to 4 kept blocks (128 keys):
//         S = Q K^T          [32,128] f32, L1
//         mask               only blocks that reach the diagonal, or back beyond a window
//         P = 2^(S c - m)    c = scale log2 e; when m grows, O and l of that row shrink first
//         O += P V
//     with compensation, after every 256 blocks: the means of eight blocks each are one more block of 32 pseudo-keys,
//     each with the weight of the lane's dropped blocks among those it is the mean of
//   out = O / l, lse = (m + log2 l) ln 2
//
// Blocks are taken in ascending order and runs never cross a chunk, so a lane's arithmetic depends on its own list
// alone: the same bits for any item size, batch or number of threads.
//
// Two policies make a kernel: Score (how Q and K are stored and multiplied) and Mix (how P and V are). Floors per score
// at d = 128, in cycles: AMX bf16 0.25 + 0.25 (two products of 128 at 512 a cycle); AVX512-BF16 on two ports 2 + 2; f32
// FMA 4 + 4; the exponential about 0.35 with 16 lanes. docs/performance.md has what was reached.
#pragma once

#include "cpu/common/gemm.hpp"
#include "cpu/common/load.hpp"
#include "cpu/common/transpose.hpp"

namespace sale {
namespace {

constexpr int run_blocks = 4;
constexpr int64_t strip_rows = 32, run_keys = run_blocks * k_block;
constexpr float log2e = 1.44269502162933349609375f, ln2 = 0.693147182464599609375f;
constexpr float empty_maximum = -1e30f;  // finite, so that a row without keys yields zeros and not NaN

// ---- Score policies: S[strip, keys] = Q K^T ------------------------------------------------------------------------

// Anything, through f32.
struct ScoreF32 {
  using Q = float;
  static int64_t k_words(int32_t d) { return k_block * d; }
  static void load_q(const HeadGroup& h, int64_t at, int64_t rows, int64_t padded, Q* to, float*) {
    const int32_t d = h.shape.head_dim;
    for (int64_t r = 0; r < rows; ++r) load_row(h.q, h.shape.dtype, at + r * h.q_token, d, to + r * d);
    std::memset(to + rows * d, 0, static_cast<size_t>((padded - rows) * d) * sizeof(Q));
  }
  static void pack_k(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    const int32_t d = h.shape.head_dim;
    alignas(64) float row[k_block][256];
    const uint32_t* rows[k_block];
    for (int64_t j = 0; j < k_block; ++j) {
      if (j < keys) {
        load_row(h.k, h.shape.dtype, (key + j) * h.k_token, d, row[j]);
      } else {
        std::memset(row[j], 0, sizeof row[j]);
      }
      rows[j] = reinterpret_cast<const uint32_t*>(row[j]);
    }
    pack_panels(rows, 2, d, to);
  }
  static void scores(const HeadGroup& h, int64_t rows, const Q* q, const float*, const uint32_t* const* k, int blocks,
                     float* s) {
    const int32_t d = h.shape.head_dim;
    for (int b = 0; b < blocks; ++b) {
      const float* kb = reinterpret_cast<const float*>(k[b]);
      multiply<DotF32>(rows, q, d, &kb, 1, d, 2, s + b * k_block, run_keys, false);
    }
  }
};

// Codes of one row of 8-bit products: round(127 x / max|x|); a row that is not finite gets the scale NaN, so that its
// scores are.
SALE_INLINE float code_row(const float* x, int32_t d, float amax, int8_t* to) {
  const bool finite = amax <= 3.402823466e38f;
  const float inverse = finite && amax >= 0x1p-100f ? 127.0f / amax : 0.0f;
  for (int32_t c = 0; c < d; c += 16) {
    int32_t code[16];
    store(code, round_small(finite ? load(x + c) * splat(inverse) : splat(0.0f)));
    for (int i = 0; i < 16; ++i) to[c + i] = static_cast<int8_t>(code[i]);
  }
  return finite ? amax / 127.0f : __builtin_nanf("");
}
SALE_INLINE float largest(const float* x, int32_t d) {  // infinity for NaN
  i32x16 m = splat(int32_t{0});
  for (int32_t c = 0; c < d; c += 16) m = max(m, bits(load(x + c)) & splat(int32_t{0x7fffffff}));
  int32_t v[16], a = 0;
  store(v, m);
  for (int i = 0; i < 16; ++i) a = v[i] > a ? v[i] : a;
  if (a > 0x7f800000) a = 0x7f800000;
  float f;
  std::memcpy(&f, &a, 4);
  return f;
}

// What the two INT8 policies share: Q codes per row, K codes per block of 32 smoothed keys. A packed K block ends with
// its scale and, per key, the start value that undoes the bias of DotI8.
struct Int8Codes {
  using Q = int8_t;
  static constexpr int64_t tail = 16 + k_block;
  static int64_t k_words(int32_t d) { return k_block * d / 4 + tail; }
  static void load_q(const HeadGroup& h, int64_t at, int64_t rows, int64_t padded, Q* to, float* scale, int32_t bias) {
    const int32_t d = h.shape.head_dim;
    alignas(64) float row[256];
    for (int64_t r = 0; r < rows; ++r) {
      load_row(h.q, h.shape.dtype, at + r * h.q_token, d, row);
      scale[r] = code_row(row, d, largest(row, d), to + r * d);
    }
    for (int64_t r = rows; r < padded; ++r) scale[r] = 0;
    std::memset(to + rows * d, 0, static_cast<size_t>((padded - rows) * d));
    if (bias != 0)
      for (int64_t i = 0; i < padded * d; ++i) to[i] = static_cast<int8_t>(to[i] ^ 0x80);
  }
  static void pack_k(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to, int32_t bias) {
    const int32_t d = h.shape.head_dim;
    alignas(64) float row[k_block][256];
    alignas(64) int8_t code[k_block][256];
    const uint32_t* rows[k_block];
    float amax = 0;
    for (int64_t j = 0; j < keys; ++j) {
      load_row(h.k, h.shape.dtype, (key + j) * h.k_token, d, row[j]);
      for (int32_t c = 0; c < d; c += 16) store(row[j] + c, load(row[j] + c) - load(h.k_mean + c));
      const float a = largest(row[j], d);
      amax = a > amax ? a : amax;
    }
    float scale = 0;
    for (int64_t j = 0; j < k_block; ++j) {
      if (j < keys) {
        scale = code_row(row[j], d, amax, code[j]);
      } else {
        std::memset(code[j], 0, sizeof code[j]);
      }
      rows[j] = reinterpret_cast<const uint32_t*>(code[j]);
    }
    pack_panels(rows, 2, d / 4, to);
    uint32_t* end = to + k_block * d / 4;
    std::memcpy(end, &scale, 4);
    int32_t start[k_block];
    for (int64_t j = 0; j < k_block; ++j) {
      int32_t sum = 0;
      for (int32_t c = 0; c < d; ++c) sum += code[j][c];
      start[j] = -bias * sum;
    }
    std::memcpy(end + 16, start, sizeof start);
  }
  // Integers to scores, in place.
  static void dequantize(int64_t rows, const float* q_scale, float k_scale, float* s) {
    for (int64_t r = 0; r < rows; ++r) {
      const f32x16 f = splat(q_scale[r] * k_scale);
      for (int c = 0; c < k_block; c += 16) {
        float* at = s + r * run_keys + c;
        store(at, to_float(bits(load(at))) * f);
      }
    }
  }
  static float k_scale(const uint32_t* block, int32_t d) {
    float f;
    std::memcpy(&f, block + k_block * d / 4, 4);
    return f;
  }
};

struct ScoreI8 : Int8Codes {
  static void load_q(const HeadGroup& h, int64_t at, int64_t rows, int64_t padded, Q* to, float* scale) {
    Int8Codes::load_q(h, at, rows, padded, to, scale, DotI8::a_bias);
  }
  static void pack_k(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    Int8Codes::pack_k(h, key, keys, to, DotI8::a_bias);
  }
  static void scores(const HeadGroup& h, int64_t rows, const Q* q, const float* q_scale, const uint32_t* const* k,
                     int blocks, float* s) {
    const int32_t d = h.shape.head_dim;
    for (int b = 0; b < blocks; ++b) {
      const int32_t* start = reinterpret_cast<const int32_t*>(k[b] + k_block * d / 4 + 16);
      multiply<DotI8>(rows, reinterpret_cast<const uint32_t*>(q), d / 4, &k[b], 1, d / 4, 2,
                      reinterpret_cast<int32_t*>(s + b * k_block), run_keys, false, start);
      dequantize(rows, q_scale, k_scale(k[b], d), s + b * k_block);
    }
  }
};

// ---- Mix policies: O[strip, d] += P V ------------------------------------------------------------------------------

struct MixF32 {
  using P = float;
  static constexpr int degree = 6;
  static int64_t v_words(int32_t d) { return k_block * d; }
  static void pack_v(const HeadGroup& h, int64_t key, int64_t keys, uint32_t* to) {
    const int32_t d = h.shape.head_dim;
    alignas(64) float row[256];
    for (int64_t j = 0; j < k_block; ++j) {
      if (j < keys) {
        load_row(h.v, h.shape.dtype, (key + j) * h.v_token, d, row);
      } else {
        std::memset(row, 0, sizeof row);
      }
      for (int32_t c = 0; c < d; c += 16) std::memcpy(to + c * k_block + j * 16, row + c, 64);
    }
  }
  SALE_INLINE void put(P* to, const f32x16& a, const f32x16& b) {
    store(to, a);
    store(to + 16, b);
  }
  static void mix(const HeadGroup& h, int64_t rows, const P* p, const uint32_t* const* v, int blocks, float* o) {
    const float* vb[run_blocks];
    for (int b = 0; b < blocks; ++b) vb[b] = reinterpret_cast<const float*>(v[b]);
    const int32_t d = h.shape.head_dim;
    multiply<DotF32>(rows, p, run_keys, vb, blocks, k_block, d / 16, o, d, true);
  }
};

// ---- the walk ------------------------------------------------------------------------------------------------------

template <class Score, class Mix>
struct Attend {
  // As many packed blocks as share L2 with the lanes' state: half a MiB at d = 128.
  static constexpr int chunk_blocks = sizeof(typename Mix::P) == 2 ? 32 : 16;
  static constexpr int64_t span_blocks = k_block * mean_blocks;  // behind one block of pseudo-keys

  struct Lane {
    const HeadGroup* h;
    int head;
    int64_t tile, rows, padded;
    typename Score::Q* q;
    float *q_scale, *o, *m, *l;
  };

  struct Scratch {
    float* s;
    typename Mix::P* p;
    uint32_t* k[chunk_blocks];
    uint32_t* v[chunk_blocks];
    uint32_t *k_means, *v_means;  // 32 pseudo-keys
    Lane* lanes;
  };

  static Scratch lay_out(const Shape& shape, int64_t lanes, Arena& arena) {
    const int32_t d = shape.head_dim;
    Scratch s{};
    s.s = arena.take<float>(strip_rows * run_keys);
    s.p = arena.take<typename Mix::P>(strip_rows * run_keys);
    for (auto& k : s.k) k = arena.take<uint32_t>(Score::k_words(d));
    for (auto& v : s.v) v = arena.take<uint32_t>(Mix::v_words(d));
    s.k_means = arena.take<uint32_t>(Score::k_words(d));
    s.v_means = arena.take<uint32_t>(Mix::v_words(d));
    s.lanes = arena.take<Lane>(lanes);
    for (int64_t u = 0; u < lanes; ++u) {
      Lane lane{};
      lane.q = arena.take<typename Score::Q>(q_block * d);
      lane.q_scale = arena.take<float>(q_block);
      lane.o = arena.take<float>(q_block * d);
      lane.m = arena.take<float>(q_block);
      lane.l = arena.take<float>(q_block * 16);
      if (s.lanes != nullptr) s.lanes[u] = lane;
    }
    return s;
  }

  static size_t scratch(const Shape& shape, int64_t tiles) {
    Arena arena(nullptr);
    lay_out(shape, tiles * shape.group, arena);
    return arena.used;
  }

  static void start(const HeadGroup& h, int head, int64_t tile, Lane& lane) {
    lane.h = &h;
    lane.head = head;
    lane.tile = tile;
    lane.rows = h.rows(tile);
    lane.padded = (lane.rows + 15) / 16 * 16;
    Score::load_q(h, head * h.q_head + tile * q_block * h.q_token, lane.rows, lane.padded, lane.q, lane.q_scale);
    for (int64_t r = 0; r < lane.padded; ++r) lane.m[r] = empty_maximum;
    std::memset(lane.l, 0, static_cast<size_t>(lane.padded * 16) * 4);
    std::memset(lane.o, 0, static_cast<size_t>(lane.padded * h.shape.head_dim) * 4);
  }

  // The lane's kept blocks among [first, first + chunk_blocks), as bits.
  static uint32_t kept(const Lane& lane, int64_t first) {
    const HeadGroup& h = *lane.h;
    const int64_t word = h.row_word[lane.tile] + first / 64;
    if (word >= h.row_word[lane.tile + 1]) return 0;
    return static_cast<uint32_t>(h.bits[lane.head * h.head_words + word] >> (first % 64)) &
           (0xffffffffu >> (32 - chunk_blocks));
  }

  // What the 32 pseudo-keys of blocks [first, first + span_blocks) weigh: what their scores lack, -infinity where
  // nothing was dropped. False when that is so everywhere.
  static bool weights(const Lane& lane, int64_t first, float (&to)[k_block]) {
    const HeadGroup& h = *lane.h;
    const int64_t begin = h.mean_begin(lane.tile), end = h.mean_end(lane.tile);
    uint64_t some = 0;
    for (int64_t w = 0; w < span_blocks / 64; ++w) {
      const int64_t left = end - first - 64 * w;
      uint64_t dropped = 0;
      if (left > 0) {
        dropped = ~h.bits[lane.head * h.head_words + h.row_word[lane.tile] + first / 64 + w];
        if (left < 64) dropped &= (uint64_t{1} << left) - 1;
        const int64_t behind = begin - first - 64 * w;
        if (behind > 0) dropped &= behind < 64 ? ~uint64_t{0} << behind : 0;
      }
      some |= dropped;
      for (int64_t i = 0; i < 64 / mean_blocks; ++i) {
        const uint64_t mine = dropped >> mean_blocks * i & ((uint64_t{1} << mean_blocks) - 1);
        to[64 / mean_blocks * w + i] =
            (5.5f * ln2 + __builtin_logf(static_cast<float>(__builtin_popcountll(mine)))) / h.shape.scale;
      }
    }
    return some != 0;
  }

  // Keys that a row does not see, in blocks that reach beyond the diagonal or back beyond a row's window.
  static void mask(const Lane& lane, int64_t row, int64_t rows, const int64_t* keys, int blocks, float* s) {
    const HeadGroup& h = *lane.h;
    const int64_t at = lane.tile * q_block + row;
    for (int b = 0; b < blocks; ++b) {
      float* block = s + b * k_block;
      if (keys[b] + k_block > h.end_key(at))
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t seen = h.end_key(at + r) - keys[b];
          for (int64_t c = seen < 0 ? 0 : seen; c < k_block; ++c) block[r * run_keys + c] = -__builtin_inff();
        }
      if (keys[b] < h.first_key(at + rows - 1) && keys[b] >= h.sink)
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t behind = h.first_key(at + r) - keys[b];
          for (int64_t c = 0; c < behind && c < k_block; ++c) block[r * run_keys + c] = -__builtin_inff();
        }
    }
  }

  SALE_INLINE void soften_row(const float* s, int columns, f32x16 c, float& m, float* l, float* o, int32_t d,
                              typename Mix::P* p) {
    f32x16 top = load(s);
    for (int j = 16; j < columns; j += 16) top = max(top, load(s + j));
    const float highest = max_lane(top * c);
    f32x16 sum = load(l);
    if (highest > m) {
      const f32x16 shrink = exp2<Mix::degree>(splat(m - highest));
      m = highest;
      sum = sum * shrink;
      for (int32_t i = 0; i < d; i += 16) store(o + i, load(o + i) * shrink);
    }
    const f32x16 base = splat(-m);
    for (int j = 0; j < columns; j += 32) {
      const f32x16 a = exp2<Mix::degree>(fused(load(s + j), c, base)),
                   b = exp2<Mix::degree>(fused(load(s + j + 16), c, base));
      sum = sum + (a + b);
      Mix::put(p + j, a, b);
    }
    store(l, sum);
  }

  static void run(const Lane& lane, const Scratch& w, int64_t row, const uint32_t* const* k, const uint32_t* const* v,
                  const int64_t* keys, int blocks) {
    const HeadGroup& h = *lane.h;
    const int32_t d = h.shape.head_dim;
    const int64_t rows = lane.padded - row < strip_rows ? lane.padded - row : strip_rows;
    Score::scores(h, rows, lane.q + row * d, lane.q_scale + row, k, blocks, w.s);
    mask(lane, row, rows, keys, blocks, w.s);
    const f32x16 c = splat(h.shape.scale * log2e);
    for (int64_t r = 0; r < rows; ++r)
      soften_row(w.s + r * run_keys, blocks * static_cast<int>(k_block), c, lane.m[row + r], lane.l + (row + r) * 16,
                 lane.o + (row + r) * d, d, w.p + r * run_keys);
    Mix::mix(h, rows, w.p, v, blocks, lane.o + row * d);
  }

  static void chunk(const Lane& lane, const Scratch& w, int64_t first, uint32_t bits) {
    const uint32_t *k[chunk_blocks], *v[chunk_blocks];
    int64_t keys[chunk_blocks];
    int n = 0;
    for (; bits != 0; bits &= bits - 1, ++n) {
      const int b = __builtin_ctz(bits);
      k[n] = w.k[b];
      v[n] = w.v[b];
      keys[n] = (first + b) * k_block;
    }
    for (int64_t row = 0; row < lane.padded; row += strip_rows)
      for (int i = 0; i < n; i += run_blocks)
        run(lane, w, row, k + i, v + i, keys + i, n - i < run_blocks ? n - i : run_blocks);
  }

  // One column per pseudo-key.
  static void run_means(const Lane& lane, const Scratch& w, int64_t row, const float (&weight)[k_block]) {
    const HeadGroup& h = *lane.h;
    const int32_t d = h.shape.head_dim;
    const int64_t rows = lane.padded - row < strip_rows ? lane.padded - row : strip_rows;
    Score::scores(h, rows, lane.q + row * d, lane.q_scale + row, &w.k_means, 1, w.s);
    const f32x16 c = splat(h.shape.scale * log2e);
    for (int64_t r = 0; r < rows; ++r) {
      float* s = w.s + r * run_keys;
      for (int64_t i = 0; i < k_block; ++i) s[i] = weight[i] == -__builtin_inff() ? weight[i] : s[i] + weight[i];
      soften_row(s, static_cast<int>(k_block), c, lane.m[row + r], lane.l + (row + r) * 16, lane.o + (row + r) * d, d,
                 w.p + r * run_keys);
    }
    Mix::mix(h, rows, w.p, &w.v_means, 1, lane.o + row * d);
  }

  // For blocks [first, first + span_blocks).
  static void compensate(const HeadGroup& h, const Scratch& w, int64_t lanes, int64_t first) {
    bool packed = false;
    float weight[k_block];
    for (int64_t u = 0; u < lanes; ++u) {
      const Lane& lane = w.lanes[u];
      if (!weights(lane, first, weight)) continue;
      if (!packed) {
        HeadGroup means = h;
        means.k = h.k_means, means.v = h.v_means;
        means.k_token = means.v_token = h.shape.head_dim;
        const int64_t at = first / mean_blocks, left = (h.k_len + mean_keys - 1) / mean_keys - at;
        Score::pack_k(means, at, left < k_block ? left : k_block, w.k_means);
        Mix::pack_v(means, at, left < k_block ? left : k_block, w.v_means);
        packed = true;
      }
      for (int64_t row = 0; row < lane.padded; row += strip_rows) run_means(lane, w, row, weight);
    }
  }

  static void finish(const Lane& lane) {
    const HeadGroup& h = *lane.h;
    const int32_t d = h.shape.head_dim;
    for (int64_t r = 0; r < lane.rows; ++r) {
      float* o = lane.o + r * d;
      float l = sum_lanes(load(lane.l + r * 16));
      // No key, or every score -infinity: what the exponential leaves of nothing is not a weight. (NaN stays.)
      if (lane.m[r] == empty_maximum && l < 1.0f) l = 0;
      const f32x16 inverse = splat(l == 0 ? 0.0f : 1.0f / l);
      for (int32_t i = 0; i < d; i += 16) store(o + i, load(o + i) * inverse);
      const int64_t row = lane.tile * q_block + r;
      store_row(h.out, h.shape.dtype, lane.head * h.out_head + row * h.out_token, d, o);
      if (h.lse == nullptr) continue;
      float& lse = h.lse[lane.head * h.lse_head + row];
      lse = l == 0 ? -__builtin_inff() : (lane.m[r] + __builtin_log2f(l)) * ln2;
      if (h.k_mean == nullptr || l == 0) continue;
      alignas(64) float q[256];
      load_row(h.q, h.shape.dtype, lane.head * h.q_head + row * h.q_token, d, q);
      float shift = 0;
      for (int32_t i = 0; i < d; ++i) shift += q[i] * h.k_mean[i];
      lse += shift * h.shape.scale;
    }
  }

  static void item(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
    Arena arena(scratch);
    const int64_t lanes = (end - begin) * h.shape.group;
    const Scratch w = lay_out(h.shape, lanes, arena);
    for (int64_t u = 0; u < lanes; ++u)
      start(h, static_cast<int>(u % h.shape.group), begin + u / h.shape.group, w.lanes[u]);
    const int64_t blocks = h.end_block(end - 1);
    for (int64_t first = 0; first < blocks; first += chunk_blocks) {
      uint32_t any = 0;
      for (int64_t u = 0; u < lanes; ++u) any |= kept(w.lanes[u], first);
      for (uint32_t bits = any; bits != 0; bits &= bits - 1) {
        const int b = __builtin_ctz(bits);
        const int64_t key = (first + b) * k_block;
        const int64_t keys = h.k_len - key < k_block ? h.k_len - key : k_block;
        Score::pack_k(h, key, keys, w.k[b]);
        Mix::pack_v(h, key, keys, w.v[b]);
      }
      for (int64_t u = 0; u < lanes; ++u) {
        const uint32_t bits = kept(w.lanes[u], first);
        if (bits != 0) chunk(w.lanes[u], w, first, bits);
      }
      const int64_t next = first + chunk_blocks;
      if (h.k_means != nullptr && (next % span_blocks == 0 || next >= blocks))
        compensate(h, w, lanes, first / span_blocks * span_blocks);
    }
    for (int64_t u = 0; u < lanes; ++u) finish(w.lanes[u]);
  }
};

// The kernel for a shape: exact products or INT8.
template <class Exact, class Int8>
struct AttendPair {
  static size_t scratch(const Shape& s, int64_t tiles) {
    return s.compute == SALE_COMPUTE_INT8 ? Int8::scratch(s, tiles) : Exact::scratch(s, tiles);
  }
  static void item(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
    if (h.shape.compute == SALE_COMPUTE_INT8) return Int8::item(h, begin, end, scratch);
    Exact::item(h, begin, end, scratch);
  }
};

}  // namespace
}  // namespace sale
