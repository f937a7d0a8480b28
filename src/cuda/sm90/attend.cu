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
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/ptx/async.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/blocks.cuh"

namespace sale::sm90 {
namespace {

using namespace ptx;

constexpr int stages = 2, groups = 2, threads = 128 * (1 + groups);
constexpr int step_keys = 128, step_blocks = 4;
constexpr float log2e = 1.4426950408889634f;

template <int D>
struct Shared {
  static constexpr int pieces = D / 64;
  alignas(1024) uint16_t q[2][pieces][tile_rows * 64];
  alignas(1024) uint16_t k[stages][pieces][step_keys * 64];
  alignas(1024) uint16_t v[stages][pieces][step_keys * 64];
  alignas(16) int32_t ids[stages][step_blocks];  // of the K stage: block numbers ascending, -1 where there is none
  struct Slot {
    int32_t item, steps;  // item < 0: no more work
  } slots[2];
  uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
  uint64_t q_full[2], q_empty[2];
  uint64_t slot_full[2], slot_empty[2];
};

// A ring position: index and the parity of its phase.
template <int N>
struct Ring {
  int index = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++index == N) {
      index = 0;
      parity ^= 1;
    }
  }
};

// All items of one kv head before the next: what the multiprocessors read at a time then fits L2.
__device__ Place place_of(const Common& c, int32_t work) {
  const int32_t per_head = c.n_items * c.group, kv_head = work / per_head, rest = work % per_head;
  const Item& i = c.items[rest / c.group];
  return {&c.sequences[i.sequence], i.tile, kv_head * c.group + rest % c.group};
}

// ---- producer -------------------------------------------------------------------------------------------------------

// Set bits of a row of words, highest first. All lanes of the warp together.
struct Bits {
  const uint64_t* words;
  int32_t word;      // being taken apart
  uint64_t current;  // what is left of it
  uint64_t mine;     // this lane's word of the 32 around

  __device__ Bits(const uint64_t* row, int32_t n_words) : words(row), word(n_words), current(0), mine(0) {}
  __device__ int32_t next() {
    const int lane = threadIdx.x % 32;
    while (current == 0) {
      if (word == 0) return -1;
      --word;
      if (word % 32 == 31 || mine_group != word / 32) {
        mine_group = word / 32;
        const int32_t at = mine_group * 32 + lane;
        mine = at <= word ? words[at] : 0;
      }
      current = __shfl_sync(0xffffffff, mine, word % 32);
    }
    const int bit = 63 - __clzll(static_cast<long long>(current));
    current ^= uint64_t{1} << bit;
    return word * 64 + bit;
  }

private:
  int32_t mine_group = -1;
};

struct Gathered {
  int32_t id[step_blocks];  // ascending; -1 first where there is none
};

template <int D>
__device__ void copy_blocks(const AttendCall& call, const Sequence& s, int32_t kv_head, const Gathered& g,
                            uint16_t (&to)[D / 64][step_keys * 64], const CUtensorMap* map32, const CUtensorMap* map128,
                            uint64_t* full) {
  const Common& c = call.common;
  barrier_expect(full, sizeof(to));
  if (c.page_size == 0 && g.id[0] >= 0 && g.id[3] == g.id[0] + 3) {
    for (int piece = 0; piece < D / 64; ++piece)
      copy_box(to[piece], map128, full, piece * 64, static_cast<int32_t>(s.k_start + g.id[0] * block_keys), kv_head,
               s.batch);
    return;
  }
  const int rows = c.page_size % 32 == 0 ? 32 : 16;
  for (int b = 0; b < step_blocks; ++b) {
    const int32_t id = g.id[b] >= 0 ? g.id[b] : g.id[3];  // of a missing block anything kept will do: its weight is 0
    for (int r = 0; r < block_keys; r += rows) {
      const int64_t key = least(int64_t{id} * block_keys + r, s.k_len - 1);
      const KeyPlace at = key_place(c, s, c.page_size == 0 ? int64_t{id} * block_keys + r : key / 16 * 16);
      for (int piece = 0; piece < D / 64; ++piece)
        copy_box(&to[piece][(b * block_keys + r) * 64], map32, full, piece * 64, at.token, kv_head, at.outer);
    }
  }
}

