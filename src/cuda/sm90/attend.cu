// Exact attention over the kept blocks of every (sequence, 128-row tile, query head). Hopper.
//
// One thread block stays on each multiprocessor and takes items, longest first, from a counter:
//
//   2 producer warps  read the tile's block bits, last block first, gather four blocks of 32 keys at a time
//                     ─▶ K stage, V stage (128 keys)        copy engine, boxes of 32 rows (128 when the four adjoin)
//   2 consumer groups 64 rows each, the same four blocks:
//                     S = Q Kᵀ ─▶ online softmax ─▶ P ─▶ O += P V
//
// While one group's softmax runs on the vector units, the other's products run on the tensor cores (named barriers 1, 2
// hand over); within a group S of the next step is multiplied before P V of the last one, so that softmax overlaps with
// P V too.
//
//   group 0     QK(n+1) PV(n) │ softmax(n+1)      │ QK(n+2) PV(n+1) │ ...
//   group 1     softmax(n)    │ QK(n+1) PV(n)     │ softmax(n+1)    │ ...
//
// Shared memory (d = 128): Q 2 x 32 KB (the next item's Q arrives while this one is worked on; O leaves through it),
// K 2 x 32 KB, V 2 x 32 KB. All tiles: columns in pieces of 64, 128 bytes a row, 128-byte swizzle.
//
// Numbers: S in f32 from 16-bit products; softmax in base 2, f32; P rounded to the tensors' type; O in f32. The
// arithmetic of an item depends on its own list alone.
//
// Floor: 4 d operations a kept pair; at the 989 TFLOP/s of the data sheet a step of 128 x 128 takes 2048 cycles, its
// exponentials 1024 on 16 lanes, its K and V 64 KB, 32 bytes a cycle, from L2. What was reached: docs/performance.md.
//
// What it taught: a producer has some 3000 cycles a step, and 16 copies each with 15 instructions around it; every load
// of a Sequence, 64-bit division or bit-by-bit walk in between shows in the time of the whole kernel.
#include "cuda/sm90/exact_products.cuh"

