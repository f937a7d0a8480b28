// Queries made ready for the scan: each row's threshold and its codes. Hopper.
//
// One thread block owns 64 rows (half a tile) of up to four query heads that share a kv head, a warpgroup a head. A
// producer warp brings Q (once) and the reference keys, sink and local, block by block:
//
//   S = Q K_refᵀ   64 x 32, 16-bit products, f32 sums ─▶ running maximum m and sum l of every row; a given reference
//                  stands for m + ln l
//   Y = Q A        projected: A as one more block of 32 columns ─▶ e4m3 codes, one scale a row
//   T = m + ln(tau l) - q k̄
//                  the codes are of smoothed keys, whose scores are lower by q k̄. k̄ takes two spare columns of A, its
//                  16-bit value and what that leaves.
//   last coordinates of the row ─▶ -T in code units, in three e4m3 pieces: the scan's sums are then D - T
//
// Without projection the codes are made from Q itself, and T goes to row_limits: FP8 in code units, INT8 as it is (that
// one needs T to the bit: exact.cu writes it).
//
// Floor: Q read once (256 bytes a row: 1 GB for 32 heads of 128 K rows, 0.3 ms), about 9 blocks of 32 reference keys
// and one of the projection, 320 products of 128 a row: 0.35 TFLOP, 0.5 ms.
#include <cstddef>
#include <initializer_list>
#include <type_traits>

#include "cuda/ptx/async.cuh"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/sm90/blocks.cuh"
#include "cuda/sm90/element.cuh"
#include "cuda/sm90/queries.cuh"

