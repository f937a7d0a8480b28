// Codes, projections and fixed-point numbers: docs/numerics.md sections 1 to 3, step by step. Compiled without fused
// multiply-add (-ffp-contract=off): these are the operations whose bits every backend must reproduce.
#pragma once

#include "cpu/common/fp4.hpp"
#include "cpu/common/load.hpp"
#include "cpu/common/transpose.hpp"

namespace sale {
namespace {

constexpr float max_float = 3.402823466e38f, smallest_range = 0x1p-100f;

// max |x|, on the bits: infinity when anything is infinite or NaN.
struct Range {
  i32x16 lanes = splat(int32_t{0});
  SALE_INLINE void include(Range& r, const float* x, int64_t n) {
    for (int64_t c = 0; c < n; c += 16) r.lanes = max(r.lanes, bits(load(x + c)) & splat(int32_t{0x7fffffff}));
  }
  float value() const {
    int32_t v[16], a = 0;
    store(v, lanes);
    for (int i = 0; i < 16; ++i) a = v[i] > a ? v[i] : a;
    if (a > 0x7f800000) a = 0x7f800000;
    float f;
    std::memcpy(&f, &a, 4);
    return f;
  }
};

struct Quantizer {
  float scale, inverse;
  bool usable;  // false: codes are 0, whatever the number
  Quantizer(float range, float levels) {
    if (!(range <= max_float)) {
      scale = __builtin_nanf("");
      inverse = 0;
      usable = false;
    } else if (range < smallest_range) {
      scale = inverse = 0;
      usable = false;
    } else {
      scale = range / levels;
      inverse = levels / range;
      usable = true;
    }
  }
  SALE_INLINE void bytes(const Quantizer& z, const float* x, int64_t n, int8_t* to) {
    if (!z.usable) {
      std::memset(to, 0, static_cast<size_t>(n));
      return;
    }
    for (int64_t c = 0; c < n; c += 16) {
      const i32x16 code = round_small(load(x + c) * splat(z.inverse));
      narrow(code, to + c);
    }
  }
};

// 15-bit fixed point as two 8-bit digits: code = 128 hi + lo. Returns the scale.
SALE_INLINE float digits(const float* x, int32_t d, int8_t* hi, int8_t* lo) {
  Range range;
  Range::include(range, x, d);
  const Quantizer z(range.value(), 16256.0f);
  if (!z.usable) {
    std::memset(hi, 0, static_cast<size_t>(d));
    std::memset(lo, 0, static_cast<size_t>(d));
    return z.scale;
  }
  for (int32_t c = 0; c < d; c += 16) {
    const i32x16 code = round_small(load(x + c) * splat(z.inverse));
    const i32x16 high = shift_right<7>(code + splat(int32_t{64}));
    narrow(high, hi + c);
    narrow(code - shift_left<7>(high), lo + c);
  }
  return z.scale;
}

// y[row][c] = sum over a, ascending, of x[row][a] * m[a][c]; x [rows, d], m [d, rank], y [rows, rank].
static void project(const float* x, int64_t rows, int32_t d, const float* m, int32_t rank, float* y) {
  constexpr int R = 4;
  for (int64_t r = 0; r < rows; r += R) {
    const int64_t n = rows - r < R ? rows - r : R;
    for (int32_t c = 0; c < rank; c += 16) {
      f32x16 acc[R];
      for (int i = 0; i < R; ++i) acc[i] = splat(0.0f);
      for (int32_t a = 0; a < d; ++a) {
        const f32x16 column = load(m + int64_t{a} * rank + c);
        for (int i = 0; i < R; ++i) acc[i] = acc[i] + splat(x[(r + (i < n ? i : 0)) * d + a]) * column;
      }
      for (int i = 0; i < n; ++i) store(y + (r + i) * rank + c, acc[i]);
    }
  }
}

// The smoothed keys [keys, d] from `key` on.
SALE_INLINE void smooth(const HeadGroup& h, int64_t key, int64_t keys, float* to) {
  const int32_t d = h.shape.head_dim;
  for (int64_t j = 0; j < keys; ++j) {
    load_row(h.k, h.shape.dtype, (key + j) * h.k_token, d, to + j * d);
    for (int32_t c = 0; c < d; c += 16) store(to + j * d + c, load(to + j * d + c) - load(h.index.smoothing + c));
  }
}

SALE_INLINE bool in_group(int64_t key, int group) { return key % 8 / 2 == group; }

// Two codes a byte, then an exponent for every group.
SALE_INLINE void code_row_fp4(const float* y, int32_t rank, const Quantizer& z, int8_t* to) {
  int8_t codes[256];
  for (int32_t first = 0; first < rank; first += fp4_group) {
    const int32_t n = rank - first < fp4_group ? rank - first : fp4_group;
    Range range;
    Range::include(range, y + first, n);
    const int exponent = fp4_exponent(range.value() * z.inverse);
    const f32x16 down = splat(fp4_down[exponent]);
    for (int32_t c = first; c < first + n; c += 16) narrow(e2m1_of((load(y + c) * splat(z.inverse)) * down), codes + c);
    to[rank / 2 + first / fp4_group] = static_cast<int8_t>(exponent);
  }
  for (int32_t i = 0; i < rank / 2; ++i) to[i] = static_cast<int8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
}

// Codes and scale of one block of `keys` coded coordinates y [keys, rank].
static void code_block_fp4(const float* y, int64_t keys, int32_t rank, int32_t row_bytes, int8_t* codes, float* scale) {
  std::memset(codes, 0, static_cast<size_t>(k_block * row_bytes));
  Range range;
  Range::include(range, y, keys * rank);
  const Quantizer z(range.value(), fp4_levels);
  *scale = z.scale;
  if (!z.usable) return;
  for (int64_t j = 0; j < keys; ++j) code_row_fp4(y + j * rank, rank, z, codes + j * row_bytes);
}
static void code_block(sale_format format, const float* y, int64_t keys, int32_t rank, int8_t* codes, float* scales) {
  const int groups = format == SALE_INT4 ? 4 : 1;
  for (int g = 0; g < groups; ++g) {
    Range range;
    for (int64_t j = 0; j < keys; ++j)
      if (groups == 1 || in_group(j, g)) Range::include(range, y + j * rank, rank);
    const Quantizer z(range.value(), format == SALE_INT4 ? 7.0f : 127.0f);
    scales[g] = z.scale;
    for (int64_t j = 0; j < keys; ++j)
      if (groups == 1 || in_group(j, g)) Quantizer::bytes(z, y + j * rank, rank, codes + j * rank);
  }
  std::memset(codes + keys * rank, 0, static_cast<size_t>((k_block - keys) * rank));
}

[[maybe_unused]] static void index_blocks(const HeadGroup& h, int64_t begin, int64_t end) {
  const int32_t d = h.shape.head_dim, rank = h.shape.rank;
  const int groups = h.shape.format == SALE_INT4 ? 4 : 1;
  alignas(64) float x[k_block * 256], y[k_block * 256];
  for (int64_t b = begin; b < end; ++b) {
    const int64_t key = b * k_block, keys = h.k_len - key < k_block ? h.k_len - key : k_block;
    smooth(h, key, keys, x);
    const float* coded = x;
    if (h.index.projection != nullptr) {
      project(x, keys, d, h.index.projection, rank, y);
      coded = y;
    }
    int8_t* codes = h.index.codes + key * h.shape.row_bytes;
    if (h.shape.format == SALE_FP4)
      code_block_fp4(coded, keys, rank, h.shape.row_bytes, codes, h.index.scales + b);
    else
      code_block(h.shape.format, coded, keys, rank, codes, h.index.scales + b * groups);
  }
}

// b_j = q_mean . k~_j for every head of the group: lanes are keys.
[[maybe_unused]] static void bias_blocks(const HeadGroup& h, int64_t begin, int64_t end) {
  const int32_t d = h.shape.head_dim;
  alignas(64) float x[k_block * 256], turned[k_block * 256];
  const uint32_t* rows[k_block];
  for (int64_t j = 0; j < k_block; ++j) rows[j] = reinterpret_cast<const uint32_t*>(x + j * d);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t key = b * k_block, keys = h.k_len - key < k_block ? h.k_len - key : k_block;
    smooth(h, key, keys, x);
    std::memset(x + keys * d, 0, static_cast<size_t>((k_block - keys) * d) * 4);
    pack_panels(rows, 2, d, reinterpret_cast<uint32_t*>(turned));
    for (int g = 0; g < h.shape.group; ++g) {
      f32x16 low = splat(0.0f), high = splat(0.0f);
      const float* mean = h.q_mean + g * d;
      for (int32_t a = 0; a < d; ++a) {
        low = low + splat(mean[a]) * load(turned + a * 16);
        high = high + splat(mean[a]) * load(turned + (d + a) * 16);
      }
      store(h.bias + g * h.bias_stride() + key, low);
      store(h.bias + g * h.bias_stride() + key + 16, high);
    }
  }
}

}  // namespace
}  // namespace sale