// The next item for everyone, by the K warp. Returns false when there is none left.
template <int D>
__device__ bool take_item(const AttendCall& call, Shared<D>& sh, Ring<2>& slot, int32_t& work, int32_t& steps) {
  const Common& c = call.common;
  const int lane = threadIdx.x % 32;
  if (lane == 0) work = atomicAdd(call.counter, 1);
  work = __shfl_sync(0xffffffff, work, 0);
  barrier_wait(&sh.slot_empty[slot.index], slot.parity ^ 1);
  const bool any = work < c.n_items * c.q_heads;
  int32_t kept = 0;
  if (any) {
    const Place p = place_of(c, work);
    const uint64_t* row = tile_bits(c, *p.sequence, p.tile, p.head);
    const int32_t n_words = (visible_blocks(*p.sequence, p.tile) + 63) / 64;
    for (int32_t w = lane; w < n_words; w += 32) kept += __popcll(row[w]);
    kept = __reduce_add_sync(0xffffffff, kept);
  }
  steps = (kept + step_blocks - 1) / step_blocks;
  if (lane == 0) {
    sh.slots[slot.index] = {any ? work : -1, steps};
    barrier_arrive(&sh.slot_full[slot.index]);
  }
  slot.next();
  return any;
}

// The same, by everyone else: one lane of each warp says that it has read the slot.
template <int D>
__device__ bool read_item(Shared<D>& sh, Ring<2>& slot, int32_t& work, int32_t& steps) {
  barrier_wait(&sh.slot_full[slot.index], slot.parity);
  work = sh.slots[slot.index].item;
  steps = sh.slots[slot.index].steps;
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(&sh.slot_empty[slot.index]);
  slot.next();
  return work >= 0;
}

template <int D, bool keys>
__device__ void produce(const AttendCall& call, Shared<D>& sh) {
  const Common& c = call.common;
  const int lane = threadIdx.x % 32;
  Ring<stages> ring;
  Ring<2> qr, slot;
  int32_t work = 0, steps = 0;
  while (keys ? take_item<D>(call, sh, slot, work, steps) : read_item<D>(sh, slot, work, steps)) {
    const Place p = place_of(c, work);
    const Sequence& s = *p.sequence;
    const int32_t kv_head = p.head / c.group;
    if constexpr (keys) {
      barrier_wait(&sh.q_empty[qr.index], qr.parity ^ 1);
      if (lane == 0) {
        barrier_expect(&sh.q_full[qr.index], sizeof(sh.q[0]));
        for (int piece = 0; piece < D / 64; ++piece)
          for (int half = 0; half < 2; ++half)
            copy_box(&sh.q[qr.index][piece][half * 64 * 64], &call.q64, &sh.q_full[qr.index], piece * 64,
                     static_cast<int32_t>(s.q_start + p.tile * tile_rows + half * 64), p.head, s.batch);
      }
      qr.next();
    }
    Bits bits(tile_bits(c, s, p.tile, p.head), (visible_blocks(s, p.tile) + 63) / 64);
    for (int32_t n = 0; n < steps; ++n) {
      Gathered g;
#pragma unroll
      for (int b = step_blocks - 1; b >= 0; --b) g.id[b] = bits.next();
      const int at = ring.index;
      barrier_wait(keys ? &sh.k_empty[at] : &sh.v_empty[at], ring.parity ^ 1);
      if (lane == 0) {
        if constexpr (keys) {
#pragma unroll
          for (int b = 0; b < step_blocks; ++b) sh.ids[at][b] = g.id[b];
          copy_blocks<D>(call, s, kv_head, g, sh.k[at], &call.k32, &call.k128, &sh.k_full[at]);
        } else {
          copy_blocks<D>(call, s, kv_head, g, sh.v[at], &call.v32, &call.v128, &sh.v_full[at]);
        }
      }
      ring.next();
    }
  }
}

