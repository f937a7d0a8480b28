// Low-bit attention over the kept blocks: Q Kᵀ in INT8, P V in e4m3. Hopper. Items, lists, rings: attend.cuh.
//
//   K warp, V warp   gather four blocks at a time from the arrays of low_bit.cu: plain copies of 32 x d bytes
//   2 groups         64 rows each:
//                    Q ─▶ INT8, a scale a row, and q k̄ for lse                          once an item
//                    S = Q Kᵀ, exact integers ─▶ f32, scaled ─▶ online softmax ─▶ P 2^8 in e4m3
//                    O = O shrink + P V: each step's products by themselves, since the tensor cores' e4m3 sums keep
//                    about 14 bits; the sum over steps is f32
//
// Keys were smoothed, which takes q k̄ off every score of a row; softmax does not see it, lse gets it back. P V's
// columns are values v 448 / most: the last factor of the output is most / 448.
//
// The groups take turns as in attend.cu: while one weighs its scores, its P V of the step before and the other's
// products run.
//
// Floor: a step of 128 x 128 keys takes 1024 cycles of products (twice the 16-bit rate) and as many of exponentials, on
// 16 lanes: together they bound it, not the products alone. K and V are half the bytes.
#include <type_traits>

#include "cuda/sm90/attend.cuh"
#include "cuda/sm90/element.cuh"

namespace sale::sm90 {
namespace {

constexpr int p_shift = 8;  // P <= 2^8: e4m3 then reaches down to 2^-17

template <int dim>
struct LowBitTiles {
  static constexpr int D = dim, pieces = D / 64, stages = 3;
  struct alignas(1024) Keys {
    uint8_t codes[step_keys * D];
    float scales[step_blocks];
  };
  using Values = uint8_t[step_blocks][D * 32];
  struct Own {
    uint8_t q[tile_rows * D];
    float scale[tile_rows], mean_score[tile_rows];
  };

  // Block number of the coded arrays.
  __device__ static int64_t place(const AttendCall& call, const Sequence& s, int32_t kv_head, const Gathered& g,
                                  int b) {
    const int32_t id = g.id[b] >= 0 ? g.id[b] : g.id[3];  // of a missing block anything kept will do: its weight is 0
    return kv_head * call.low.blocks + (g.means ? s.mean_block_at : s.block_at) + id;
  }
  __device__ static void look_up(const AttendCall& call, const Sequence& s, int32_t kv_head, Gathered& g) {
#pragma unroll
    for (int b = 0; b < step_blocks; ++b) g.scale[b] = call.low.k_scales[place(call, s, kv_head, g, b)];
  }
  __device__ static void copy_keys(const AttendCall& call, const Sequence& s, int32_t kv_head, const Gathered& g,
                                   Keys& to, uint64_t* full) {
#pragma unroll
    for (int b = 0; b < step_blocks; ++b) to.scales[b] = g.scale[b];
    barrier_expect(full, sizeof(to.codes));
#pragma unroll
    for (int b = 0; b < step_blocks; ++b)
      copy_bytes(to.codes + b * 32 * D, call.low.k + place(call, s, kv_head, g, b) * 32 * D, 32 * D, full);
  }
  __device__ static void copy_values(const AttendCall& call, const Sequence& s, int32_t kv_head, const Gathered& g,
                                     Values& to, uint64_t* full) {
    barrier_expect(full, sizeof(to));
#pragma unroll
    for (int b = 0; b < step_blocks; ++b)
      copy_bytes(to[b], call.low.v + place(call, s, kv_head, g, b) * 32 * D, 32 * D, full);
  }
};

// A group's 64 rows of Q to INT8; two threads a row.
template <int D, class T>
__device__ void code_queries(const AttendCall& call, const Work& work, const uint16_t (&q)[D / 64][tile_rows * 64],
                             typename LowBitTiles<D>::Own& own, int group) {
  constexpr bool bf16 = std::is_same_v<T, Bf16>;
  const int t = threadIdx.x % 128, row = group * 64 + t / 2, first = t % 2 * (D / 2);
  const float* mean =
      call.low.smoothing + (int64_t{work.batch} * call.common.kv_heads + work.head / call.common.group) * D + first;
  const auto piece = [&](int i) {  // of 16 bytes
    const int at = first / 8 + i;
    return *reinterpret_cast<const uint4*>(&q[at / 8][row * 64 + ((at % 8) ^ (row % 8)) * 8]);
  };
  float most = 0, mean_score = 0;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    const uint4 v = piece(i);
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float low = low_element(pair[e], bf16), high = high_element(pair[e], bf16);
      finite = finite && isfinite(low) && isfinite(high);
      most = fmaxf(most, fmaxf(fabsf(low), fabsf(high)));
      mean_score = fmaf(low, mean[8 * i + 2 * e], fmaf(high, mean[8 * i + 2 * e + 1], mean_score));
    }
  }
  most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
  mean_score += __shfl_xor_sync(0xffffffff, mean_score, 1);
  finite = __shfl_xor_sync(0xffffffff, static_cast<int>(finite), 1) != 0 && finite;
  const bool zero = !finite || most < 0x1p-100f;
  const float by = zero ? 0.0f : 127.0f / most;
#pragma unroll
  for (int i = 0; i < D / 32; ++i) {
    uint32_t word[4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4 v = piece(2 * i + h);
      const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        uint32_t codes = 0;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int low = zero ? 0 : __float2int_rn(low_element(pair[2 * w + e], bf16) * by);
          const int high = zero ? 0 : __float2int_rn(high_element(pair[2 * w + e], bf16) * by);
          codes |= static_cast<uint32_t>((low & 0xff) | (high & 0xff) << 8) << 16 * e;
        }
        word[2 * h + w] = codes;
      }
    }
    *reinterpret_cast<uint4*>(own.q + code_offset(row, first + 16 * i, D)) = uint4{word[0], word[1], word[2], word[3]};
  }
  if (t % 2 == 0) {
    own.scale[row] = !finite ? __uint_as_float(0x7fc00000u) : zero ? 0.0f : most / 127.0f;
    own.mean_score[row] = mean_score;
  }
  fence_async();
  named_sync(4 + group, 128);
}

