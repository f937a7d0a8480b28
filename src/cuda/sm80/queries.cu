// Codes of queries, and what their smoothing adds to every key's score. docs/numerics.md, sections 2 and 4, to the bit.
//
//   bias    b_j = q_mean . smoothed key, ascending: a thread block 32 keys, a warp a query head at a time, a lane a key
//   code    a thread block a tile of 64 rows of a head, a warp 16 of them, the lanes their coordinates
//
// Floors, 128 K tokens, 32 query heads, 8 kv heads, d 128: bias 1 G products and sums, 0.05 ms on 128 x 128 lanes
// at 2.5 GHz; code Q once, 1.07 GB, 1.1 ms at 1.0 TB/s, and 0.27 GB written; projected to 64 coordinates 34 G products
// and as many sums, 1.7 ms.
#include "cuda/sm80/codes.cuh"
#include "cuda/sm80/queries.cuh"

namespace sale::sm80 {
namespace {

constexpr int threads = 128, warps = threads / 32;

template <int D>
__global__ void __launch_bounds__(threads) bias_kernel(const __grid_constant__ SelectCall call) {
  __shared__ float x[block_keys][D + 1];
  const Common& c = call.common;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t kv_head = blockIdx.y;
  const Sequence s = c.sequences[blockIdx.z];
  const int64_t first = blockIdx.x * block_keys;
  if (s.dense || first >= s.k_len) return;
  for (int r = warp; r < block_keys; r += warps) {
    const bool present = first + r < s.k_len;
    float part[D / 32];
    load_part<D>(key_row(call, s, kv_head, present ? first + r : s.k_len - 1), lane, c.dtype == SALE_BF16, part);
    for (int e = 0; e < D / 32; ++e) {
      const int at = lane * (D / 32) + e;
      x[r][at] = present ? __fsub_rn(part[e], s.smoothing[kv_head * D + at]) : 0.0f;
    }
  }
  __syncthreads();
  for (int32_t g = warp; g < c.group; g += warps) {
    const int32_t head = kv_head * c.group + g;
    const float* mean = call.q_means + (int64_t{s.batch} * c.q_heads + head) * D;
    float sum = 0;
#pragma unroll 8
    for (int a = 0; a < D; ++a) sum = __fadd_rn(sum, __fmul_rn(mean[a], x[lane][a]));
    // Where one number of a group of keys is not finite all are NaN: the vote then looks at their maximum alone.
    const uint32_t bad = __ballot_sync(0xffffffff, !isfinite(sum));
    if ((bad & 0x03030303u << lane % 8 / 2 * 2) != 0) sum = not_a_number();
    call.bias[head * call.bias_keys + call.bias_at[blockIdx.z] + first + bias_place(lane)] = sum;
  }
}

template <int D, int W, bool int4, bool projected>
__global__ void __launch_bounds__(threads) code_kernel(const __grid_constant__ SelectCall call, int32_t first_chunk) {
  constexpr int R = 4, width = int4 ? W / 2 : W;  // rows at a time: two pairs
  __shared__ float stage[projected ? warps : 1][R][D];
  __shared__ float ranges[warps];
  const Common& c = call.common;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t tiles = chunk_tiles(c.group), chunk = blockIdx.x / tiles, head = blockIdx.y;
  const Item item = call.chunks[first_chunk + chunk];
  const Sequence s = c.sequences[item.sequence];
  const int64_t tile = item.tile + static_cast<int64_t>(blockIdx.x) % tiles, first = tile * tile_rows;
  if (first >= s.q_len || !scans(c, s, head, tile)) return;
  const int n = static_cast<int>(least(tile_rows, s.q_len - first));
  const QueryPlace place = query_place(call, chunk, head, blockIdx.x % tiles);
  const int32_t kv_head = head / c.group, rank = call.estimator.rank;
  const float* projection =
      projected ? static_cast<const float*>(call.estimator.q_projection) + int64_t{kv_head} * D * rank : nullptr;
  float mean[D / 32];
#pragma unroll
  for (int e = 0; e < D / 32; ++e)
    mean[e] = int4 ? call.q_means[(int64_t{s.batch} * c.q_heads + head) * D + lane * (D / 32) + e] : 0.0f;
  // Rows i, i + 8, i + 1, i + 9 of the warp's 16, i = 0, 2, 4, 6.
  const auto row_of = [&](int i, int r) { return warp * 16 + i + r / 2 + r % 2 * 8; };
  const auto load = [&](int i, float(&y)[R][W / 32]) {
    float x[R][D / 32];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      load_part<D>(query_row(call, s, head, first + stand_in(row_of(i, r), n)), lane, c.dtype == SALE_BF16, x[r]);
#pragma unroll
      for (int e = 0; e < D / 32; ++e)
        if (int4) x[r][e] = __fsub_rn(x[r][e], mean[e]);
    }
    coordinates<D, W, R, projected>(x, stage[projected ? warp : 0], projection, rank, y);
  };
  const auto write = [&](const Quantizer& z, int row, const float(&y)[W / 32]) {
    write_codes<int4>(z, y, [&](int at) { return place.codes + row * width + at; });
  };
  if constexpr (int4) {
#pragma unroll 1
    for (int i = 0; i < 8; i += 2) {
      float y[R][W / 32];
      load(i, y);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        float pair[2][W / 32];
#pragma unroll
        for (int e = 0; e < W / 32; ++e) pair[0][e] = y[2 * p][e], pair[1][e] = y[2 * p + 1][e];
        const Quantizer z(over_warp(range_of(pair)), 7.0f);
        write(z, row_of(i, 2 * p), pair[0]);
        write(z, row_of(i, 2 * p + 1), pair[1]);
        if (lane == 0) place.scales[warp * 8 + i + p] = z.scale;
      }
    }
  } else {
    float range = 0;
#pragma unroll 1
    for (int i = 0; i < 8; i += 2) {
      float y[R][W / 32];
      load(i, y);
      range = fmaxf(range, range_of(y));
    }
    range = over_warp(range);
    if (lane == 0) ranges[warp] = range;
    __syncthreads();
    const Quantizer z(fmaxf(fmaxf(ranges[0], ranges[1]), fmaxf(ranges[2], ranges[3])), 127.0f);
#pragma unroll 1
    for (int i = 0; i < 8; i += 2) {
      float y[R][W / 32];
      load(i, y);
#pragma unroll
      for (int r = 0; r < R; ++r) write(z, row_of(i, r), y[r]);
    }
    if (threadIdx.x == 0) place.scales[0] = __fmul_rn(z.scale, c.scale);
  }
}

}  // namespace

