// NEON as every 64-bit Arm CPU has it, and its dot products where the file is compiled for them: sixteen lanes are four
// registers of 32.
#pragma once

#include <arm_neon.h>

namespace sale {
namespace {
constexpr int register_floats = 4;
constexpr int tile_rows = 4, tile_panels = 1;  // 16 accumulators of 32 registers
}  // namespace
}  // namespace sale

#include "cpu/common/lanes.hpp"

namespace sale {
namespace {

SALE_INLINE f32x16 fused(const f32x16& a, const f32x16& b, const f32x16& c) {
  f32x16 r;
  SALE_EACH r.p[i] = (vf)vfmaq_f32((float32x4_t)c.p[i], (float32x4_t)a.p[i], (float32x4_t)b.p[i]);
  return r;
}
// Not vmaxq_f32: that is NaN when either is.
SALE_INLINE f32x16 max(const f32x16& a, const f32x16& b) {
  f32x16 r;
  SALE_EACH {
    const float32x4_t x = (float32x4_t)a.p[i], y = (float32x4_t)b.p[i];
    r.p[i] = (vf)vbslq_f32(vcgtq_f32(x, y), x, y);
  }
  return r;
}
SALE_INLINE i32x16 max(const i32x16& a, const i32x16& b) {
  i32x16 r;
  SALE_EACH r.p[i] = (vi)vmaxq_s32((int32x4_t)a.p[i], (int32x4_t)b.p[i]);
  return r;
}
SALE_INLINE bool any_not_below(const f32x16& a, const f32x16& b) {
  uint32x4_t all = vdupq_n_u32(~0u);
  SALE_EACH all = vandq_u32(all, vcltq_f32((float32x4_t)a.p[i], (float32x4_t)b.p[i]));
  return vminvq_u32(all) == 0;
}
SALE_INLINE float max_lane(const f32x16& a) {
  const float32x4_t low = vmaxnmq_f32((float32x4_t)a.p[0], (float32x4_t)a.p[1]);
  const float32x4_t high = vmaxnmq_f32((float32x4_t)a.p[2], (float32x4_t)a.p[3]);
  return vmaxnmvq_f32(vmaxnmq_f32(low, high));
}

SALE_INLINE f32x16 from_bf16(const uint16_t* from) {
  f32x16 r;
  SALE_EACH r.p[i] = (vf)vshll_n_u16(vld1_u16(from + 4 * i), 16);
  return r;
}
SALE_INLINE f32x16 from_f16(const uint16_t* from) {
  f32x16 r;
  SALE_EACH r.p[i] = (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)));
  return r;
}
SALE_INLINE void narrow(const i32x16& a, int8_t* to) {
  const int16x8_t low = vcombine_s16(vmovn_s32((int32x4_t)a.p[0]), vmovn_s32((int32x4_t)a.p[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32((int32x4_t)a.p[2]), vmovn_s32((int32x4_t)a.p[3]));
  vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

SALE_INLINE void look_up(const int8_t* codes, const int8_t* table, int8_t* to) {
  const uint8x8_t two = vld1_u8(reinterpret_cast<const uint8_t*>(codes));
  const uint8x8_t low = vand_u8(two, vdup_n_u8(15)), high = vshr_n_u8(two, 4);
  vst1q_s8(to, vqtbl1q_s8(vld1q_s8(table), vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high))));
}

// Four rows and four words at a time: pairs of words, then pairs of pairs.
SALE_INLINE void transpose_16x16(const uint32_t* const rows[16], int64_t word, uint32_t* to) {
  for (int r = 0; r < 16; r += 4)
    for (int w = 0; w < 16; w += 4) {
      const uint32x4_t a = vld1q_u32(rows[r] + word + w), b = vld1q_u32(rows[r + 1] + word + w);
      const uint32x4_t c = vld1q_u32(rows[r + 2] + word + w), d = vld1q_u32(rows[r + 3] + word + w);
      const uint64x2_t ab = vreinterpretq_u64_u32(vtrn1q_u32(a, b)), cd = vreinterpretq_u64_u32(vtrn1q_u32(c, d));
      const uint64x2_t ba = vreinterpretq_u64_u32(vtrn2q_u32(a, b)), dc = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
      uint32_t* at = to + w * 16 + r;
      vst1q_u32(at, vreinterpretq_u32_u64(vtrn1q_u64(ab, cd)));
      vst1q_u32(at + 16, vreinterpretq_u32_u64(vtrn1q_u64(ba, dc)));
      vst1q_u32(at + 32, vreinterpretq_u32_u64(vtrn2q_u64(ab, cd)));
      vst1q_u32(at + 48, vreinterpretq_u32_u64(vtrn2q_u64(ba, dc)));
    }
}

struct DotI8 {
  using Acc = i32x16;
  using Word = uint32_t;
  static constexpr int32_t a_bias = 0;
  SALE_INLINE Acc zero() { return splat(int32_t{0}); }
  SALE_INLINE Acc step(const Acc& acc, uint32_t a, const uint32_t* b) {
    Acc r;
#if !defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t av = vreinterpretq_s8_u32(vdupq_n_u32(a));
#endif
    SALE_EACH {
      const int8x16_t bv = vld1q_s8(reinterpret_cast<const int8_t*>(b + 4 * i));
#if defined(__ARM_FEATURE_DOTPROD)
      r.p[i] = (vi)vdotq_lane_s32((int32x4_t)acc.p[i], bv, vcreate_s8(a), 0);
#else
      // A sum of two products stays inside 16 bits: 2 * 127 * 127.
      const int16x8_t low = vmull_s8(vget_low_s8(av), vget_low_s8(bv)), high = vmull_high_s8(av, bv);
      r.p[i] = (vi)vpadalq_s16((int32x4_t)acc.p[i], vpaddq_s16(low, high));
#endif
    }
    return r;
  }
};

}  // namespace
}  // namespace sale
