// The vote on every candidate block: docs/numerics.md, section 4, to the bit.
//
// A warp owns a tile of 64 rows of one query head: its codes stay in registers. The eight warps of a thread block share
// a kv head and a sequence (up to four query heads, neighbouring tiles) and so the keys, which all of them copy to
// shared memory, 128 at a time, three stages deep:
//
//   keys 128 x width, their scales, b_j of the heads ─▶ stage      16-byte asynchronous copies
//   block of 32 keys:   ldmatrix ─▶ 16 rows x 32 keys x rank ─▶ integer maxima of what a thread holds ─▶ one
//                       dequantization a row ─▶ a bit
//
// INT4: a thread holds keys 8 n + 2 g + {0, 1} (g = lane % 4) of rows r and r + 8: one scale of keys and one of
// queries, so one unit u for all 16 sums, and beta_j = rint(b_j u) is where their products begin: as an integer it is
// the bits of b_j u + 1.5 x 2^23, less those of that constant, which is taken off the maximum. The largest |b_j u| of
// the group says whether those are whole numbers at all (below 2^22); where not, the block is kept. Votes of 32 blocks
// gather in a register, are or-ed over the warp once, and leave with sink and local blocks added.
//
// Floors for L rows causal, H query heads, L^2 H / 2 scores, per 64 x 32 tile (INT4, d 128): 32 products of 16 x 8 x 64
// by one warp, 8 cycles each of a quarter multiprocessor of an A100 (1248 TOP/s), 16 of an RTX 4090 (1321 TOP/s): 256
// and 512 cycles, beside some 230 other instructions (bench/results/sm80-model.md), two cycles each on the A100's 16
// lanes, one on the RTX 4090's 32.
#include "cuda/ptx/mma.cuh"
#include "cuda/sm80/codes.cuh"
#include "cuda/sm80/queries.cuh"

namespace sale::sm80 {
namespace {

constexpr int threads = 32 * scan_warps, chunk_keys = 128, chunk_blocks = chunk_keys / 32, stages = 3, max_heads = 4;
constexpr int row_tiles = 4;                // of 16 rows
constexpr int32_t shift_bits = 0x4b400000;  // 1.5 x 2^23
constexpr float shift = 12582912.0f;

template <int bytes, bool int4>
struct Shared {
  static constexpr int scales = int4 ? 4 : 1;  // a block
  alignas(128) uint8_t keys[stages][chunk_keys * bytes];
  alignas(16) float key_scales[stages][chunk_blocks * scales];
  alignas(16) float bias[stages][int4 ? max_heads : 1][int4 ? chunk_keys : 4];
};

// What a thread knows of its rows 16 i + g and 16 i + g + 8.
template <int bytes, bool int4>
struct Rows {
  static constexpr int steps = bytes / 32;  // products along the rank
  uint32_t a[row_tiles][steps][4];
  float scale[row_tiles];  // INT4: of the pair's codes; INT8: of the tile's, times that of scores
  float limit[row_tiles][2];
};

template <int bytes, bool int4>
__device__ __forceinline__ Rows<bytes, int4> load_rows(const QueryPlace& place) {
  Rows<bytes, int4> rows;
  const int g = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < row_tiles; ++i) {
    const uint8_t* row = place.codes + (16 * i + g) * bytes + 4 * quad;
#pragma unroll
    for (int k = 0; k < rows.steps; ++k)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        rows.a[i][k][r] = *reinterpret_cast<const uint32_t*>(row + r % 2 * 8 * bytes + 32 * k + r / 2 * 16);
    rows.scale[i] = place.scales[int4 ? 8 * i + g : 0];
    rows.limit[i][0] = place.limits[16 * i + g];
    rows.limit[i][1] = place.limits[16 * i + g + 8];
  }
  return rows;
}

// Second operands of a block: of keys 8 n .. 8 n + 7, products k's pieces.
template <int bytes>
__device__ __forceinline__ void load_keys(const uint8_t* keys, uint32_t (&b)[4][bytes / 32][2]) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
  constexpr int pieces = bytes / 16, rows = pieces == 2 ? 2 : 1;  // an ldmatrix: four pieces of 8 keys, or two of 16
#pragma unroll
  for (int n = 0; n < 4; n += rows)
#pragma unroll
    for (int p = 0; p < pieces; p += 4) {
      const int key = pieces == 2 ? 8 * (n + matrix / 2) + row : 8 * n + row;
      const int piece = pieces == 2 ? matrix % 2 : p + matrix;
      uint32_t r[4];
      ptx::load_matrices(r, ptx::shared_address(keys + code_offset(key, 16 * piece, bytes)));
      if constexpr (pieces == 2) {
        b[n][0][0] = r[0], b[n][0][1] = r[1], b[n + 1][0][0] = r[2], b[n + 1][0][1] = r[3];
      } else {
        b[n][p / 2][0] = r[0], b[n][p / 2][1] = r[1], b[n][p / 2 + 1][0] = r[2], b[n][p / 2 + 1][1] = r[3];
      }
    }
}

