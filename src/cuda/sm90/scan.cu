// The vote: every query row against every key, in 8 bits; a block is kept when any of its pairs reaches its row's
// threshold. Hopper.
//
// One thread block owns four slots, each a (128-row tile, query head) of one kv head, a warpgroup a slot; their coded
// queries stay in shared memory. A producer warp streams the coded keys past them:
//
//   keys (chunk) ─▶ ring of stages ─▶ per slot, both halves of 64 rows:  wgmma 64 x chunk ─▶ vote ─▶ one bit a block
//
// The four warpgroups overlap each other: while one votes on the vector units, the products of the others run.
//
//   Signs (FP8 projected)   keys of 32 or 64 bytes, chunks of 256. The last coordinates of query and key multiply to
//                           -T, so the sign of a sum is the decision. Sums in f16, two a register, and all negative is
//                           the AND of the registers: 4 LOP3 for the 16 scores a thread has of a block. (-0 counts as
//                           below.)
//   Limits (FP8, rank d)    chunks of 128, sums in f32, each compared with its row's limit; NaN keeps.
//   Maxima (INT8, rank d)   chunks of 128, exact integer sums, the maximum per row and block, one dequantization after
//                           it.
//
// Bits gather in registers, 32 blocks at a time, are or-ed together in shared memory, and leave with the sink and local
// blocks added.
//
// Floors for L rows causal, H query heads, L^2 H / 2 scores: products 2 x width operations a score (8-bit rate 1979
// TFLOP/s on the data sheet: 64 x 256 x 32 in 128 cycles), logic of Signs 4 instructions per thread and block, 2 cycles
// each: half of what the products take.
#include <initializer_list>

#include "cuda/ptx/async.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/blocks.cuh"
#include "cuda/sm90/queries.cuh"

