// Codes between an index in order, as the scan reads it, and the pages they are kept in.
//
// Floor: bytes moved twice over bandwidth. 128 K keys of 8 kv heads, 64 bytes a key: 134 MB, 0.04 ms at 3.35 TB/s, a
// hundredth of the scan of a chunk of 8192 rows over them; a scan that reads pages would save that and cost every tile
// a look into the table.
#include "cuda/common/kernels.hpp"

namespace sale::cuda {
namespace {

constexpr int warps = 8;

// A warp a block of keys.
template <bool write>
__global__ void __launch_bounds__(32 * warps) copy_pages(const __grid_constant__ PagesCall c) {
  const int lane = threadIdx.x % 32;
  const int64_t block = c.first + int64_t{blockIdx.x} * warps + threadIdx.x / 32, head = blockIdx.y;
  if (block >= c.end) return;
  char* page = c.pages + c.table[block / c.page_blocks] * c.page_bytes;
  const int64_t in_page = block % c.page_blocks;
  auto* paged = reinterpret_cast<uint4*>(page + head * c.page_codes_head + in_page * c.code_bytes);
  auto* ordered = reinterpret_cast<uint4*>(c.codes + head * c.codes_head + block * c.code_bytes);
  for (int i = lane; i < c.code_bytes / 16; i += 32)
    if constexpr (write)
      paged[i] = ordered[i];
    else
      ordered[i] = paged[i];
  if (lane * 4 >= c.scale_bytes) return;
  auto* paged_scales =
      reinterpret_cast<float*>(page + c.page_scales_at + head * c.page_scales_head + in_page * c.scale_bytes);
  float* ordered_scales = c.scales + head * c.scales_head + block * (c.scale_bytes / 4);
  if constexpr (write)
    paged_scales[lane] = ordered_scales[lane];
  else
    ordered_scales[lane] = paged_scales[lane];
}

dim3 grid(const PagesCall& c) {
  return dim3(static_cast<unsigned>((c.end - c.first + warps - 1) / warps), static_cast<unsigned>(c.kv_heads));
}

}  // namespace

cudaError_t launch_read_pages(const PagesCall& c, cudaStream_t stream) {
  copy_pages<false><<<grid(c), 32 * warps, 0, stream>>>(c);
  return cudaGetLastError();
}

cudaError_t launch_write_pages(const PagesCall& c, cudaStream_t stream) {
  copy_pages<true><<<grid(c), 32 * warps, 0, stream>>>(c);
  return cudaGetLastError();
}

}  // namespace sale::cuda