namespace sale::sm90 {
namespace {

template <int D>
__device__ void copy_blocks(const Common& c, const Sequence& s, int32_t kv_head, const Gathered& g, Tile<D>& to,
                            const CUtensorMap* map32, const CUtensorMap* map128, const CUtensorMap* means,
                            uint64_t* full) {
  barrier_expect(full, sizeof(to));
  if (g.means) {
    for (int piece = 0; piece < D / 64; ++piece)
      copy_box(to[piece], means, full, piece * 64, static_cast<int32_t>(s.mean_at + g.id[0] * 32), kv_head, 0);
    return;
  }
  const auto start = static_cast<int32_t>(s.k_start);
  if (c.page_size == 0 && g.id[0] >= 0 && g.id[3] == g.id[0] + 3) {
    for (int piece = 0; piece < D / 64; ++piece)
      copy_box(to[piece], map128, full, piece * 64, start + g.id[0] * 32, kv_head, s.batch);
    return;
  }
  const auto kept = [&](int b) { return g.id[b] >= 0 ? g.id[b] : g.id[3]; };  // for a missing block any will do
  if (c.page_size == 0) {
#pragma unroll
    for (int b = 0; b < step_blocks; ++b)
#pragma unroll
      for (int piece = 0; piece < D / 64; ++piece)  // these two adjoin in memory
        copy_box(&to[piece][b * 32 * 64], map32, full, piece * 64, start + kept(b) * 32, kv_head, s.batch);
    return;
  }
  const int rows = c.page_size % 32 == 0 ? 32 : 16;
  for (int b = 0; b < step_blocks; ++b) {
    for (int r = 0; r < 32; r += rows) {
      const KeyPlace at = key_place(c, s, least(int64_t{kept(b)} * 32 + r, s.k_len - 1) / 16 * 16);
      for (int piece = 0; piece < D / 64; ++piece)
        copy_box(&to[piece][(b * 32 + r) * 64], map32, full, piece * 64, at.token, kv_head, at.outer);
    }
  }
}

template <int dim>
struct Exact {
  static constexpr int D = dim, pieces = D / 64, stages = 2;
  using Keys = Tile<D>;
  using Values = Tile<D>;
  struct Own {};
  __device__ static void look_up(const AttendCall&, const Sequence&, int32_t, Gathered&) {}
  __device__ static void copy_keys(const AttendCall& call, const Sequence& s, int32_t kv_head, const Gathered& g,
                                   Keys& to, uint64_t* full) {
    copy_blocks<D>(call.common, s, kv_head, g, to, &call.k32, &call.k128, &call.k_means, full);
  }
  __device__ static void copy_values(const AttendCall& call, const Sequence& s, int32_t kv_head, const Gathered& g,
                                     Values& to, uint64_t* full) {
    copy_blocks<D>(call.common, s, kv_head, g, to, &call.v32, &call.v128, &call.v_means, full);
  }
};

// Rows of V beyond the last key may hold anything, and a weight of 0 does not silence NaN. The last block is among the
// first four; where there are fewer, copies of it stand in for the missing ones.
template <int D>
__device__ void clear_rows(uint16_t (&v)[D / 64][step_keys * 64], const int4& ids, int32_t k_len) {
  const int missing = (ids.x < 0) + (ids.y < 0) + (ids.z < 0);
  const int valid = k_len - ids.w * static_cast<int>(block_keys);
  for (int piece = 0; piece < D / 64; ++piece)
    for (int i = threadIdx.x - 128; i < step_keys * 8; i += 128 * groups)  // pieces of 16 bytes
      if (i / 8 < missing * block_keys || i / 8 >= 96 + valid)
        reinterpret_cast<uint4*>(v[piece])[i] = uint4{0, 0, 0, 0};
  fence_async();
  named_sync(3, 128 * groups);
}

template <int D, class T>
__device__ void consume(const AttendCall& call, Shared<Exact<D>>& sh) {
  const Common& c = call.common;
  const int group = warpgroup() - 1, t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
  Ring<Exact<D>::stages> kr, vr;
  Ring<2> qr, slot;
  Softmax<shift_of<T>> softmax;
  softmax.scale = c.scale * log2e;
  if (group == 1) named_arrive(1, 128 * groups);  // group 0 goes first
  const float bonus = mean_bonus / softmax.scale;
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
    const auto hide_some = [&](float(&x)[64], const int4& ids) {
      if (ids.x < from || ids.w >= whole) hide(x, c, work, ids, limit, group * 64 + row);
    };

    float o[D / 2], scores[64], shrink[2];
    uint32_t prob[8][4];
    softmax.start();
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] = 0;
    barrier_wait(&sh.q_full[qr.index], qr.parity);