namespace sale::sm90 {
namespace {

using namespace ptx;

constexpr int half_rows = 64, ring = 4, max_heads = 4;
constexpr float log2e = 1.4426950408889634f;

// Columns in pieces of 64 elements: 128 bytes a row, 128-byte swizzle.
template <int D, int width>
struct Shared {
  static constexpr int pieces = D / 64;
  alignas(1024) uint16_t k[ring][pieces][block_keys * 64];
  alignas(1024) uint16_t a[width / 32][pieces][32 * 64];  // projection, transposed: 32 coordinates a block
  uint64_t q_full, k_full[ring], k_empty[ring];
  alignas(1024) uint16_t q[max_heads][pieces][half_rows * 64];  // only as many heads as a thread block has are there
};

// The reference blocks of a half: the tile's sink, then from the half's first local block on to the last one seen. None
// where every row's reference is given.
struct Reference {
  int32_t sink, first, last;  // blocks [0, sink) and [first, last)
  __device__ Reference(const Common& c, const Sequence& s, int64_t row, bool given) : sink(0), first(0), last(0) {
    if (given) return;
    const int64_t end = least(row + half_rows, s.q_len) - 1;
    last = static_cast<int32_t>(Sight::blocks_of(s.end_key(end)));
    sink = min(static_cast<int32_t>(s.sink_end(row / tile_rows, tile_rows, c.sink)), last);
    first = max(sink, local_block(s, row, c.local));
  }
  __device__ int32_t count() const { return sink + max(0, last - first); }
  __device__ int32_t block(int32_t i) const { return i < sink ? i : first + i - sink; }
};

template <class T, int D>
__device__ __forceinline__ void multiply(float (&s)[16], const uint16_t (&q)[D / 64][half_rows * 64],
                                         const uint16_t (&k)[D / 64][32 * 64]) {
  wgmma_touch(s);
  wgmma_fence();
#pragma unroll
  for (int piece = 0; piece < D / 64; ++piece) {
    const uint64_t a = row_descriptor(shared_address(q[piece]), 128);
    const uint64_t b = row_descriptor(shared_address(k[piece]), 128);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma_n32(s, advance(a, 32 * i), advance(b, 32 * i), piece + i > 0, T{});
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_touch(s);
}

// Maximum and sum of one row's reference scores, as this thread and its three neighbours see them. A NaN or +inf among
// them makes the sum NaN and with it the threshold.
struct Row {
  float most = -INFINITY, sum = 0;

  // Scores of columns 8 i + {0, 1}; those from `seen` on do not count.
  template <bool masked>
  __device__ __forceinline__ void add(const float (&s)[16], int at, float scale, int seen) {
    float x[8], here = most;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = s[i / 2 * 4 + at + i % 2];
      if (masked && i / 2 * 8 + i % 2 >= seen) x[i] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) here = fmaxf(here, x[i]);
    const float base = here == -INFINITY ? 0.0f : here * scale;
    sum *= ptx::exp2_approximate(fmaf(most, scale, -base));
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += ptx::exp2_approximate(fmaf(x[i], scale, -base));
    most = here;
  }
  // scale: of scores in base 2, as given to add.
  __device__ float threshold(float tau, float scale) {
    constexpr float ln2 = 0.6931471805599453f;
#pragma unroll
    for (int o = 1; o <= 2; o *= 2) {
      const float other = __shfl_xor_sync(0xffffffff, most, o), its = __shfl_xor_sync(0xffffffff, sum, o);
      const float top = fmaxf(most, other), base = top == -INFINITY ? 0.0f : top * scale;
      sum = sum * ptx::exp2_approximate(fmaf(most, scale, -base)) +
            its * ptx::exp2_approximate(fmaf(other, scale, -base));
      most = top;
    }
    return most * (scale * ln2) + (logf(tau) + logf(sum));
  }
};

template <int D, int width>
__device__ void produce(const SelectCall& call, const Sequence& s, int64_t first_row, int32_t first_head, int heads,
                        const Reference& reference, Shared<D, width>& sh) {
  const Common& c = call.common;
  barrier_expect(&sh.q_full, static_cast<uint32_t>(heads * sizeof(sh.q[0])));
  for (int h = 0; h < heads; ++h)
    for (int piece = 0; piece < D / 64; ++piece)
      copy_box(sh.q[h][piece], &call.q64, &sh.q_full, piece * 64, static_cast<int32_t>(s.q_start + first_row),
               first_head + h, s.batch);
  const int rows = c.page_size % 32 == 0 ? 32 : 16;
  for (int32_t n = 0; n < reference.count(); ++n) {
    const int at = n % ring;
    barrier_wait(&sh.k_empty[at], (n / ring & 1) ^ 1);
    barrier_expect(&sh.k_full[at], sizeof(sh.k[at]));
    for (int r = 0; r < block_keys; r += rows) {
      int64_t key = int64_t{reference.block(n)} * block_keys + r;
      if (c.page_size != 0) key = least(key, (s.k_len - 1) / 16 * 16);
      const KeyPlace place = key_place(c, s, key);
      for (int piece = 0; piece < D / 64; ++piece)
        copy_box(&sh.k[at][piece][r * 64], &call.k32, &sh.k_full[at], piece * 64, place.token, first_head / c.group,
                 place.outer);
    }
  }
}

// ---- codes ----------------------------------------------------------------------------------------------------------

struct Out {
  uint8_t* codes;  // of this (item, head): 128 rows
  float* limits;   // 128 rows, then INT8's tile scales of the two halves
  int row;         // of this thread in the tile; the other is row + 8
};

// Projected: y holds columns 8 i + 2 (t % 4) + {0, 1} of 32-coordinate blocks, rows r and r + 8.
// Columns rank and rank + 1 are q k̄.
template <int width>
__device__ void write_projected(const Out& out, float (&y)[width / 32][16], int rank, float (&threshold)[2],
                                const bool (&present)[2], float key_scale, float scale) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float mean_score = 0;
#pragma unroll
    for (int b = 0; b < width / 32; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (32 * b + 8 * i + column == rank) mean_score = y[b][4 * i + 2 * r] + y[b][4 * i + 2 * r + 1];
    threshold[r] -=
        __shfl_sync(0xffffffff, mean_score, static_cast<int>(threadIdx.x) % 32 / 4 * 4 + rank % 8 / 2) * scale;
    float largest = 0;
    bool finite = isfinite(threshold[r]);
#pragma unroll
    for (int b = 0; b < width / 32; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = y[b][4 * i + 2 * r + e];
          if (32 * b + 8 * i + column + e >= rank) x = 0;
          finite = finite && isfinite(x);
          largest = fmaxf(largest, fabsf(x));
        }
#pragma unroll
    for (int o = 1; o <= 2; o *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, o));
      finite = __shfl_xor_sync(0xffffffff, static_cast<int>(finite), o) != 0 && finite;
    }
    const RowCode code = row_code(largest, width == 32 ? code_top : code_top_of_two);
    float rest = limit_in_code_units(threshold[r], code.scale, key_scale, scale) * (1.0f / e4m3_most);
    if (!present[r]) rest = e4m3_most;
    uint8_t piece[3];
#pragma unroll
    for (int p = 0; p < 3; ++p) {
      piece[p] = to_e4m3(-rest);
      rest += from_e4m3(piece[p]);
    }
    uint8_t* row = out.codes;
#pragma unroll
    for (int b = 0; b < width / 32; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 32 * b + 8 * i + column;
        uint8_t low = to_e4m3(y[b][4 * i + 2 * r] * code.factor), high = to_e4m3(y[b][4 * i + 2 * r + 1] * code.factor);
        if (at == width - 4) low = piece[0], high = piece[1];
        if (at == width - 2) low = piece[2], high = 0;
        if (!present[r] && at < width - 4) low = high = 0;
        if (present[r] && !finite) low = high = e4m3_nan;
        *reinterpret_cast<uint16_t*>(row + code_offset(out.row + 8 * r, at, width)) =
            static_cast<uint16_t>(low | high << 8);
      }
  }
}