// ---- consumers ------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<Bf16>(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
__device__ __forceinline__ uint32_t pack<F16>(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Thread t of a group holds rows r = 16 (t / 32) + t % 32 / 4 and r + 8 of S, columns 8 i + 2 (t % 4) + {0, 1}:
// S[4 i + 0, 1] of row r, S[4 i + 2, 3] of row r + 8.
struct Softmax {
  float most[2], sum[2];
  float scale;  // of scores, in base 2

  __device__ void start() {
    most[0] = most[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
  // S becomes P (f32); returns by how much what was summed so far must shrink.
  __device__ void step(float (&s)[64], float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float m = most[r];
#pragma unroll
      for (int i = 0; i < 16; ++i) m = fmaxf(m, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
      m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
      const float base = m == -INFINITY ? 0.0f : m * scale;
      shrink[r] = exp2f_fast(most[r] * scale - base);
      most[r] = m;
      float total = sum[r] * shrink[r];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        s[4 * i + 2 * r] = exp2f_fast(fmaf(s[4 * i + 2 * r], scale, -base));
        s[4 * i + 2 * r + 1] = exp2f_fast(fmaf(s[4 * i + 2 * r + 1], scale, -base));
        total += s[4 * i + 2 * r] + s[4 * i + 2 * r + 1];
      }
      sum[r] = total;
    }
  }
  __device__ static float exp2f_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
};

// Scores of keys that a row does not see become -inf. limit: keys seen by rows r and r + 8.
__device__ __forceinline__ void mask(float (&s)[64], const int4& ids, int32_t limit0, int32_t limit1) {
  const int column = threadIdx.x % 4 * 2;
  const int32_t id[4] = {ids.x, ids.y, ids.z, ids.w};
#pragma unroll
  for (int b = 0; b < step_blocks; ++b) {
    const int32_t first = id[b] * static_cast<int32_t>(block_keys) + column;
    const int32_t left0 = id[b] < 0 ? 0 : limit0 - first, left1 = id[b] < 0 ? 0 : limit1 - first;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * i + e >= left0) s[4 * (4 * b + i) + e] = -INFINITY;
        if (8 * i + e >= left1) s[4 * (4 * b + i) + 2 + e] = -INFINITY;
      }
    }
  }
}

template <int D, class T>
__device__ __forceinline__ void multiply_qk(float (&s)[64], const uint16_t (&q)[D / 64][tile_rows * 64], int group,
                                            const uint16_t (&k)[D / 64][step_keys * 64]) {
#pragma unroll
  for (int piece = 0; piece < D / 64; ++piece) {
    const uint64_t a = row_descriptor(shared_address(&q[piece][group * 64 * 64]), 128);
    const uint64_t b = row_descriptor(shared_address(&k[piece][0]), 128);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma_n128(s, a + 2 * i, b + 2 * i, piece + i > 0, T{});
  }
}

template <int D, class T>
__device__ __forceinline__ void multiply_pv(float (&o)[D / 2], const uint32_t (&p)[8][4],
                                            const uint16_t (&v)[D / 64][step_keys * 64]) {
  // Rows are keys, 64 values of 128 bytes; the next 64 values stand a piece further, the next 8 keys 1024 bytes.
  const uint64_t b = descriptor(shared_address(&v[0][0]), 128, sizeof(v[0]), 1024);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (D == 128)
      wgmma_n128_transposed(o, p[i], b + i * (16 * 128 / 16), true, T{});
    else
      wgmma_n64_transposed(o, p[i], b + i * (16 * 128 / 16), true, T{});
  }
}

template <class T>
__device__ __forceinline__ void round_p(const float (&s)[64], uint32_t (&p)[8][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) p[i][e] = pack<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
}

