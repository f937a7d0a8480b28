// Codes between an index in order, as the scan reads it, and the pages they are kept in.
//
// Floor: bytes moved twice over bandwidth. 128 K keys of 8 kv heads, 64 bytes a key: 134 MB, 0.04 ms at 3.35 TB/s, a
// hundredth of the scan of a chunk of 8192 rows over them; a scan that reads pages would save that and cost every tile
// a look into the table.
//
// Pages that say themselves what they hold: reading sorts out the blocks that are not coded, in any order, since each
// is coded by itself; coding and writing go over these.
#include "cuda/common/blocks_of.cuh"

namespace sale::cuda {
namespace {

constexpr int warps = 8;

// Keys of the block's page up to the block's end or the sequence's.
__device__ int32_t keys_to(const PagesCall& c, int64_t block) {
  const int64_t end = (block + 1) * block_keys, first = block / c.page_blocks * c.page_blocks * block_keys;
  return static_cast<int32_t>((end < c.k_len ? end : c.k_len) - first);
}

template <bool write>
__device__ void copy_block(const PagesCall& c, int64_t block, int64_t head) {
  const int lane = threadIdx.x % 32;
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

// A warp a block of keys.
__global__ void __launch_bounds__(32 * warps) read_pages(const __grid_constant__ PagesCall c) {
  const int64_t block = c.first + int64_t{blockIdx.x} * warps + threadIdx.x / 32, head = blockIdx.y;
  if (block >= c.end) return;
  if (c.coded != nullptr && c.coded[c.table[block / c.page_blocks]] < keys_to(c, block)) {
    if (head == 0 && threadIdx.x % 32 == 0) c.uncoded[1 + atomicAdd(c.uncoded, 1)] = static_cast<int32_t>(block);
    return;
  }
  copy_block<false>(c, block, head);
}

__global__ void __launch_bounds__(32 * warps) write_pages(const __grid_constant__ PagesCall c) {
  const int64_t i = int64_t{blockIdx.x} * warps + threadIdx.x / 32, head = blockIdx.y;
  const BlocksToCode blocks{c.coded != nullptr ? c.uncoded : nullptr, c.first, c.end};
  if (i >= blocks.count()) return;
  const int64_t block = blocks[i];
  copy_block<true>(c, block, head);
  if (c.coded == nullptr || head != 0 || threadIdx.x % 32 != 0) return;
  atomicMax(&c.coded[c.table[block / c.page_blocks]], keys_to(c, block));
  const int64_t left = c.k_len - block * block_keys;
  if (c.made != nullptr) atomicAdd(c.made, static_cast<unsigned long long>(left < block_keys ? left : block_keys));
}

__global__ void forget(const __grid_constant__ sale_index_slots s) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < s.n_slots;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t slot = s.slots[i], page = slot / s.page_size;
    if (slot < 0 || page >= s.pages) continue;
    atomicMin(&s.coded[blockIdx.y * s.layer_stride + page], static_cast<int32_t>(slot % s.page_size));
  }
}

dim3 grid(const PagesCall& c) {
  return dim3(static_cast<unsigned>((c.end - c.first + warps - 1) / warps), static_cast<unsigned>(c.kv_heads));
}

}  // namespace

cudaError_t launch_read_pages(const PagesCall& c, cudaStream_t stream) {
  if (c.coded != nullptr)
    if (const cudaError_t e = cudaMemsetAsync(c.uncoded, 0, 4, stream); e != cudaSuccess) return e;
  read_pages<<<grid(c), 32 * warps, 0, stream>>>(c);
  return cudaGetLastError();
}

cudaError_t launch_write_pages(const PagesCall& c, cudaStream_t stream) {
  write_pages<<<grid(c), 32 * warps, 0, stream>>>(c);
  return cudaGetLastError();
}

cudaError_t launch_forget(const sale_index_slots& s, cudaStream_t stream) {
  constexpr int64_t threads = 256, enough = 64;
  const int64_t all = (s.n_slots + threads - 1) / threads;
  forget<<<dim3(static_cast<unsigned>(all < enough ? all : enough), static_cast<unsigned>(s.layers)), threads, 0,
           stream>>>(s);
  return cudaGetLastError();
}

}  // namespace sale::cuda