    {
      const uint32_t counts = counts_of(c, work, 0);
      barrier_wait(&sh.k_full[kr.index], kr.parity);
      const int4 ids = read_once(*reinterpret_cast<const int4*>(sh.ids[kr.index]));
      wgmma_fence();
      multiply_qk<D, T>(scores, sh.q[qr.index], group, sh.k[kr.index]);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_touch(scores);
      release(&sh.k_empty[kr.index]);
      kr.next();
      const bool means = work.kept == 0;
      if (means)
        weigh_means(scores, counts, softmax.scale);
      else
        hide_some(scores, ids);
      softmax.step(scores, shrink, means ? bonus : 0.0f);
      round_p<T>(scores, prob);
      if (!means && ids.w >= work.k_len / static_cast<int32_t>(block_keys)) {
        barrier_wait(&sh.v_full[vr.index], vr.parity);
        clear_rows<D>(sh.v[vr.index], ids, work.k_len);
      }
    }
#pragma unroll 1
    for (int32_t n = 1; n < work.steps; ++n) {
      const uint32_t counts = counts_of(c, work, n);
      barrier_wait(&sh.k_full[kr.index], kr.parity);
      const int4 ids = read_once(*reinterpret_cast<const int4*>(sh.ids[kr.index]));
      named_sync(1 + group, 128 * groups);
      wgmma_touch(scores);
      wgmma_fence();
      multiply_qk<D, T>(scores, sh.q[qr.index], group, sh.k[kr.index]);
      wgmma_commit();
      barrier_wait(&sh.v_full[vr.index], vr.parity);
      multiply_pv<D, T>(o, prob, sh.v[vr.index]);
      wgmma_commit();
      named_arrive(2 - group, 128 * groups);
      wgmma_wait<1>();
      wgmma_touch(scores);
      release(&sh.k_empty[kr.index]);
      kr.next();
      if (n < work.kept) {
        hide_some(scores, ids);
        softmax.step(scores, shrink);
      } else {
        weigh_means(scores, counts, softmax.scale);
        softmax.step(scores, shrink, bonus);
      }
      wgmma_wait<0>();
      wgmma_touch(o);
      release(&sh.v_empty[vr.index]);
      vr.next();
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        o[4 * i] *= shrink[0];
        o[4 * i + 1] *= shrink[0];
        o[4 * i + 2] *= shrink[1];
        o[4 * i + 3] *= shrink[1];
      }
      round_p<T>(scores, prob);
    }
    barrier_wait(&sh.v_full[vr.index], vr.parity);
    wgmma_touch(o);
    wgmma_fence();
    multiply_pv<D, T>(o, prob, sh.v[vr.index]);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_touch(o);
    release(&sh.v_empty[vr.index]);
    vr.next();
    store<D, T>(call, work, sh.q[qr.index], group, o, softmax, {0.0f, 0.0f});
    fence_async();
    named_sync(4 + group, 128);
    if (t == 0) barrier_arrive(&sh.q_empty[qr.index]);
    qr.next();
  }
  if (group == 0) named_sync(1, 128 * groups);  // what group 1 arrived at last
}

template <int D, class T>
__global__ void __launch_bounds__(attend_threads, 1) attend_kernel(const __grid_constant__ AttendCall call) {
  extern __shared__ char raw[];
  auto& sh = shared_as<Shared<Exact<D>>>(raw);
  start_barriers(sh);
  if (threadIdx.x < 128) {
    give_registers<56>();
    if (threadIdx.x < 32)
      produce<Exact<D>, true>(call, sh);
    else if (threadIdx.x < 64)
      produce<Exact<D>, false>(call, sh);
  } else {
    take_registers<224>();
    consume<D, T>(call, sh);
  }
}

template <int D, class T>
cudaError_t launch(const AttendCall& call, int32_t multiprocessors, cudaStream_t stream) {
  attend_kernel<D, T><<<multiprocessors, attend_threads, sizeof(Shared<Exact<D>>) + 1024, stream>>>(call);
  return cudaGetLastError();
}

template <int D, class T>
cudaError_t allow() {
  return cudaFuncSetAttribute(attend_kernel<D, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(Shared<Exact<D>>) + 1024));
}

}  // namespace

cudaError_t launch_attend(const AttendCall& call, int32_t multiprocessors, cudaStream_t stream) {
  const cudaError_t cleared = cudaMemsetAsync(call.counter, 0, sizeof(int32_t), stream);
  if (cleared != cudaSuccess) return cleared;
  if (call.low.k != nullptr) return launch_attend8(call, multiprocessors, stream);
  const bool wide = call.common.head_dim == 128, bf16 = call.common.dtype == SALE_BF16;
  if (wide)
    return bf16 ? launch<128, Bf16>(call, multiprocessors, stream) : launch<128, F16>(call, multiprocessors, stream);
  return bf16 ? launch<64, Bf16>(call, multiprocessors, stream) : launch<64, F16>(call, multiprocessors, stream);
}

cudaError_t allow_attend() {
  for (const auto f : {allow<128, Bf16>, allow<128, F16>, allow<64, Bf16>, allow<64, F16>})
    if (const cudaError_t e = f(); e != cudaSuccess) return e;
  return cudaSuccess;
}

}  // namespace sale::sm90