// Whether any of the thread's pairs in a block is not below its row's limit.
template <int bytes>
__device__ __forceinline__ bool vote(const Rows<bytes, true>& rows, const uint32_t (&b)[4][bytes / 32][2],
                                     const float* key_scales, const float* bias, float scale) {
  const int quad = threadIdx.x % 4;
  const float key_scale = key_scales[quad];
  const float4 low = *reinterpret_cast<const float4*>(bias + 8 * quad),
               high = *reinterpret_cast<const float4*>(bias + 8 * quad + 4);
  const float of_key[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  float widest = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) widest = fmaxf(widest, fabsf(of_key[j]));
  if (of_key[0] != of_key[0]) widest = of_key[0];  // all are NaN or none is
  int keep = 0;                                    // decisions are or-ed, not branched over
#pragma unroll
  for (int i = 0; i < row_tiles; ++i) {
    const float unit = __fmul_rn(rows.scale[i], key_scale), inverse = __frcp_rn(unit);
    int32_t most[2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      int32_t beta[2], d[4];
#pragma unroll
      for (int e = 0; e < 2; ++e) beta[e] = __float_as_int(__fadd_rn(__fmul_rn(of_key[2 * n + e], inverse), shift));
      ptx::mma_from(beta[0], beta[1], d, rows.a[i][0], b[n][0][0], b[n][0][1], ptx::S4{});
#pragma unroll
      for (int k = 1; k < bytes / 32; ++k) ptx::mma(d, rows.a[i][k], b[n][k][0], b[n][k][1], ptx::S4{});
      most[0] = n == 0 ? max(d[0], d[1]) : max(max(most[0], d[0]), d[1]);
      most[1] = n == 0 ? max(d[2], d[3]) : max(max(most[1], d[2]), d[3]);
    }
    const float step = __fmul_rn(unit, scale);
    keep |= !(__fmul_rn(widest, fabsf(inverse)) < 4194304.0f);
#pragma unroll
    for (int r = 0; r < 2; ++r) keep |= !(__fmul_rn(static_cast<float>(most[r] - shift_bits), step) < rows.limit[i][r]);
  }
  return keep != 0;
}