namespace sale::sm90 {
namespace {

using namespace ptx;

constexpr int slots = 4, half_rows = 64, threads = 128 * (slots + 1);
constexpr int max_words = max_keys / block_keys / 64;

// ---- the three ways to vote -----------------------------------------------------------------------------------------
// Each multiplies 64 rows by a chunk, keeps what a thread saw in bits that may be or-ed, and makes a bit a block of it.

template <int bytes>
struct Signs {
  static constexpr int width = bytes, chunk = 256, stages = bytes == 32 ? 6 : 4;
  static constexpr bool key_scales = false;
  using Sum = uint32_t;
  struct Rows {
    __device__ Rows(const float*, int) {}
  };
  __device__ static void multiply(Sum (&s)[64], uint64_t a, uint64_t b) {
#pragma unroll
    for (int i = 0; i < width / 32; ++i) wgmma_n256(s, advance(a, 32 * i), advance(b, 32 * i), i > 0, E4m3{});
  }
  // Register 2 i holds columns 8 i + 2 (t % 4) + {0, 1} of row r, register 2 i + 1 the same of row r + 8. Signs are
  // moved into place, block b's to bits 23 + b and 7 + b, by multiply-adds: the logic unit has enough to do.
  __device__ static uint32_t vote(const Sum (&s)[64], const Rows&, const float*) {
    uint32_t bits = 0;
#pragma unroll
    for (int b = 0; b < 8; ++b) {
      const Sum* x = s + 8 * b;
      const uint32_t negative = and3(and3(and3(x[0], x[1], x[2]), x[3], x[4]), x[5], x[6]);
      uint32_t kept;  // mask & ~(negative & x[7])
      asm("lop3.b32 %0, %1, %2, %3, 0x2a;" : "=r"(kept) : "r"(negative), "r"(x[7]), "r"(0x80008000u));
      asm("mad.hi.u32 %0, %1, %2, %0;" : "+r"(bits) : "r"(kept), "r"(1u << (24 + b)));
    }
    return bits;
  }
  __device__ static uint32_t gather(uint32_t bits) { return (bits >> 23 | bits >> 7) & 0xff; }
  __device__ static uint32_t and3(uint32_t a, uint32_t b, uint32_t c) {  // the compiler takes two at a time
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0x80;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
};

template <int bytes>
struct Limits {
  static constexpr int width = bytes, chunk = 128, stages = 4;
  static constexpr bool key_scales = false;
  using Sum = float;
  struct Rows {
    float limit[2];
    __device__ Rows(const float* limits, int row) : limit{limits[row], limits[row + 8]} {}
  };
  __device__ static void multiply(Sum (&s)[64], uint64_t a, uint64_t b) {
#pragma unroll
    for (int i = 0; i < width / 32; ++i) wgmma_n128(s, advance(a, 32 * i), advance(b, 32 * i), i > 0, E4m3{});
  }
  // Registers 4 i + {0, 1} hold columns 8 i + 2 (t % 4) + {0, 1} of row r, 4 i + {2, 3} of row r + 8.
  __device__ static uint32_t vote(const Sum (&s)[64], const Rows& rows, const float*) {
    uint32_t bits = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      bool keep = false;
#pragma unroll
      for (int i = 16 * b; i < 16 * b + 16; ++i) keep = keep || !(s[i] < rows.limit[i / 2 % 2]);
      bits |= keep ? 1u << b : 0u;
    }
    return bits;
  }
  __device__ static uint32_t gather(uint32_t bits) { return bits; }
};

template <int bytes>
struct Maxima {
  static constexpr int width = bytes, chunk = 128, stages = 4;
  static constexpr bool key_scales = true;
  using Sum = int32_t;
  struct Rows {
    float limit[2], scale;  // scale: of the half's codes times that of scores
    __device__ Rows(const float* limits, int row)
        : limit{limits[row], limits[row + 8]}, scale(limits[tile_rows + row / half_rows]) {}
  };
  __device__ static void multiply(Sum (&s)[64], uint64_t a, uint64_t b) {
#pragma unroll
    for (int i = 0; i < width / 32; ++i) wgmma_n128(s, advance(a, 32 * i), advance(b, 32 * i), i > 0, S8{});
  }
  // key_scales: of the chunk's blocks. docs/numerics.md, section 4.
  __device__ static uint32_t vote(const Sum (&s)[64], const Rows& rows, const float* key_scales) {
    uint32_t bits = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const float step = __fmul_rn(rows.scale, key_scales[b]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Sum* x = s + 16 * b + 2 * r;
        int32_t most = __vimax3_s32(x[0], x[1], x[4]);
        most = __vimax3_s32(most, x[5], x[8]);
        most = __vimax3_s32(most, x[9], x[12]);
        most = max(most, x[13]);
        if (!(__fmul_rn(static_cast<float>(most), step) < rows.limit[r])) bits |= 1u << b;
      }
    }
    return bits;
  }
  __device__ static uint32_t gather(uint32_t bits) { return bits; }
};

// ---- the kernel -----------------------------------------------------------------------------------------------------

// What a slot works on. Slots of one thread block share the kv head; `lead`: the first slot with the same sequence,
// whose keys are streamed for all of them together.
struct Slot {
  const Sequence* sequence;  // null: nothing to do
  int32_t item, tile, head, lead;
  int32_t first, last;  // candidates
  bool drops;           // false: dense, keeps all blocks
  bool scans;           // and has to look which: no local head
};
template <class Vote>
struct Shared {
  alignas(1024) uint8_t q[slots][tile_rows * Vote::width];
  alignas(1024) uint8_t k[Vote::stages][Vote::chunk * Vote::width];
  alignas(16) float key_scales[Vote::stages][Vote::chunk / block_keys];  // Maxima
  alignas(16) uint32_t bits[slots][2 * max_words];
  uint64_t q_full, full[Vote::stages], empty[Vote::stages];
  Slot all[slots];
  int32_t begin[slots], end[slots];  // blocks to scan for the slots led by this one
};

__device__ Slot slot_at(const SelectCall& call, int32_t first_item, int32_t items, int32_t heads, int32_t i) {
  const Common& c = call.common;
  // Thread blocks of one kv head follow each other, longest tiles first; what they read then fits L2.
  const int32_t tiles = slots / heads, chunks = (items + tiles - 1) / tiles, per_head = chunks * (c.group / heads);
  const int32_t kv_head = blockIdx.x / per_head, rest = blockIdx.x % per_head;
  Slot s{};
  s.item = rest / (c.group / heads) * tiles + i / heads;
  if (s.item >= items) return s;
  s.head = kv_head * c.group + rest % (c.group / heads) * heads + i % heads;
  const Item& item = c.items[first_item + s.item];
  s.sequence = &c.sequences[item.sequence];
  s.tile = item.tile;
  const Sight::Candidates asked = s.sequence->candidates(s.tile, tile_rows, c.sink, c.local);
  s.first = static_cast<int32_t>(asked.first), s.last = static_cast<int32_t>(asked.last);
  s.drops = cuda::drops(c, *s.sequence, s.head, s.tile, tile_rows);
  s.scans = s.drops && !is_local(c.thresholds[s.head]);
  s.lead = i;
  for (int32_t j = 0; j < i; ++j) {
    const int32_t other = rest / (c.group / heads) * tiles + j / heads;
    if (c.items[first_item + other].sequence == item.sequence) {
      s.lead = j;
      break;
    }
  }
  return s;
}

template <class Vote>
__device__ void stream(const SelectCall& call, Shared<Vote>& sh) {
  const int32_t kv_head = sh.all[0].head / call.common.group;
  uint32_t bytes = 0;
  for (const Slot& s : sh.all) bytes += s.scans ? sizeof(sh.q[0]) : 0;
  if (bytes == 0) return;
  barrier_expect(&sh.q_full, bytes);
  for (int i = 0; i < slots; ++i)
    if (sh.all[i].scans)
      copy_bytes(sh.q[i], query_place(call, sh.all[i].item, sh.all[i].head).codes, sizeof(sh.q[i]), &sh.q_full);
  int at = 0;
  uint32_t parity = 1;
  for (int lead = 0; lead < slots; ++lead) {
    if (sh.end[lead] == 0) continue;
    const Sequence s = *sh.all[lead].sequence;
    const uint8_t* codes = s.codes + kv_head * s.codes_head;
    const float* scales = s.scales + kv_head * s.scales_head;
    const int64_t keys = (s.k_len + block_keys - 1) / block_keys * block_keys;
    for (int64_t first = int64_t{sh.begin[lead]} * block_keys; first < int64_t{sh.end[lead]} * block_keys;
         first += Vote::chunk) {
      barrier_wait(&sh.empty[at], parity);
      const auto n = static_cast<uint32_t>(least(Vote::chunk, keys - first));
      if constexpr (Vote::key_scales)
        for (uint32_t b = 0; b < n / block_keys; ++b) sh.key_scales[at][b] = scales[first / block_keys + b];
      barrier_expect(&sh.full[at], n * Vote::width);
      copy_bytes(sh.k[at], codes + first * Vote::width, n * Vote::width, &sh.full[at]);
      if (++at == Vote::stages) at = 0, parity ^= 1;
    }
  }
}

// The finished row of block bits: votes between sink and local, everything else kept.
__device__ void write_row(const SelectCall& call, const Slot& s, const uint32_t* votes) {
  const Common& c = call.common;
  const cuda::RowOfBits bits(c, *s.sequence, s.tile, tile_rows, s.drops);
  uint64_t* row = tile_bits(c, *s.sequence, s.tile, s.head);
  for (int32_t w = threadIdx.x % 128; w < bits.words(); w += 128)
    row[w] = bits.word(w, s.scans ? votes[2 * w] | uint64_t{votes[2 * w + 1]} << 32 : 0);
}

template <class Vote>
__device__ void scan(const SelectCall& call, Shared<Vote>& sh) {
  const int slot = warpgroup(), t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
  const Slot& mine = sh.all[slot];
  uint32_t* bits = sh.bits[slot];
  if (mine.scans)
    for (int32_t w = t; w < (mine.last + 63) / 64 * 2; w += 128) bits[w] = 0;
  named_sync(1 + slot, 128);

  constexpr int blocks = Vote::chunk / block_keys;
  int at = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int lead = 0; lead < slots; ++lead) {
    const int32_t begin = sh.begin[lead], end = sh.end[lead];
    if (!mine.scans || mine.lead != lead) {  // the keys of others
      for (int32_t b = begin; b < end; b += blocks) {
        barrier_wait(&sh.full[at], parity);
        if (t % 32 == 0) barrier_arrive(&sh.empty[at]);
        if (++at == Vote::stages) at = 0, parity ^= 1;
      }
      continue;
    }
    barrier_wait(&sh.q_full, 0);
    const float* limits = query_place(call, mine.item, mine.head).limits;
    const typename Vote::Rows rows[2] = {{limits, row}, {limits, half_rows + row}};
    const uint64_t a[2] = {row_descriptor(shared_address(sh.q[slot]), Vote::width),
                           row_descriptor(shared_address(&sh.q[slot][half_rows * Vote::width]), Vote::width)};
    uint32_t word = 0;  // what this thread saw of 32 blocks
#pragma unroll 1
    for (int32_t b = begin; b < end; b += blocks) {
      barrier_wait(&sh.full[at], parity);
      const uint64_t keys = row_descriptor(shared_address(sh.k[at]), Vote::width);
      typename Vote::Sum sums[64];
      uint32_t seen = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        wgmma_touch(sums);
        wgmma_fence();
        Vote::multiply(sums, a[half], keys);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_touch(sums);
        if (half == 1 && !Vote::key_scales && t % 32 == 0) barrier_arrive(&sh.empty[at]);
        seen |= Vote::vote(sums, rows[half], sh.key_scales[at]);
      }
      word |= Vote::gather(seen) << b % 32;
      if (Vote::key_scales) {  // the vote read the stage's scales
        __syncwarp();
        if (t % 32 == 0) barrier_arrive(&sh.empty[at]);
      }
      if (++at == Vote::stages) at = 0, parity ^= 1;
      if ((b + blocks) % 32 == 0 || b + blocks >= end) {
        word = __reduce_or_sync(0xffffffff, word);
        if (t % 32 == 0 && word != 0) atomicOr(&bits[b / 32], word);
        word = 0;
      }
    }
  }
  named_sync(1 + slot, 128);
  if (mine.sequence != nullptr) write_row(call, mine, bits);
}

