// What exact and low-bit attention share: how items are handed out, how a block list is walked and gathered, and the
// way out. Hopper.
//
// A policy says what a stage of K or V is and how it is filled:
//
//   P::D, P::pieces, P::stages   head dimension, pieces of 64 elements, stages of the rings
//   P::Keys, P::Values           a stage: 128 keys, or four blocks of means
//   P::Own                       what else the consumers keep in shared memory
//   P::look_up                   what is read ahead of a step     by one thread, before the stage is free
//   P::copy_keys, copy_values    fill a stage                     by one thread
#pragma once

#include "cuda/common/softmax.cuh"
#include "cuda/ptx/async.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/blocks.cuh"
#include "cuda/sm90/launch.hpp"

namespace sale::sm90 {

using namespace ptx;
using cuda::log2e;
using cuda::mean_bonus;
using cuda::pack;
using cuda::Softmax;
using cuda::weigh_means;

constexpr int groups = 2, attend_threads = 128 * (1 + groups);
constexpr int step_keys = 128, step_blocks = 4;

// One item as everyone sees it. The K warp alone looks it up: a Sequence is among the kernel's parameters, at an index
// only known now, and whoever reads one waits. The first `kept` steps are four blocks of the list each, the rest 128
// pseudo-keys each. There is none at all where a part of a sequence's keys has nothing that a tile keeps.
struct Work {
  int32_t sequence, tile, head;  // sequence < 0: no more work
  int32_t steps, kept;
  int32_t rows;  // that the tile has
  int32_t k_len;
  int32_t seen;  // keys that its first row sees, if there are as many
  int32_t batch;
  int64_t q_start;       // first token
  const uint64_t* bits;  // of the tile
  int32_t mean_end;      // of its dropped blocks those below count for pseudo-keys

  __device__ int32_t visible(int row) const { return min(k_len, seen + row); }
};

template <class P>
struct Shared {
  alignas(1024) uint16_t q[2][P::pieces][tile_rows * 64];
  alignas(1024) typename P::Keys k[P::stages];
  alignas(1024) typename P::Values v[P::stages];
  alignas(1024) typename P::Own own;
  // Of a K stage of blocks: their numbers ascending, -1 where there is none.
  alignas(16) int32_t ids[P::stages][step_blocks];
  Work slots[2];
  uint64_t k_full[P::stages], k_empty[P::stages], v_full[P::stages], v_empty[P::stages];
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
__device__ inline Place place_of(const Common& c, int32_t number) {
  const int32_t per_head = c.n_items * c.group, kv_head = number / per_head, rest = number % per_head;
  const Item& i = c.items[rest / c.group];
  return {&c.sequences[i.sequence], i.tile, kv_head * c.group + rest % c.group};
}

// ---- producers -----------------------------------------------------------------------------------------------------

// Set bits of a row, highest first: a dozen instructions each, for producers are as busy as anyone. All lanes of the
// warp together.
struct Bits {
  const uint32_t* row;
  int32_t words;         // of the row, 32 bits each
  int32_t first;         // word of lane 0
  uint32_t mine = 0;     // this lane's word of the 32 there
  uint32_t filled = 0;   // lanes whose words are still to come and not 0
  uint32_t current = 0;  // what is left of a word, and where its bits begin
  int32_t base = 0;