cudaError_t launch_bias(const SelectCall& call, cudaStream_t stream) {
  const Common& c = call.common;
  int64_t blocks = 0;
  for (int32_t i = 0; i < c.n_sequences; ++i) {
    const Sequence& s = c.sequences[i];
    if (s.dense) continue;
    const int64_t of_sequence = (s.k_len + block_keys - 1) / block_keys;
    blocks = blocks > of_sequence ? blocks : of_sequence;
    const uint16_t* q = static_cast<const uint16_t*>(call.q.base) + s.batch * call.q.outer + s.q_start * call.q.token;
    const cudaError_t e = cuda::launch_mean({{q, call.q.head, call.q.token, 0, 0, nullptr},
                                             c.dtype,
                                             c.head_dim,
                                             c.q_heads,
                                             s.q_len,
                                             call.q_means + int64_t{s.batch} * c.q_heads * c.head_dim,
                                             call.scratch},
                                            stream);
    if (e != cudaSuccess) return e;
  }
  if (blocks == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(c.kv_heads),
                  static_cast<unsigned>(c.n_sequences));
  if (c.head_dim == 128)
    bias_kernel<128><<<grid, threads, 0, stream>>>(call);
  else
    bias_kernel<64><<<grid, threads, 0, stream>>>(call);
  return cudaGetLastError();
}

cudaError_t launch_queries(const SelectCall& call, int32_t first, int32_t chunks, cudaStream_t stream) {
  const Common& c = call.common;
  const dim3 grid(static_cast<unsigned>(chunks * chunk_tiles(c.group)), static_cast<unsigned>(c.q_heads));
  return with_shape(
      call.estimator, c.head_dim, call.estimator.q_projection != nullptr, [&](auto d, auto w, auto int4, auto p) {
        code_kernel<d.value, w.value, int4.value != 0, p.value != 0><<<grid, threads, 0, stream>>>(call, first);
        return cudaGetLastError();
      });
}

}  // namespace sale::sm80