template <class Vote>
__global__ void __launch_bounds__(threads, 1)
    scan_kernel(const __grid_constant__ SelectCall call, int32_t first_item, int32_t items, int32_t heads) {
  extern __shared__ char raw[];
  auto& sh = shared_as<Shared<Vote>>(raw);
  if (threadIdx.x == 0) {
    barrier_init(&sh.q_full, 1);
    for (int i = 0; i < Vote::stages; ++i) {
      barrier_init(&sh.full[i], 1);
      barrier_init(&sh.empty[i], 4 * slots);
    }
    barrier_init_fence();
  }
  if (threadIdx.x < slots)
    sh.all[threadIdx.x] = slot_at(call, first_item, items, heads, static_cast<int32_t>(threadIdx.x));
  __syncthreads();
  if (threadIdx.x < slots) {
    int32_t begin = INT32_MAX, end = 0;
    for (const Slot& s : sh.all)
      if (s.scans && s.lead == static_cast<int32_t>(threadIdx.x)) begin = min(begin, s.first), end = max(end, s.last);
    // Votes leave by words of 32 blocks.
    sh.begin[threadIdx.x] = begin / 32 * 32, sh.end[threadIdx.x] = end;
  }
  __syncthreads();
  if (threadIdx.x >= 128 * slots) {
    give_registers<32>();
    if (threadIdx.x == 128 * slots) stream<Vote>(call, sh);
  } else {
    take_registers<112>();
    scan<Vote>(call, sh);
  }
}