  __device__ Bits(const uint64_t* from, int32_t n_words)
      : row(reinterpret_cast<const uint32_t*>(from)), words(2 * n_words), first((words + 31) / 32 * 32) {}
  // -1 when there is none left.
  __device__ __forceinline__ int32_t next() {
    while (current == 0) {
      if (filled == 0) {
        if (first == 0) return -1;
        first -= 32;
        const int32_t at = first + static_cast<int32_t>(threadIdx.x % 32);
        mine = at < words ? row[at] : 0;
        filled = __ballot_sync(0xffffffff, mine != 0);
        continue;
      }
      const int lane = 31 - __clz(static_cast<int>(filled));
      filled ^= 1u << lane;
      current = __shfl_sync(0xffffffff, mine, lane);
      base = (first + lane) * 32;
    }
    const int bit = 31 - __clz(static_cast<int>(current));
    current ^= 1u << bit;
    return base + bit;
  }
};

// What a step works on: four blocks of keys, or four blocks of 32 means.
struct Gathered {
  int32_t id[step_blocks];  // ascending; -1 first where there is none
  bool means;
  float scale[step_blocks];  // low-bit: of the codes
};

// Four words of a stage for the whole warp. Lane 0 alone reads them, since it alone says when the stage is done with.
template <class T>
__device__ __forceinline__ T read_once(const T& from) {
  T v{};
  if (threadIdx.x % 32 == 0) v = from;
  for (auto* x : {&v.x, &v.y, &v.z, &v.w}) *x = __shfl_sync(0xffffffff, *x, 0);
  return v;
}
__device__ __forceinline__ void release(uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

// The next item, by the K warp.
__device__ inline Work look_up(const AttendCall& call, int32_t number) {
  const Common& c = call.common;
  if (number >= c.n_items * c.q_heads) return {-1, 0, 0, 0, 0, 0, 0, 0, 0, 0, nullptr, 0};
  const Place p = place_of(c, number);
  const Sequence s = *p.sequence;
  const int64_t first = int64_t{p.tile} * tile_rows;
  Work work{static_cast<int32_t>(p.sequence - c.sequences),
            p.tile,
            p.head,
            0,
            0,
            static_cast<int32_t>(least(s.q_len - first, tile_rows)),
            static_cast<int32_t>(s.k_len),
            static_cast<int32_t>(least(s.q_offset + first + 1, INT32_MAX - tile_rows)),
            s.batch,
            s.q_start + first,
            tile_bits(c, s, p.tile, p.head),
            mean_end(s, first, c.local)};
  const int32_t n_words = (end_block(s, p.tile) + 63) / 64, begin = mean_begin(c, s, p.tile, tile_rows);
  int32_t kept = 0, dropped = 0;
  for (int32_t w = threadIdx.x % 32; w < n_words; w += 32) {
    kept += __popcll(work.bits[w]);
    dropped += __popcll(~work.bits[w] & bits_below(work.mean_end - 64 * w) & ~bits_below(begin - 64 * w));
  }
  work.kept = work.steps = (__reduce_add_sync(0xffffffff, kept) + step_blocks - 1) / step_blocks;
  constexpr int32_t step_of_means = step_keys * static_cast<int32_t>(mean_blocks);  // blocks
  if (call.compensate != 0 && __any_sync(0xffffffff, dropped != 0))
    work.steps += (work.mean_end + step_of_means - 1) / step_of_means;
  return work;
}

// The same for everyone. Returns false when there is none left.
template <class P>
__device__ bool take_item(const AttendCall& call, Shared<P>& sh, Ring<2>& slot, Work& work) {
  const int lane = threadIdx.x % 32;
  int32_t number = 0;
  if (lane == 0) number = atomicAdd(call.counter, 1);
  work = look_up(call, __shfl_sync(0xffffffff, number, 0));
  barrier_wait(&sh.slot_empty[slot.index], slot.parity ^ 1);
  if (lane == 0) {
    sh.slots[slot.index] = work;
    barrier_arrive(&sh.slot_full[slot.index]);
  }
  slot.next();
  return work.sequence >= 0;
}

// By everyone else.
template <class P>
__device__ bool read_item(Shared<P>& sh, Ring<2>& slot, Work& work) {
  barrier_wait(&sh.slot_full[slot.index], slot.parity);
  work = sh.slots[slot.index];
  release(&sh.slot_empty[slot.index]);
  slot.next();
  return work.sequence >= 0;
}

template <class P, bool keys>
__device__ void produce(const AttendCall& call, Shared<P>& sh) {
  const Common& c = call.common;
  const int lane = threadIdx.x % 32;
  Ring<P::stages> ring;
  Ring<2> qr, slot;
  Work work{};
  while (keys ? take_item(call, sh, slot, work) : read_item(sh, slot, work)) {
    if (work.steps == 0) continue;
    const Sequence s = c.sequences[work.sequence];  // by value: behind every copy it would be read anew
    const int32_t kv_head = work.head / c.group;
    if constexpr (keys) {
      barrier_wait(&sh.q_empty[qr.index], qr.parity ^ 1);
      if (lane == 0) {
        barrier_expect(&sh.q_full[qr.index], sizeof(sh.q[0]));
        for (int piece = 0; piece < P::pieces; ++piece)
          for (int half = 0; half < 2; ++half)
            copy_box(&sh.q[qr.index][piece][half * 64 * 64], &call.q64, &sh.q_full[qr.index], piece * 64,
                     static_cast<int32_t>(work.q_start) + half * 64, work.head, work.batch);
      }
      qr.next();
    }
    Bits bits(work.bits, (end_block(s, work.tile) + 63) / 64);
    for (int32_t n = 0; n < work.steps; ++n) {
      Gathered g;
      g.means = n >= work.kept;
#pragma unroll
      for (int b = step_blocks - 1; b >= 0; --b) g.id[b] = g.means ? (n - work.kept) * step_blocks + b : bits.next();
      if (lane == 0 && keys) P::look_up(call, s, kv_head, g);
      const int at = ring.index;
      barrier_wait(keys ? &sh.k_empty[at] : &sh.v_empty[at], ring.parity ^ 1);
      if (lane == 0) {
        if constexpr (keys) {
#pragma unroll
          for (int b = 0; b < step_blocks; ++b) sh.ids[at][b] = g.id[b];
          P::copy_keys(call, s, kv_head, g, sh.k[at], &sh.k_full[at]);
        } else {
          P::copy_values(call, s, kv_head, g, sh.v[at], &sh.v_full[at]);
        }
      }
      ring.next();
    }
  }
}

// ---- consumers ------------------------------------------------------------------------------------------------------

// Thread t of a group is lane t % 32 of its warp t / 32, whose 16 rows are the group's from 16 (t / 32) on.
__device__ __forceinline__ void mask(float (&s)[64], const int4& ids, int32_t limit0, int32_t limit1) {
  const int32_t id[step_blocks] = {ids.x, ids.y, ids.z, ids.w};
  cuda::mask<step_blocks>(s, id, limit0, limit1);
}
// Where there are windows: the key from which on the row of a tile sees.
__device__ __forceinline__ int32_t first_seen(const Common& c, const Work& work, int row) {
  const int64_t key = c.sequences[work.sequence].first_key(int64_t{work.tile} * tile_rows + row);
  return static_cast<int32_t>(least(key, cuda::max_keys));
}
// Blocks from this one on are seen from their first key on by every row of a group.
__device__ __forceinline__ int32_t whole_from(const Common& c, const Work& work, int group) {
  constexpr auto keys = static_cast<int32_t>(block_keys);
  return c.windowed == 0 ? 0 : (first_seen(c, work, group * 64 + 63) + keys - 1) / keys;
}
// Scores of keys that rows `row` and `row` + 8 of the tile do not see become -inf. limit: keys seen by them.
__device__ __forceinline__ void hide(float (&s)[64], const Common& c, const Work& work, const int4& ids,
                                     const int32_t (&limit)[2], int row) {
  mask(s, ids, limit[0], limit[1]);
  if (c.windowed == 0) return;
  const int32_t id[step_blocks] = {ids.x, ids.y, ids.z, ids.w};
  cuda::mask_behind<step_blocks>(s, id, first_seen(c, work, row), first_seen(c, work, row + 8),
                                 static_cast<int32_t>(c.sequences[work.sequence].sink_blocks()));
}
// For weigh_means(), of step n; 0 of a step of blocks.
__device__ __forceinline__ uint32_t counts_of(const Common& c, const Work& work, int32_t n) {
  constexpr int words = step_keys / 4;
  if (n < work.kept) return 0;
  const int32_t begin = c.windowed == 0 ? 0 : mean_begin(c, c.sequences[work.sequence], work.tile, tile_rows);
  return dropped_counts(work.bits, (n - work.kept) * words + static_cast<int32_t>(threadIdx.x) % words, begin,
                        work.mean_end);
}

// Where the rows of a group go.
__device__ __forceinline__ uint16_t* out_of(const AttendCall& call, const Work& work, int group) {
  return static_cast<uint16_t*>(call.out) + work.batch * call.out_batch + work.head * call.out_head +
         (work.q_start + group * 64) * call.out_token;
}
__device__ __forceinline__ float* lse_of(const AttendCall& call, const Work& work, int group) {
  return call.lse + (int64_t{work.batch} * call.common.q_heads + work.head) * call.lse_rows +
         int64_t{work.tile} * tile_rows + group * 64;
}

// Of a tile without a step: no key, no weight.
template <int D>
__device__ void store_nothing(const AttendCall& call, const Work& work, int group) {
  const int t = threadIdx.x % 128, left = min(work.rows - group * 64, 64);
  if (t >= left) return;
  uint16_t* out = out_of(call, work, group) + t * call.out_token;
#pragma unroll 1
  for (int i = 0; i < D; i += 8) *reinterpret_cast<uint4*>(out + i) = uint4{};
  if (call.lse != nullptr) lse_of(call, work, group)[t] = -INFINITY;
}

// add_lse: what its logarithm lacks. Rows r and r + 8.
template <int D, class T, int shift>
__device__ void store(const AttendCall& call, const Work& work, uint16_t (&tile)[D / 64][tile_rows * 64], int group,
                      const float (&o)[D / 2], const Softmax<shift>& softmax, const float (&add_lse)[2]) {
  const int t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4, column = t % 4;
  float inverse[2], lse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) softmax.finish(r, add_lse[r], inverse[r], lse[r]);
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = group * 64 + row + 8 * r;
      const uint32_t v = pack<T>(o[4 * i + 2 * r] * inverse[r], o[4 * i + 2 * r + 1] * inverse[r]);
      *reinterpret_cast<uint32_t*>(&tile[i / 8][at * 64 + ((i % 8) ^ (at % 8)) * 8 + column * 2]) = v;
    }
  }
  const int left = work.rows - group * 64;  // rows of the group that exist, or less than none
  if (call.lse != nullptr && column == 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (row + 8 * r < left) lse_of(call, work, group)[row + 8 * r] = lse[r];
  }
  named_sync(4 + group, 128);
  uint16_t* out = out_of(call, work, group);
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    const int at = i * 128 + t, r = at / (D / 8), piece = at % (D / 8);  // D / 8 pieces of 16 bytes a row
    const int in = group * 64 + r;
    if (r < left)
      *reinterpret_cast<uint4*>(out + r * call.out_token + piece * 8) =
          *reinterpret_cast<const uint4*>(&tile[piece / 8][in * 64 + ((piece % 8) ^ (in % 8)) * 8]);
  }
}

template <class P>
__device__ void start_barriers(Shared<P>& sh) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < P::stages; ++i) {
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
}

}  // namespace sale::sm90
