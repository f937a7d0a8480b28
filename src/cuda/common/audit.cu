// The second half of an audit, for partial results that a backend's own kernel has made. docs/numerics.md, section 8.
//
//   compare   a warp a lane: ranges merged, exact = O / l; error = |out - exact|_1, size = |exact|_1, mass = kept / l
//   total     a warp a head: sums over its rows
#include "cuda/common/audit.cuh"
#include "cuda/common/element.cuh"

namespace sale::cuda {
namespace {

constexpr int threads = 128;
constexpr float log2e = 1.4426950408889634f;

template <int D>
__global__ void __launch_bounds__(threads) compare_kernel(const __grid_constant__ AuditCall c) {
  constexpr int own = D / 32;  // coordinates of a thread, neighbours
  const int32_t kv_head = blockIdx.y, thread = threadIdx.x % 32;
  const int64_t at = blockIdx.x * int64_t{threads / 32} + threadIdx.x / 32, n = int64_t{c.n_rows} * c.group;
  if (at >= n) return;
  const Lane lane(c, kv_head, at);
  const float* from = c.partials + (kv_head * n + at) * c.ranges * (D + 3);
  float most = -INFINITY;
  for (int32_t i = 0; i < c.ranges; ++i) most = fmaxf(most, from[i * (D + 3) + D]);
  double exact[own] = {}, sum = 0, kept = 0;
  for (int32_t i = 0; i < c.ranges && most != -INFINITY; ++i) {
    const float* x = from + i * (D + 3);
    const double weight = exp2(static_cast<double>(x[D] - most) * static_cast<double>(c.scale * log2e));
    sum += weight * static_cast<double>(x[D + 1]);
    kept += weight * static_cast<double>(x[D + 2]);
#pragma unroll
    for (int e = 0; e < own; ++e) exact[e] += weight * static_cast<double>(x[thread * own + e]);
  }
  const double inverse = sum == 0 ? 0 : 1 / sum;
  AuditedRow row{0, 0, sum == 0 ? 1 : kept * inverse};
  if (row.mass > 1) row.mass = 1;  // two sums of the same, in another order
  const uint16_t* out = c.out + lane.head * c.out_head + lane.row * c.out_token;
  const bool bf16 = c.dtype == SALE_BF16;
#pragma unroll
  for (int e = 0; e < own; ++e) {
    const double x = exact[e] * inverse;
    row.error += fabs(static_cast<double>(low_element(out[thread * own + e], bf16)) - x);
    row.size += fabs(x);
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    row.error += __shfl_xor_sync(0xffffffff, row.error, i);
    row.size += __shfl_xor_sync(0xffffffff, row.size, i);
  }
  if (thread == 0) c.to[kv_head * c.to_head + at] = row;
}

__global__ void total_kernel(const __grid_constant__ AuditCall c, sale_head_audit* heads) {
  const int32_t head = blockIdx.x, thread = threadIdx.x;
  const AuditedRow* rows = c.to + head / c.group * c.to_head + head % c.group;
  sale_head_audit sum{c.n_rows, 0, 0, 0, 1};
  for (int64_t r = thread; r < c.n_rows; r += 32) {
    const AuditedRow& row = rows[r * c.group];
    sum.error += row.error, sum.size += row.size, sum.mass += row.mass;
    if (!(row.mass >= sum.least_mass)) sum.least_mass = row.mass;
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    sum.error += __shfl_xor_sync(0xffffffff, sum.error, i);
    sum.size += __shfl_xor_sync(0xffffffff, sum.size, i);
    sum.mass += __shfl_xor_sync(0xffffffff, sum.mass, i);
    const double other = __shfl_xor_sync(0xffffffff, sum.least_mass, i);
    if (!(other >= sum.least_mass)) sum.least_mass = other;
  }
  if (thread == 0) heads[head] = sum;
}

}  // namespace

cudaError_t launch_audit_compare(const AuditCall& c, cudaStream_t stream) {
  const int64_t n = int64_t{c.n_rows} * c.group;
  const dim3 rows(static_cast<unsigned>((n + threads / 32 - 1) / (threads / 32)), static_cast<unsigned>(c.kv_heads));
  const auto kernel = c.head_dim == 128 ? compare_kernel<128> : compare_kernel<64>;
  kernel<<<rows, threads, 0, stream>>>(c);
  return cudaGetLastError();
}

cudaError_t launch_audit_total(const AuditCall& c, sale_head_audit* heads, cudaStream_t stream) {
  total_kernel<<<static_cast<unsigned>(c.kv_heads * c.group), 32, 0, stream>>>(c, heads);
  return cudaGetLastError();
}

}  // namespace sale::cuda
