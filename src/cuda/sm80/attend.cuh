// Attention over the kept blocks of every (sequence, 64-row tile, query head), whatever its products are. Ampere, Ada.
//
// A thread block of 4 warps takes one item, 16 rows a warp; the grid is in the order of the items, longest first. It
// walks the tile's block bits, last block first, two blocks of 32 keys a step, then, with compensation, 64 pseudo-keys
// a step. All warps walk alike: the list is in registers, nothing is handed over.
//
//   shared memory   a ring of three tiles of 64 keys:   K(n)  V(n)  K(n+1) │ V(n+1) where K(n) was │ ...
//
//   wait K(n)   copy K(n+1) ─▶   S = Q Kᵀ ─▶ softmax ─▶ P, shrink
//   wait V(n)   copy V(n+1) ─▶   look up step n+2;  O = O shrink + P V
//
// One __syncthreads() a wait: it says that the tile is there for all and that the one before is done with. Copies are
// cp.async of 16 bytes by every thread; rows that are not there (beyond k_len, a missing block) are written as zeros,
// for a weight of 0 does not silence NaN. Q, S, P and O never leave registers.
//
// Floors of a step of 64 x 64, d = 128, 16 bits, in cycles of a multiprocessor: products 1024 on an A100, 4096 on
// GeForce cards (f32 sums at half rate there, a quarter of an A100's), exponentials 256; shared memory 1280 at 128
// bytes a cycle, for every warp reads the whole of K and V for its 16 rows and copies write them once. So shared memory
// bounds an A100 (and an H100 under this code), products bound all others: 2560 with INT8 Q K, 1536 with P V in f16 and
// f16 sums, which are at full rate there, or in e4m3. Counted in the machine code, per warp and step: 128 products, 64
// operand loads, 16 copies, 692 instructions in all: bench/sm80_attend_model.py.
//
//   registers, thread blocks a multiprocessor (8.6 and 8.9 have 100 KB for them); no spills but 32 bytes of the exact
//   kernel of d = 128 on sm_80
//              d = 128: sm_80    86, 89        d = 64         shared memory
//   exact      168, 3            216, 2        162, 3         48, 24 KB
//   INT8       166, 3            204, 2        153, 3         48, 24 KB
//   f16 sums   221, 2            221, 2        149, 3         48, 24 KB
//   e4m3                         229, 2        141, 3         24, 12 KB
//
// A policy Keys says how Q and K are stored and multiplied, Values how P and V are: attend.cu, attend8.cuh.
#pragma once

#include "cuda/common/blocks.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/kernels.hpp"

namespace sale::sm80 {

using namespace ptx;
using namespace cuda;

// Low-bit forms, by sale_compute.
template <int compute>
cudaError_t launch_attend8(const AttendCall& call, cudaStream_t stream);
template <int compute>
cudaError_t allow_attend8();

constexpr int attend_threads = 128;
constexpr int step_blocks = 2, step_keys = 64;
// Of a multiprocessor, what registers are shared out for. d = 128 needs 48 KB each: three fit an A100, two the
// others.
template <int D>
#if __CUDA_ARCH__ == 800
constexpr int blocks_of = 3;
#else
constexpr int blocks_of = D == 128 ? 2 : 3;
#endif

// All items of one kv head before the next: what the multiprocessors read at a time then fits L2.
__device__ inline Place place_of(const Common& c, int32_t number) {
  const int32_t per_head = c.n_items * c.group, kv_head = number / per_head, rest = number % per_head;
  const Item& i = c.items[rest / c.group];
  return {&c.sequences[i.sequence], i.tile, kv_head * c.group + rest % c.group};
}

// One item as every thread sees it. Registers are what the kernels have least of: what is needed once is looked up
// anew.
struct Work {
  const Common& c;
  const Sequence& s;  // among the kernel's parameters
  int32_t tile, head, kv_head;
  int32_t k_len, seen;  // seen: keys that the tile's first row sees, if there are as many