// Unprojected FP8: a thread codes half a row of Q in shared memory; thresholds come through shared memory as well.
template <int D>
__device__ void write_plain(const Out& out, const uint16_t (&q)[D / 64][half_rows * 64], bool bf16,
                            const float* smoothing, float threshold, bool present, float key_scale, float scale,
                            int half) {
  const int t = threadIdx.x % 128, row = t / 2, piece0 = t % 2 * (D / 16);  // pieces of 16 bytes
  float x[D / 2];
  float largest = 0;
  bool finite = true;
#pragma unroll
  for (int p = 0; p < D / 16; ++p) {
    const int piece = piece0 + p;
    const uint4 v = *reinterpret_cast<const uint4*>(&q[piece / 8][row * 64 + ((piece % 8) ^ (row % 8)) * 8]);
    const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[8 * p + 2 * e] = low_element(pair[e], bf16);
      x[8 * p + 2 * e + 1] = high_element(pair[e], bf16);
    }
  }
#pragma unroll
  for (int i = 0; i < D / 2; ++i) {
    finite = finite && isfinite(x[i]);
    largest = fmaxf(largest, fabsf(x[i]));
  }
  float mean_score = 0;
#pragma unroll
  for (int i = 0; i < D / 2; ++i) mean_score = fmaf(x[i], smoothing[t % 2 * (D / 2) + i], mean_score);
  threshold -= (mean_score + __shfl_xor_sync(0xffffffff, mean_score, 1)) * scale;
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
  finite = __shfl_xor_sync(0xffffffff, static_cast<int>(finite), 1) != 0 && finite && isfinite(threshold);
  const RowCode code = row_code(largest, code_top);
#pragma unroll
  for (int p = 0; p < D / 32; ++p) {  // 16 codes
    uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      word[w] = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint8_t byte = !present ? 0 : finite ? to_e4m3(x[16 * p + 4 * w + e] * code.factor) : e4m3_nan;
        word[w] |= static_cast<uint32_t>(byte) << 8 * e;
      }
    }
    *reinterpret_cast<uint4*>(out.codes + code_offset(half * half_rows + row, t % 2 * (D / 2) + 16 * p, D)) =
        uint4{word[0], word[1], word[2], word[3]};
  }
  if (t % 2 == 0)
    out.limits[half * half_rows + row] =
        present ? limit_in_code_units(threshold, code.scale, key_scale, scale) : INFINITY;
}