template <int D>
__device__ __forceinline__ void multiply_qk(int32_t (&s)[64], uint64_t q, const uint8_t* k) {
  const uint64_t b = row_descriptor(shared_address(k), D);
#pragma unroll
  for (int i = 0; i < D / 32; ++i) wgmma_n128(s, advance(q, 32 * i), advance(b, 32 * i), i > 0, S8{});
}

template <int D>
__device__ __forceinline__ void multiply_pv(float (&o)[D / 2], const uint32_t (&p)[step_blocks][4],
                                            const uint8_t (&v)[step_blocks][D * 32]) {
#pragma unroll
  for (int b = 0; b < step_blocks; ++b) {
    const uint64_t at = row_descriptor(shared_address(v[b]), 32);
    if constexpr (D == 128)
      wgmma_n128(o, p[b], at, b > 0, E4m3{});
    else
      wgmma_n64(o, p[b], at, b > 0, E4m3{});
  }
}

__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  return ptx::to_e4m3_pair(a, b) | static_cast<uint32_t>(ptx::to_e4m3_pair(c, d)) << 16;
}

// Scores of a block stand in registers 16 b .. 16 b + 15: 4 i + 2 r + e is column 8 i + 2 q + e of row r;
// key_of_place().
__device__ __forceinline__ void round_p(const float (&s)[64], uint32_t (&p)[step_blocks][4]) {
#pragma unroll
  for (int b = 0; b < step_blocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* x = s + 16 * b + 8 * h + 2 * r;
        p[b][2 * h + r] = pack_e4m3(x[0], x[1], x[4], x[5]);
      }
}

// The softmax's step from exact sums that all count: maxima are taken on integers, and a score is made on the way to
// its exponential. by: of a sum of row r and block b.
__device__ __forceinline__ void step_whole(Softmax<p_shift>& softmax, const int32_t (&sums)[64], float (&p)[64],
                                           const float (&by)[2][step_blocks], float (&shrink)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = softmax.most[r];
#pragma unroll
    for (int b = 0; b < step_blocks; ++b) {
      const int32_t* x = sums + 16 * b + 2 * r;
      const int32_t low = __vimax3_s32(x[0], x[1], x[4]), high = __vimax3_s32(x[8], x[9], x[12]);
      m = fmaxf(m, static_cast<float>(max(__vimax3_s32(low, high, x[5]), x[13])) * by[r][b]);
    }
    const float base = softmax.raise(r, softmax.most[r], m, 0, shrink[r]);
    float total[2] = {softmax.sum[r] * shrink[r], 0};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int at = i / 2 * 4 + 2 * r + i % 2;
      p[at] = ptx::exp2_approximate(fmaf(static_cast<float>(sums[at]), by[r][i / 8], -base));
      total[i % 2] += p[at];
    }
    softmax.sum[r] = total[0] + total[1];
  }
}
// Whether some score may be so large that rounding of its maximum shows in an exponential (2^-10 and more). By warp.
template <int D>
__device__ __forceinline__ bool may_be_huge(const float (&row_by)[2], const float4& scales) {
  constexpr float most_sum = 127.0f * 127.0f * D;
  const float by = fmaxf(row_by[0], row_by[1]) * fmaxf(fmaxf(scales.x, scales.y), fmaxf(scales.z, scales.w));
  return __any_sync(0xffffffff, by * most_sum > 0x1p14f);
}