template <class Vote>
cudaError_t allow() {
  return cudaFuncSetAttribute(scan_kernel<Vote>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(Shared<Vote>) + 1024));
}

template <class Vote>
cudaError_t launch(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream) {
  const int32_t group = call.common.group, heads = group % 4 == 0 ? 4 : group % 2 == 0 ? 2 : 1;
  const int32_t chunks = (items + slots / heads - 1) / (slots / heads);
  const auto blocks = static_cast<unsigned>(chunks * (group / heads) * call.common.kv_heads);
  scan_kernel<Vote><<<blocks, threads, sizeof(Shared<Vote>) + 1024, stream>>>(call, first, items, heads);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_scan(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream) {
  const Estimator& e = call.estimator;
  if (e.q_projection != nullptr)
    return e.width == 32 ? launch<Signs<32>>(call, first, items, stream)
                         : launch<Signs<64>>(call, first, items, stream);
  if (e.format == SALE_FP8)
    return e.width == 64 ? launch<Limits<64>>(call, first, items, stream)
                         : launch<Limits<128>>(call, first, items, stream);
  return e.width == 64 ? launch<Maxima<64>>(call, first, items, stream)
                       : launch<Maxima<128>>(call, first, items, stream);
}

cudaError_t allow_scan() {
  for (const auto f : {allow<Signs<32>>, allow<Signs<64>>, allow<Limits<64>>, allow<Limits<128>>, allow<Maxima<64>>,
                       allow<Maxima<128>>})
    if (const cudaError_t e = f(); e != cudaSuccess) return e;
  return cudaSuccess;
}

}  // namespace sale::sm90