// Eight numbers rounded to 16 bits, or what the rounding left of them.
template <class T>
__device__ uint4 mean_pieces(const float* mean, bool first) {
  uint32_t pair[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const float x = mean[2 * p], y = mean[2 * p + 1];
    uint32_t v = to_pair(x, y, std::is_same_v<T, Bf16>);
    if (!first)
      v = to_pair(x - low_element(v, std::is_same_v<T, Bf16>), y - high_element(v, std::is_same_v<T, Bf16>),
                  std::is_same_v<T, Bf16>);
    pair[p] = v;
  }
  return {pair[0], pair[1], pair[2], pair[3]};
}

template <int D, class T, int width, bool projected>
__global__ void __launch_bounds__(128 * max_heads + 32)
    prepare_kernel(const __grid_constant__ SelectCall call, int32_t first_item) {
  extern __shared__ char raw[];
  auto& sh = shared_as<Shared<D, width>>(raw);
  const Common& c = call.common;
  const int heads = static_cast<int>(blockDim.x - 32) / 128;
  const int32_t half = blockIdx.x % 2, first_head = static_cast<int32_t>(blockIdx.y) * heads,
                kv_head = first_head / c.group;
  const int32_t item = first_item + blockIdx.x / 2;
  const Sequence s = c.sequences[c.items[item].sequence];
  const int64_t tile = c.items[item].tile, first_row = tile * tile_rows + half * half_rows;
  bool wanted = false;
  for (int32_t h = 0; h < heads; ++h) wanted = wanted || is_scanned(c.thresholds[first_head + h]);
  const Sight::Candidates asked = s.candidates(tile, tile_rows, c.sink, c.local);
  if (s.dense || !wanted || asked.last == asked.first) return;
  const bool any = first_row < s.q_len;
  const Reference reference(c, s, any ? first_row : first_row - half_rows, call.reference != nullptr);
  if (threadIdx.x == 0) {
    barrier_init(&sh.q_full, 1);
    for (int i = 0; i < ring; ++i) {
      barrier_init(&sh.k_full[i], 1);
      barrier_init(&sh.k_empty[i], 4 * heads);
    }
    barrier_init_fence();
  }
  if constexpr (projected) {
    const uint16_t* a = static_cast<const uint16_t*>(call.estimator.q_projection) + int64_t{kv_head} * width * D;
    for (int i = threadIdx.x; i < width * D / 8; i += blockDim.x) {  // pieces of 16 bytes
      const int row = i / (D / 8), piece = i % (D / 8);
      uint4 v = *reinterpret_cast<const uint4*>(a + row * D + piece * 8);
      if (row == call.estimator.rank || row == call.estimator.rank + 1)
        v = mean_pieces<T>(s.smoothing + kv_head * D + piece * 8, row == call.estimator.rank);
      *reinterpret_cast<uint4*>(&sh.a[row / 32][piece / 8][row % 32 * 64 + ((piece % 8) ^ (row % 8)) * 8]) = v;
    }
    fence_async();
  }
  __syncthreads();
  if (threadIdx.x >= 128 * heads) {
    if (threadIdx.x % 32 == 0) produce<D, width>(call, s, first_row, first_head, heads, reference, sh);
    return;
  }

  const int group = warpgroup(), t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
  const int32_t head = first_head + group;
  const float tau = c.thresholds[head], key_scale = s.scales[kv_head * s.scales_head];
  const int32_t seen0 = static_cast<int32_t>(s.end_key(first_row + row));
  const int32_t seen1 = static_cast<int32_t>(s.end_key(first_row + row + 8));
  const auto whole = static_cast<int32_t>(s.end_key(first_row) / block_keys);  // blocks every row sees all of
  const float scale2 = c.scale * log2e;
  Row rows[2];
  float scores[16];
  barrier_wait(&sh.q_full, 0);
#pragma unroll 1
  for (int32_t n = 0; n < reference.count(); ++n) {
    const int at = n % ring;
    barrier_wait(&sh.k_full[at], n / ring & 1);
    multiply<T, D>(scores, sh.q[group], sh.k[at]);
    if (threadIdx.x % 32 == 0) barrier_arrive(&sh.k_empty[at]);
    const int32_t first = reference.block(n) * static_cast<int32_t>(block_keys) + column;
    if (reference.block(n) < whole) {
      rows[0].add<false>(scores, 0, scale2, 0);
      rows[1].add<false>(scores, 2, scale2, 0);
    } else {
      rows[0].add<true>(scores, 0, scale2, seen0 - first);
      rows[1].add<true>(scores, 2, scale2, seen1 - first);
    }
  }
  const bool present[2] = {first_row + row < s.q_len, first_row + row + 8 < s.q_len};
  float threshold[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (call.reference == nullptr)
      threshold[r] = rows[r].threshold(tau, scale2);
    else if (present[r])
      threshold[r] = logf(tau) + given_reference(call, s, head, first_row + row + 8 * r);
    else
      threshold[r] = 0;
  }
  const QueryPlace place = query_place(call, item - first_item, head);
  if constexpr (projected) {
    float y[width / 32][16];
#pragma unroll
    for (int b = 0; b < width / 32; ++b) multiply<T, D>(y[b], sh.q[group], sh.a[b]);
    write_projected<width>({place.codes, place.limits, half * half_rows + row}, y, call.estimator.rank, threshold,
                           present, key_scale, c.scale);
  } else {
    // From the accumulators' rows to two threads a row.
    __shared__ float of_row[max_heads][half_rows];
    if (t % 4 == 0) {
      of_row[group][row] = threshold[0];
      of_row[group][row + 8] = threshold[1];
    }
    named_sync(1 + group, 128);
    write_plain<D>({place.codes, place.limits, 0}, sh.q[group], c.dtype == SALE_BF16, s.smoothing + kv_head * D,
                   of_row[group][t / 2], first_row + t / 2 < s.q_len, key_scale, c.scale, half);
  }
}