  __device__ Work(const Common& c, const Place& at)
      : c(c), s(*at.sequence), tile(at.tile), head(at.head), kv_head(at.head / c.group) {
    k_len = static_cast<int32_t>(s.k_len);
    seen = static_cast<int32_t>(least(s.q_offset + first_row() + 1, INT32_MAX - tile_rows));
  }
  __device__ int64_t first_row() const { return int64_t{tile} * tile_rows; }
  __device__ int32_t rows() const { return static_cast<int32_t>(least(s.q_len - first_row(), tile_rows)); }
  __device__ int32_t visible(int row) const { return min(k_len, seen + row); }
  // The key from which on a row sees, where there are windows.
  __device__ int32_t first_seen(int row) const {
    return static_cast<int32_t>(least(s.first_key(first_row() + row), max_keys));
  }
  __device__ int32_t sink_blocks() const { return static_cast<int32_t>(s.sink_blocks()); }
};

// What a step works on: two blocks of keys, or two blocks of 32 means.
struct Step {
  int32_t id[step_blocks];  // ascending; a missing block is -1 and the first; both: there is no such step
  bool means;
  uint32_t counts;           // of means: for weigh_means()
  int32_t page, in_page;     // paged: of 16 keys, by lane: the (lane % 4)-th of the step
  float scale[step_blocks];  // low-bit: of the codes