template <int D, class T>
__device__ void consume(const AttendCall& call, Shared<LowBitTiles<D>>& sh) {
  using Tiles = LowBitTiles<D>;
  const Common& c = call.common;
  const int group = warpgroup() - 1, t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
  Ring<Tiles::stages> kr, vr;
  Ring<2> qr, slot;
  Softmax<p_shift> softmax;
  softmax.scale = 1;                              // scores are made in base 2
  if (group == 1) named_arrive(1, 128 * groups);  // group 0 goes first
  const uint64_t q = row_descriptor(shared_address(sh.own.q + group * 64 * D), D);
  Work work;
  while (read_item(sh, slot, work)) {
    if (work.steps == 0) {
      store_nothing<D>(call, work, group);
      continue;
    }
    // What rows r and r + 8 see; blocks from `from` on and below `whole` are seen whole by every row of the group.
    const int32_t limit[2] = {work.visible(group * 64 + row), work.visible(group * 64 + row + 8)};
    const int32_t whole = work.visible(group * 64) / static_cast<int32_t>(block_keys);
    const int32_t from = whole_from(c, work, group);
    barrier_wait(&sh.q_full[qr.index], qr.parity);
    code_queries<D, T>(call, work, sh.q[qr.index], sh.own, group);
    const float row_by[2] = {sh.own.scale[group * 64 + row] * c.scale * log2e,
                             sh.own.scale[group * 64 + row + 8] * c.scale * log2e};

    float o[D / 2], part[D / 2], shrink[2] = {0, 0};
    uint32_t prob[step_blocks][4];
    softmax.start();
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] = 0;
    // Sums of step n to probabilities (f32).
    const auto weigh = [&](const int32_t(&sums)[64], float(&scores)[64], const float4& scales, const int4& ids,
                           int32_t n, uint32_t counts, float(&to)[2]) {
      const float scale[step_blocks] = {scales.x, scales.y, scales.z, scales.w};
      float by[2][step_blocks];
#pragma unroll
      for (int i = 0; i < 2 * step_blocks; ++i)
        by[i / step_blocks][i % step_blocks] = row_by[i / step_blocks] * scale[i % step_blocks];
      const bool means = n >= work.kept;
      if (!means && ids.x >= from && ids.w < whole && !may_be_huge<D>(row_by, scales))
        return step_whole(softmax, sums, scores, by, to);
#pragma unroll
      for (int i = 0; i < 64; ++i) scores[i] = static_cast<float>(sums[i]) * by[i / 2 % 2][i / 16];
      if (means)
        weigh_means(scores, counts, softmax.scale);
      else
        hide(scores, c, work, ids, limit, group * 64 + row);
      softmax.step(scores, to, means ? mean_bonus : 0.0f);
    };
    {
      int32_t sums[64];
      float scores[64];
      const uint32_t counts = counts_of(c, work, 0);
      barrier_wait(&sh.k_full[kr.index], kr.parity);
      const int4 ids = read_once(*reinterpret_cast<const int4*>(sh.ids[kr.index]));
      const float4 scales = read_once(*reinterpret_cast<const float4*>(sh.k[kr.index].scales));
      wgmma_touch(sums);
      wgmma_fence();
      multiply_qk<D>(sums, q, sh.k[kr.index].codes);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_touch(sums);
      release(&sh.k_empty[kr.index]);
      kr.next();
      weigh(sums, scores, scales, ids, 0, counts, shrink);
      round_p(scores, prob);
    }
#pragma unroll 1
    for (int32_t n = 1; n < work.steps; ++n) {
      int32_t sums[64];
      float scores[64], next[2];
      const uint32_t counts = counts_of(c, work, n);
      barrier_wait(&sh.k_full[kr.index], kr.parity);
      const int4 ids = read_once(*reinterpret_cast<const int4*>(sh.ids[kr.index]));
      const float4 scales = read_once(*reinterpret_cast<const float4*>(sh.k[kr.index].scales));
      named_sync(1 + group, 128 * groups);
      wgmma_touch(sums);
      wgmma_touch(part);
      wgmma_fence();
      multiply_qk<D>(sums, q, sh.k[kr.index].codes);
      wgmma_commit();
      barrier_wait(&sh.v_full[vr.index], vr.parity);
      multiply_pv<D>(part, prob, sh.v[vr.index]);
      wgmma_commit();
      named_arrive(2 - group, 128 * groups);
      wgmma_wait<1>();
      wgmma_touch(sums);
      release(&sh.k_empty[kr.index]);
      kr.next();
      weigh(sums, scores, scales, ids, n, counts, next);
      wgmma_wait<0>();
      wgmma_touch(part);
      release(&sh.v_empty[vr.index]);
      vr.next();
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] = fmaf(o[i], shrink[i / 2 % 2], part[i]);
      shrink[0] = next[0], shrink[1] = next[1];
      round_p(scores, prob);
    }
    barrier_wait(&sh.v_full[vr.index], vr.parity);
    wgmma_touch(part);
    wgmma_fence();
    multiply_pv<D>(part, prob, sh.v[vr.index]);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_touch(part);
    release(&sh.v_empty[vr.index]);
    vr.next();
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] = fmaf(o[i], shrink[i / 2 % 2], part[i]);
    const float* most = call.low.v_most + (int64_t{work.batch} * c.kv_heads + work.head / c.group) * D + t % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      const float2 m = *reinterpret_cast<const float2*>(most + 8 * i);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        o[4 * i + 2 * r] *= m.x * (1.0f / e4m3_most);
        o[4 * i + 2 * r + 1] *= m.y * (1.0f / e4m3_most);
      }
    }
    const float add[2] = {sh.own.mean_score[group * 64 + row] * c.scale,
                          sh.own.mean_score[group * 64 + row + 8] * c.scale};
    store<D, T>(call, work, sh.q[qr.index], group, o, softmax, add);
    fence_async();
    named_sync(4 + group, 128);
    if (t == 0) barrier_arrive(&sh.q_empty[qr.index]);
    qr.next();
  }
  if (group == 0) named_sync(1, 128 * groups);  // what group 1 arrived at last
}