template <int bytes>
__device__ __forceinline__ bool vote(const Rows<bytes, false>& rows, const uint32_t (&b)[4][bytes / 32][2],
                                     const float* key_scales, const float*, float) {
  int keep = 0;
  const float step = __fmul_rn(rows.scale[0], key_scales[0]);
#pragma unroll
  for (int i = 0; i < row_tiles; ++i) {
    int32_t most[2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      int32_t d[4];
      ptx::mma_from(0, d, rows.a[i][0], b[n][0][0], b[n][0][1], ptx::S8{});
#pragma unroll
      for (int k = 1; k < bytes / 32; ++k) ptx::mma(d, rows.a[i][k], b[n][k][0], b[n][k][1], ptx::S8{});
      most[0] = n == 0 ? max(d[0], d[1]) : max(max(most[0], d[0]), d[1]);
      most[1] = n == 0 ? max(d[2], d[3]) : max(max(most[1], d[2]), d[3]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) keep = keep || !(__fmul_rn(static_cast<float>(most[r]), step) < rows.limit[i][r]);
  }
  return keep;
}

// 128 keys from `first` on, with what belongs to them; absent ones are never looked at.
template <int bytes, bool int4>
__device__ void fetch(const SelectCall& call, const Sequence& s, int32_t kv_head, int32_t first_head, int32_t heads,
                      int64_t bias_at, int64_t first, int stage, Shared<bytes, int4>& sh) {
  using Map = Shared<bytes, int4>;
  const int64_t keys = (s.k_len + block_keys - 1) / block_keys * block_keys, left = keys - first;
  const uint8_t* codes = s.codes + kv_head * s.codes_head + first * bytes;
  for (int i = threadIdx.x; i < chunk_keys * bytes / 16; i += threads)
    if (i * 16 / bytes < left) ptx::copy_16(&sh.keys[stage][16 * i], codes + 16 * i, true);
  const float* scales = s.scales + kv_head * s.scales_head + first / block_keys * Map::scales;
  if constexpr (int4) {
    const int t = threadIdx.x;
    if (t < chunk_blocks && t * block_keys < left) ptx::copy_16(&sh.key_scales[stage][4 * t], scales + 4 * t, true);
    for (int i = t; i < heads * (chunk_keys / 4); i += threads) {
      const int head = i / (chunk_keys / 4), at = i % (chunk_keys / 4) * 4;
      if (at < left)
        ptx::copy_16(&sh.bias[stage][head][at], call.bias + (first_head + head) * call.bias_keys + bias_at + first + at,
                     true);
    }
  } else {
    if (threadIdx.x < chunk_blocks && static_cast<int>(threadIdx.x) * block_keys < left)
      sh.key_scales[stage][threadIdx.x] = scales[threadIdx.x];
  }
  ptx::copies_commit();
}

template <int bytes, bool int4>
__global__ void __launch_bounds__(threads, bytes == 128 ? 1 : 2)
    scan_kernel(const __grid_constant__ SelectCall call, int32_t first_chunk, int32_t chunks) {
  extern __shared__ __align__(128) char raw[];
  auto& sh = *reinterpret_cast<Shared<bytes, int4>*>(raw);
  const Common& c = call.common;
  const int32_t heads = chunk_heads(c.group), parts = c.group / heads, per_head = chunks * parts;
  // Thread blocks of one kv head follow each other, longest tiles first; what they read then fits L2.
  const int32_t kv_head = blockIdx.x / per_head, rest = blockIdx.x % per_head, chunk = rest / parts;
  const int32_t first_head = kv_head * c.group + rest % parts * heads;
  const Item item = call.chunks[first_chunk + chunk];
  const Sequence s = c.sequences[item.sequence];
  const int64_t bias_at = call.bias_at[item.sequence];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t of_head = warp % heads, head = first_head + of_head, in_chunk = warp / heads,
                tile = item.tile + in_chunk;
  const bool present = int64_t{tile} * tile_rows < s.q_len;
  const bool chosen = present && drops(c, s, head, tile), mine = chosen && scans(c, s, head, tile);
  const int32_t end = mine ? local_block(s, int64_t{tile} * tile_rows, c.local) : 0;
  // The last tile of the chunk has most candidates; with windows they begin with those of the first that has any.
  const int64_t tiles = (s.q_len + tile_rows - 1) / tile_rows;
  const auto last_tile = static_cast<int32_t>(least(item.tile + scan_warps / heads, tiles) - 1);
  int32_t begin = 0, n_chunks = 0;
  for (int32_t t = c.windowed != 0 ? item.tile : last_tile; t <= last_tile; ++t) {
    bool any = false;
    for (int32_t h = 0; h < heads; ++h) any = any || scans(c, s, first_head + h, t);
    if (!any) continue;
    const Sight::Candidates asked = s.candidates(t, tile_rows, c.sink, c.local);
    if (n_chunks == 0) begin = static_cast<int32_t>(asked.first) / 64 * (64 / chunk_blocks);  // whole words of votes
    n_chunks = (static_cast<int32_t>(asked.last) + chunk_blocks - 1) / chunk_blocks;
  }

  const auto fetch_chunk = [&](int32_t n) {
    if (n < n_chunks)
      fetch<bytes, int4>(call, s, kv_head, first_head, heads, bias_at, int64_t{n} * chunk_keys, n % stages, sh);
    else
      ptx::copies_commit();
  };
  for (int n = 0; n < stages - 1; ++n) fetch_chunk(begin + n);

  uint64_t* row = present ? cuda::tile_bits(c, s, tile, head) : nullptr;
  const cuda::RowOfBits bits(c, s, present ? tile : 0, tile_rows, chosen);
  // 64 blocks of the row of bits: votes between sink and local, everything else kept.
  const auto write = [&](int32_t w, uint64_t votes) {
    if (lane == 0) row[w] = bits.word(w, votes);
  };
  if (present)
    for (int32_t w = 0; w < min(begin * chunk_blocks / 64, bits.words()); ++w) write(w, 0);
  if (n_chunks > 0) {
    // Warps without candidates read what was never written and vote on nothing.
    const auto rows = load_rows<bytes, int4>(query_place(call, chunk, head, mine ? in_chunk : 0));
    uint64_t votes = 0;
    uint32_t word = 0;
#pragma unroll 1
    for (int32_t n = begin; n < n_chunks; ++n) {
      ptx::copies_wait<stages - 2>();
      __syncthreads();  // the chunk is there, and everyone is done with the stage that comes next
      fetch_chunk(n + stages - 1);
      if (n * chunk_blocks >= end) continue;
      const int stage = n % stages;
#pragma unroll 1
      for (int b = 0; b < chunk_blocks; ++b) {
        uint32_t operands[4][bytes / 32][2];
        load_keys<bytes>(sh.keys[stage] + b * 32 * bytes, operands);
        const bool keep = vote<bytes>(rows, operands, sh.key_scales[stage] + b * Shared<bytes, int4>::scales,
                                      sh.bias[stage][int4 ? of_head : 0] + (int4 ? b * 32 : 0), c.scale);
        word |= keep ? 1u << (n * chunk_blocks + b) % 32 : 0u;
      }
      const int32_t done = (n + 1) * chunk_blocks;
      if (done % 32 == 0 || done >= end) {
        word = __reduce_or_sync(0xffffffff, word);
        const int32_t at = (done - 1) / 32;
        votes |= uint64_t{word} << at % 2 * 32;
        word = 0;
        if (at % 2 == 1 || done >= end) {
          if (at / 2 < bits.words()) write(at / 2, votes);
          votes = 0;
        }
      }
    }
  }
  ptx::copies_wait();
  if (!present) return;
  for (int32_t w = max((end + 63) / 64, begin * chunk_blocks / 64); w < bits.words(); ++w) write(w, 0);
}

template <int bytes, bool int4>
cudaError_t allow() {
  return cudaFuncSetAttribute(scan_kernel<bytes, int4>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(Shared<bytes, int4>)));
}

template <int bytes, bool int4>
cudaError_t launch(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream) {
  const int32_t group = call.common.group;
  const auto blocks = static_cast<unsigned>(chunks * (group / chunk_heads(group)) * call.common.kv_heads);
  scan_kernel<bytes, int4><<<blocks, threads, sizeof(Shared<bytes, int4>), stream>>>(call, first, chunks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_scan(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream) {
  const Estimator& e = call.estimator;
  if (e.format == SALE_INT4)
    return e.width == 32 ? launch<32, true>(call, first, chunks, stream)
                         : launch<64, true>(call, first, chunks, stream);
  return e.width == 64 ? launch<64, false>(call, first, chunks, stream)
                       : launch<128, false>(call, first, chunks, stream);
}

cudaError_t allow_scan() {
  for (const auto f : {allow<32, true>, allow<64, true>, allow<64, false>, allow<128, false>})
    if (const cudaError_t e = f(); e != cudaSuccess) return e;
  return cudaSuccess;
}

}  // namespace sale::sm80