  __device__ bool some() const { return id[1] >= 0; }
  // Rows of block b that are there.
  __device__ int32_t present(int b, int32_t end) const { return id[b] < 0 ? 0 : end - id[b] * 32; }
};

// Steps of the tile's list, last block first, then of its pseudo-keys.
class Walk {
public:
  __device__ Walk(const AttendCall& call, const Work& work)
      : row_(tile_bits(call.common, work.s, work.tile, work.head)),
        at_((end_block<tile_rows>(work.s, work.tile) + 63) / 64) {}
  __device__ __forceinline__ Step next(const AttendCall& call, const Work& work) {
    Step step{};
    step.id[1] = next_block(work);
    step.id[0] = next_block(work);
    if (step.id[1] < 0 && call.k_means != nullptr) {
      constexpr int32_t of_block = 32 * static_cast<int32_t>(mean_blocks), words = step_keys / 4;
      const int32_t begin = mean_begin(call.common, work.s, work.tile, tile_rows), end = end_of_means(call, work);
      for (; !step.means && mean_ * of_block < end; mean_ += step_blocks) {
        step.counts = dropped_counts(row_, mean_ * (32 / 4) + static_cast<int32_t>(threadIdx.x) % words, begin, end);
        step.means = __any_sync(0xffffffff, step.counts != 0);
        if (step.means) step.id[0] = mean_, step.id[1] = mean_ + 1;
      }
    }
    return step;
  }
  // Dropped blocks below it count.
  __device__ static int32_t end_of_means(const AttendCall& call, const Work& work) {
    return mean_end(work.s, work.first_row(), call.common.local);
  }

private:
  __device__ __forceinline__ int32_t next_block(const Work& work) {
    while (left_ == 0) {
      if (work.c.windowed != 0 && at_ <= work.s.first_block(work.tile, tile_rows) / 64) to_sink(work);
      if (at_ == 0) return -1;
      left_ = row_[--at_];
    }
    const int bit = 63 - __clzll(static_cast<int64_t>(left_));
    left_ ^= uint64_t{1} << bit;
    return at_ * 64 + bit;
  }
  // What the tile's windows have left behind is empty.
  __device__ __forceinline__ void to_sink(const Work& work) { at_ = min(at_, (work.sink_blocks() + 63) / 64); }
  const uint64_t* row_;
  uint64_t left_ = 0;  // of word at_
  int32_t at_;
  int32_t mean_ = 0;  // the next block of 32 means
};

// The page of this lane's 16 keys of a step.
__device__ __forceinline__ void look_up_page(const Common& c, const Work& work, Step& step) {
  if (c.page_size == 0 || step.means || !step.some()) return;
  const int32_t lane = threadIdx.x % 4, id = max(lane < 2 ? step.id[0] : step.id[1], 0);
  const auto at = static_cast<uint32_t>(min(id * 32 + lane % 2 * 16, (work.k_len - 1) / 16 * 16));
  const uint32_t page = at / static_cast<uint32_t>(c.page_size);
  step.page = c.page_table[work.s.batch * c.pages + page];
  step.in_page = static_cast<int32_t>(at - page * static_cast<uint32_t>(c.page_size));
}

// Byte of a tile of rows of `width` bytes where a row's 16-byte piece is: permuted, so that eight neighbouring rows'
// same pieces are in different banks.
__device__ __forceinline__ uint32_t swizzled(int row, int piece, int width) {
  const int by = width == 64 ? row / 2 % 4 : row % 8;
  return static_cast<uint32_t>(row * width + (piece ^ by) * 16);
}

// The first of this lane's two rows of the tile, and of its warp's.
__device__ __forceinline__ int warp_row() { return static_cast<int>(threadIdx.x) / 32 * 16; }
__device__ __forceinline__ int lane_row() { return warp_row() + static_cast<int>(threadIdx.x) % 32 / 4; }

// Whether the warp's rows all see the two blocks whole.
__device__ __forceinline__ bool seen_whole(const Step& step, const Work& work) {
  if (work.c.windowed != 0 && step.id[0] * 32 < work.first_seen(warp_row() + 15)) return false;
  return step.id[0] >= 0 && step.id[1] < work.visible(warp_row()) / 32;
}
// Scores of keys that this lane's rows do not see become -inf.
__device__ __forceinline__ void hide(float (&s)[step_keys / 2], const Step& step, const Work& work) {
  const int row = lane_row();
  mask(s, step.id, work.visible(row), work.visible(row + 8));
  if (work.c.windowed != 0) mask_behind(s, step.id, work.first_seen(row), work.first_seen(row + 8), work.sink_blocks());
}

// Row `row` of the tile's queries.
__device__ __forceinline__ const uint16_t* query_row(const AttendCall& call, const Work& work, int row) {
  return static_cast<const uint16_t*>(call.q.base) + work.s.batch * call.q.outer + work.head * call.q.head +
         (work.s.q_start + work.first_row() + row) * call.q.token;
}

// Tiles of 64 rows of 16-bit numbers, of keys or of means. This lane copies one 16-byte piece of every 8th (d = 64:
// 16th) row; where those of the sequence begin is kept, for addresses are most of what a copy costs.
template <int D>
class Source {
public:
  __device__ Source(const Strided& rows, const AttendCall& call, const Work& work)
      : from_(static_cast<const uint16_t*>(rows.base) + work.kv_head * rows.head + row() * rows.token + piece() * 8) {
    if (call.common.page_size == 0) from_ += work.s.batch * rows.outer + work.s.k_start * rows.token;
  }
  __device__ __forceinline__ void copy(uint32_t to, const Strided& rows, const uint16_t* means, const AttendCall& call,
                                       const Work& work, const Step& step) const {
    const uint16_t* from[4];  // of 16 rows each
    int64_t token = rows.token;
    int32_t end = work.k_len;
    if (call.common.page_size != 0 && !step.means) {
#pragma unroll
      for (int g = 0; g < 4; ++g)
        from[g] = from_ + __shfl_sync(0xffffffff, step.page, g) * rows.outer +
                  __shfl_sync(0xffffffff, step.in_page, g) * token;
    } else {
      const uint16_t* first = from_;
      if (step.means) {
        token = D;
        end = (Walk::end_of_means(call, work) + static_cast<int32_t>(mean_blocks) - 1) /
              static_cast<int32_t>(mean_blocks);
        first = means + work.kv_head * call.means_head + (work.s.mean_at + row()) * D + piece() * 8;
      }
#pragma unroll
      for (int b = 0; b < step_blocks; ++b) {
        from[2 * b] = first + max(step.id[b], 0) * 32 * token;
        from[2 * b + 1] = from[2 * b] + 16 * token;
      }
    }
    to += swizzled(row(), piece(), 2 * D);
    const int32_t present[step_blocks] = {step.present(0, end), step.present(1, end)};
    const bool whole = present[0] >= 32 && present[1] >= 32;
#pragma unroll
    for (int g = 0; g < 4; ++g)
#pragma unroll
      for (int r = 0; r < 16; r += pass) {
        const uint32_t at = to + (16 * g + r) * 2 * D;
        copy_16(at, from[g] + r * token, whole || g % 2 * 16 + r + row() < present[g / 2]);
      }
  }

private:
  static constexpr int pieces = D / 8, pass = attend_threads / pieces;  // rows of a pass: 8 or 16
  __device__ static int row() { return static_cast<int>(threadIdx.x) / pieces; }
  __device__ static int piece() { return static_cast<int>(threadIdx.x) % pieces; }
  const uint16_t* from_;
};

// The probabilities of 64 keys as T, where products take them.
template <class T>
__device__ __forceinline__ void round_16(uint32_t (&p)[step_keys / 16][4], const float (&s)[step_keys / 2]) {
#pragma unroll
  for (int i = 0; i < step_keys / 16; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) p[i][e] = pack<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
}

// O += P V of 64 keys, products of the tensors' own type.
template <int dim, class T>
struct Values16 {
  static constexpr int D = dim, tile_bytes = step_keys * D * 2, shift = shift_of<T>;
  Source<D> source;
  uint32_t p[step_keys / 16][4];