template <int D, class T>
__global__ void __launch_bounds__(attend_threads, 1) attend8_kernel(const __grid_constant__ AttendCall call) {
  extern __shared__ char raw[];
  auto& sh = shared_as<Shared<LowBitTiles<D>>>(raw);
  start_barriers(sh);
  if (threadIdx.x < 128) {
    give_registers<56>();
    if (threadIdx.x < 32)
      produce<LowBitTiles<D>, true>(call, sh);
    else if (threadIdx.x < 64)
      produce<LowBitTiles<D>, false>(call, sh);
  } else {
    take_registers<224>();
    consume<D, T>(call, sh);
  }
}

// f(kernel, bytes of shared memory) for the one that serves such a call.
template <class F>
cudaError_t with_kernel(int32_t dim, int32_t dtype, F&& f) {
  if (dim == 128)
    return f(dtype == SALE_BF16 ? attend8_kernel<128, Bf16> : attend8_kernel<128, F16>,
             sizeof(Shared<LowBitTiles<128>>) + 1024);
  return f(dtype == SALE_BF16 ? attend8_kernel<64, Bf16> : attend8_kernel<64, F16>,
           sizeof(Shared<LowBitTiles<64>>) + 1024);
}

}  // namespace

cudaError_t launch_attend8(const AttendCall& call, int32_t multiprocessors, cudaStream_t stream) {
  return with_kernel(call.common.head_dim, call.common.dtype, [&](auto kernel, size_t bytes) {
    kernel<<<multiprocessors, attend_threads, bytes, stream>>>(call);
    return cudaGetLastError();
  });
}

cudaError_t allow_attend8() {
  for (const int32_t dim : {64, 128})
    for (const int32_t dtype : {SALE_BF16, SALE_F16})
      if (const cudaError_t e = with_kernel(dim, dtype,
                                            [](auto kernel, size_t bytes) {
                                              return cudaFuncSetAttribute(kernel,
                                                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                                          static_cast<int>(bytes));
                                            });
          e != cudaSuccess)
        return e;
  return cudaSuccess;
}

}  // namespace sale::sm90