// Rows of V beyond the last key may hold anything, and a weight of 0 does not silence NaN. The last block is among the
// first four; where there are fewer, copies of it stand in for the missing ones.
template <int D>
__device__ void clear_rows(uint16_t (&v)[D / 64][step_keys * 64], const int4& ids, int64_t k_len) {
  const int missing = (ids.x < 0) + (ids.y < 0) + (ids.z < 0);
  const int valid = static_cast<int>(k_len - int64_t{ids.w} * block_keys);
  for (int piece = 0; piece < D / 64; ++piece)
    for (int i = threadIdx.x - 128; i < step_keys * 8; i += 128 * groups)  // pieces of 16 bytes
      if (i / 8 < missing * block_keys || i / 8 >= 96 + valid)
        reinterpret_cast<uint4*>(v[piece])[i] = uint4{0, 0, 0, 0};
  fence_async();
  named_sync(3, 128 * groups);
}

template <int D, class T>
__device__ void store(const AttendCall& call, const Place& p, uint16_t (&tile)[D / 64][tile_rows * 64], int group,
                      const float (&o)[D / 2], const Softmax& softmax) {
  const Sequence& s = *p.sequence;
  const int t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4, column = t % 4;
  float inverse[2], lse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = softmax.sum[r];
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    inverse[r] = sum == 0 ? 0.0f : 1.0f / sum;
    lse[r] = sum == 0 ? -INFINITY : softmax.most[r] * (softmax.scale / log2e) + logf(sum);
  }
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = group * 64 + row + 8 * r;
      const uint32_t v = pack<T>(o[4 * i + 2 * r] * inverse[r], o[4 * i + 2 * r + 1] * inverse[r]);
      *reinterpret_cast<uint32_t*>(&tile[i / 8][at * 64 + ((i % 8) ^ (at % 8)) * 8 + column * 2]) = v;
    }
  }
  const int64_t first = int64_t{p.tile} * tile_rows + group * 64;
  if (call.lse != nullptr && column == 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (first + row + 8 * r < s.q_len)
        call.lse[(int64_t{s.batch} * call.common.q_heads + p.head) * call.lse_rows + first + row + 8 * r] = lse[r];
  }
  named_sync(4 + group, 128);
  uint16_t* out = static_cast<uint16_t*>(call.out) + s.batch * call.out_batch + p.head * call.out_head +
                  (s.q_start + first) * call.out_token;
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    const int at = i * 128 + t, r = at / (D / 8), piece = at % (D / 8);  // D / 8 pieces of 16 bytes a row
    const int in = group * 64 + r;
    if (first + r < s.q_len)
      *reinterpret_cast<uint4*>(out + r * call.out_token + piece * 8) =
          *reinterpret_cast<const uint4*>(&tile[piece / 8][in * 64 + ((piece % 8) ^ (in % 8)) * 8]);
  }
}