template <int D, class T, int width, bool projected>
struct Instance {
  using Map = Shared<D, width>;
  static size_t bytes(int heads) { return offsetof(Map, q) + heads * sizeof(Map::q[0]) + 1024; }
  static cudaError_t allow() {
    return cudaFuncSetAttribute(prepare_kernel<D, T, width, projected>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(bytes(max_heads)));
  }
  static cudaError_t launch(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream) {
    const int32_t group = call.common.group, heads = group % 4 == 0 ? 4 : group % 2 == 0 ? 2 : 1;
    const dim3 grid(static_cast<unsigned>(2 * items), static_cast<unsigned>(call.common.q_heads / heads));
    prepare_kernel<D, T, width, projected><<<grid, 128 * heads + 32, bytes(heads), stream>>>(call, first);
    return cudaGetLastError();
  }
};

// f<Instance>() for the one that serves such a call. width 0: not projected.
template <int D, class T, class F>
cudaError_t with_width(int32_t width, F&& f) {
  if (width == 0) return f(Instance<D, T, 32, false>{});
  return width == 32 ? f(Instance<D, T, 32, true>{}) : f(Instance<D, T, 64, true>{});
}
template <class F>
cudaError_t with_instance(int32_t dim, int32_t dtype, int32_t width, F&& f) {
  if (dim == 128) return dtype == SALE_BF16 ? with_width<128, Bf16>(width, f) : with_width<128, F16>(width, f);
  return dtype == SALE_BF16 ? with_width<64, Bf16>(width, f) : with_width<64, F16>(width, f);
}

}  // namespace

cudaError_t launch_prepare(const SelectCall& call, int32_t first, int32_t items, cudaStream_t stream) {
  const Common& c = call.common;
  return with_instance(c.head_dim, c.dtype, call.estimator.q_projection != nullptr ? call.estimator.width : 0,
                       [&](auto instance) { return instance.launch(call, first, items, stream); });
}

cudaError_t allow_prepare() {
  for (const int32_t dim : {64, 128})
    for (const int32_t dtype : {SALE_BF16, SALE_F16})
      for (const int32_t width : {0, 32, 64})
        if (const cudaError_t e = with_instance(dim, dtype, width, [](auto instance) { return instance.allow(); });
            e != cudaSuccess)
          return e;
  return cudaSuccess;
}

}  // namespace sale::sm90