  __device__ Values16(const AttendCall& call, const Work& work) : source(call.v, call, work) {}
  __device__ __forceinline__ void copy(uint32_t to, const AttendCall& call, const Work& work, const Step& step) const {
    source.copy(to, call.v, call.v_means, call, work, step);
  }
  __device__ __forceinline__ void round(const float (&s)[step_keys / 2]) { round_16<T>(p, s); }
  __device__ __forceinline__ void mix(float (&o)[D / 2], const float (&shrink)[2], uint32_t tile) const {
    if (__any_sync(0xffffffff, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] *= shrink[i / 2 % 2];
    }
    // Matrices of a load: keys 0 .. 7, 8 .. 15 of a piece, then of the next.
    const int lane = threadIdx.x % 32, row = lane % 16, piece = lane / 16;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      const uint32_t at = tile + swizzled(row, 2 * i + piece, 2 * D);
#pragma unroll
      for (int k = 0; k < step_keys / 16; ++k) {
        uint32_t v[4];
        load_transposed(v, at + k * 16 * 2 * D);
        mma(o + 8 * i, p[k], v[0], v[1], T{});
        mma(o + 8 * i + 4, p[k], v[2], v[3], T{});
      }
    }
  }
  __device__ void finish(float (&)[D / 2], const AttendCall&, const Work&) const {}
};

// Where the rows of the tile go from `row` on.
__device__ __forceinline__ uint16_t* out_of(const AttendCall& call, const Work& work, int row) {
  return static_cast<uint16_t*>(call.out) + work.s.batch * call.out_batch + work.head * call.out_head +
         (work.s.q_start + work.first_row() + row) * call.out_token;
}
__device__ __forceinline__ float* lse_of(const AttendCall& call, const Work& work, int row) {
  return call.lse + (int64_t{work.s.batch} * call.common.q_heads + work.head) * call.lse_rows + work.first_row() + row;
}

// Of a tile without a step (a part of a sequence's keys that it keeps nothing of): no key, no weight.
template <int D>
__device__ void store_nothing(const AttendCall& call, const Work& work) {
  constexpr int pieces = D / 8;  // of 16 bytes a row
  for (int i = threadIdx.x; i < work.rows() * pieces; i += attend_threads)
    *reinterpret_cast<uint4*>(out_of(call, work, i / pieces) + i % pieces * 8) = uint4{};
  if (call.lse != nullptr && static_cast<int>(threadIdx.x) < work.rows()) *lse_of(call, work, threadIdx.x) = -INFINITY;
}