template <int D, class T>
__device__ void consume(const AttendCall& call, Shared<D>& sh) {
  const Common& c = call.common;
  const int group = threadIdx.x / 128 - 1, t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
  const bool speaks = threadIdx.x % 32 == 0;
  Ring<stages> kr, vr;
  Ring<2> qr, slot;
  Softmax softmax;
  softmax.scale = c.scale * log2e;
  if (group == 1) named_arrive(1, 128 * groups);  // group 0 goes first
  int32_t work, steps;
  while (read_item<D>(sh, slot, work, steps)) {
    const Place p = place_of(c, work);
    const Sequence& s = *p.sequence;
    const int64_t first = int64_t{p.tile} * tile_rows + group * 64;
    // Blocks below this one are seen whole by every row of the group.
    const int32_t whole = static_cast<int32_t>(visible_keys(s, first) / block_keys);
    const auto hide = [&](float(&x)[64], const int4& ids) {
      if (ids.x >= 0 && ids.w < whole) return;
      mask(x, ids, static_cast<int32_t>(visible_keys(s, first + row)),
           static_cast<int32_t>(visible_keys(s, first + row + 8)));
    };

    float o[D / 2], scores[64], shrink[2];
    uint32_t prob[8][4];
    softmax.start();
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] = 0;
    barrier_wait(&sh.q_full[qr.index], qr.parity);

    if (steps > 0) {
      barrier_wait(&sh.k_full[kr.index], kr.parity);
      const int4 ids = *reinterpret_cast<const int4*>(sh.ids[kr.index]);
      wgmma_fence();
      multiply_qk<D, T>(scores, sh.q[qr.index], group, sh.k[kr.index]);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_touch(scores);
      if (speaks) barrier_arrive(&sh.k_empty[kr.index]);
      kr.next();
      hide(scores, ids);
      softmax.step(scores, shrink);
      round_p<T>(scores, prob);
      if (int64_t{ids.w + 1} * block_keys > s.k_len) {
        barrier_wait(&sh.v_full[vr.index], vr.parity);
        clear_rows<D>(sh.v[vr.index], ids, s.k_len);
      }
    }
#pragma unroll 1
    for (int32_t n = 1; n < steps; ++n) {
      barrier_wait(&sh.k_full[kr.index], kr.parity);
      const int4 ids = *reinterpret_cast<const int4*>(sh.ids[kr.index]);
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
      if (speaks) barrier_arrive(&sh.k_empty[kr.index]);
      kr.next();
      hide(scores, ids);
      softmax.step(scores, shrink);
      wgmma_wait<0>();
      wgmma_touch(o);
      if (speaks) barrier_arrive(&sh.v_empty[vr.index]);
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
    if (steps > 0) {
      barrier_wait(&sh.v_full[vr.index], vr.parity);
      wgmma_touch(o);
      wgmma_fence();
      multiply_pv<D, T>(o, prob, sh.v[vr.index]);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_touch(o);
      if (speaks) barrier_arrive(&sh.v_empty[vr.index]);
      vr.next();
    }
    store<D, T>(call, p, sh.q[qr.index], group, o, softmax);
    fence_async();
    named_sync(4 + group, 128);
    if (t == 0) barrier_arrive(&sh.q_empty[qr.index]);
    qr.next();
  }
  if (group == 0) named_sync(1, 128 * groups);  // what group 1 arrived at last
}

template <int D, class T>
__global__ void __launch_bounds__(threads, 1) attend_kernel(const __grid_constant__ AttendCall call) {
  extern __shared__ char raw[];
  Shared<D>& sh = *reinterpret_cast<Shared<D>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(&sh.k_full[i], 1);
      barrier_init(&sh.v_full[i], 1);
      barrier_init(&sh.k_empty[i], 4 * groups);
      barrier_init(&sh.v_empty[i], 4 * groups);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(&sh.q_full[i], 1);
      barrier_init(&sh.q_empty[i], groups);
      barrier_init(&sh.slot_full[i], 1);
      barrier_init(&sh.slot_empty[i], 1 + 4 * groups);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<56>();
    if (threadIdx.x < 32)
      produce<D, true>(call, sh);
    else if (threadIdx.x < 64)
      produce<D, false>(call, sh);
  } else {
    take_registers<224>();
    consume<D, T>(call, sh);
  }
}

template <int D, class T>
cudaError_t launch(const AttendCall& call, int32_t multiprocessors, cudaStream_t stream) {
  attend_kernel<D, T><<<multiprocessors, threads, sizeof(Shared<D>) + 1024, stream>>>(call);
  return cudaGetLastError();
}

template <int D, class T>
cudaError_t allow() {
  return cudaFuncSetAttribute(attend_kernel<D, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(Shared<D>) + 1024));
}

}  // namespace

cudaError_t launch_attend(const AttendCall& call, int32_t multiprocessors, cudaStream_t stream) {
  const cudaError_t cleared = cudaMemsetAsync(call.counter, 0, sizeof(int32_t), stream);
  if (cleared != cudaSuccess) return cleared;
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