// The tile's rows of O and their log-sum-exps on their way out, by warps: O through shared memory, for whole lines.
template <int D, class T, int shift>
__device__ void store(const AttendCall& call, const Work& work, uint16_t* rows, const float (&o)[D / 2],
                      const Softmax<shift>& softmax, const float (&add_lse)[2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, column = lane % 4;
  const int left = work.rows() - warp * 16;  // rows of the warp that exist, or less than none
  rows += warp * 16 * D;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float inverse, lse;
    softmax.finish(r, add_lse[r], inverse, lse);
    const int at = row + 8 * r;
#pragma unroll
    for (int i = 0; i < D / 8; ++i)
      *reinterpret_cast<uint32_t*>(rows + swizzled(at, i, 2 * D) / 2 + column * 2) =
          pack<T>(o[4 * i + 2 * r] * inverse, o[4 * i + 2 * r + 1] * inverse);
    if (call.lse != nullptr && column == 0 && at < left) *lse_of(call, work, warp * 16 + at) = lse;
  }
  __syncwarp();
  uint16_t* out = out_of(call, work, warp * 16);
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    const int at = i * 32 + lane, r = at / (D / 8), piece = at % (D / 8);  // D / 8 pieces of 16 bytes a row
    if (r < left)
      *reinterpret_cast<uint4*>(out + r * call.out_token + piece * 8) =
          *reinterpret_cast<const uint4*>(rows + swizzled(r, piece, 2 * D) / 2);
  }
}

template <class Keys, class Values>
constexpr int slot_bytes = Keys::tile_bytes > Values::tile_bytes ? Keys::tile_bytes : Values::tile_bytes;

template <class Keys, class Values, class T>
__device__ __forceinline__ void attend(const AttendCall& call, uint8_t* shared) {
  constexpr int D = Keys::D;
  const Common& c = call.common;
  const Work work(c, place_of(c, static_cast<int32_t>(blockIdx.x)));

  Walk walk(call, work);
  const auto look_ahead = [&] {
    Step step = walk.next(call, work);
    look_up_page(c, work, step);
    Keys::look_up(call, work, step);
    return step;
  };
  constexpr uint32_t slot = slot_bytes<Keys, Values>;
  uint32_t key_slot = shared_address(shared), value_slot = key_slot + slot, free_slot = value_slot + slot;
  Keys keys(call, work);
  Values values(call, work);
  Step now = look_ahead();
  if (!now.some()) return store_nothing<D>(call, work);
  keys.copy(key_slot, call, work, now);
  copies_commit();
  values.copy(value_slot, call, work, now);
  copies_commit();
  Step next = look_ahead();

  keys.load_queries(call, work);
  Softmax<Values::shift> softmax;
  softmax.scale = Keys::softmax_scale(c);
  softmax.start();
  float o[D / 2];
#pragma unroll
  for (int i = 0; i < D / 2; ++i) o[i] = 0;

#pragma unroll 1
  while (now.some()) {
    copies_wait<1>();
    __syncthreads();
    if (next.some()) keys.copy(free_slot, call, work, next);
    copies_commit();
    float shrink[2];
    {
      float s[step_keys / 2];
      keys.weigh(s, shrink, softmax, key_slot, now, work);
      values.round(s);
    }
    copies_wait<1>();
    __syncthreads();
    if (next.some()) values.copy(key_slot, call, work, next);
    copies_commit();
    now = next;
    next = look_ahead();
    values.mix(o, shrink, value_slot);
    const uint32_t old = value_slot;
    value_slot = key_slot, key_slot = free_slot, free_slot = old;
  }
  values.finish(o, call, work);
  __syncthreads();
  store<D, T>(call, work, reinterpret_cast<uint16_t*>(shared), o, softmax, keys.add_lse);
}

// with(head_dim, dtype, f) is f(kernel) of the one that serves such a call: `function`, and the bytes it has `shared`.
template <class With>
cudaError_t launch_with(const With& with, const AttendCall& call, cudaStream_t stream) {
  const Common& c = call.common;
  return with(c.head_dim, c.dtype, [&](auto kernel) {
    kernel.function<<<static_cast<unsigned>(c.n_items * c.q_heads), attend_threads, kernel.shared, stream>>>(call);
    return cudaGetLastError();
  });
}

template <class With>
cudaError_t allow_with(const With& with) {
  for (const int32_t dim : {64, 128})
    for (const int32_t dtype : {SALE_BF16, SALE_F16}) {
      const cudaError_t e = with(dim, dtype, [](auto kernel) {
        return cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared);
      });
      if (e != cudaSuccess) return e;
    }
  return cudaSuccess;
}

}  // namespace sale::sm80
