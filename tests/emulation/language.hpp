// The part of CUDA's device language that the kernels of src/cuda/common and src/cuda/sm80 are written in, for a host
// compiler: their sources, translated by translate.py, run on the CPU, a fiber a thread (emulation.cpp). It finds
// accesses out of bounds (allocations end at a page that may not be touched), wrong indexes, wrong arithmetic, barriers
// that not all threads reach; not races that the fibers' order hides, nor how tensor cores round.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#undef __global__
#undef __device__
#undef __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __grid_constant__
#define __global__
#define __device__
#define __host__

namespace emulation {

using Row = uint64_t[8];  // what a lane hands to its warp

extern thread_local uint3 thread_index, block_index;
extern thread_local dim3 block_size, grid_size;
extern thread_local char shared_memory[256 << 10];  // the dynamic part

int lane();
// Of the 32 lanes, when all of them have come; valid until the next but one exchange.
const Row* exchange(const uint64_t* words, int n);
int barrier(int predicate);  // of a block; the AND of the predicates
void launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream, const std::function<void()>& kernel);

void copy(void* to, const void* from, bool present);  // 16 bytes, when the thread waits for them
void copies_commit();
void copies_wait(size_t left);

// Shared memory lies in a thread's own storage: an address is the distance from the dynamic part.
inline uint32_t address(const void* p) {
  const auto distance = static_cast<const char*>(p) - shared_memory;
  if (distance != static_cast<int32_t>(distance)) std::abort();
  return static_cast<uint32_t>(static_cast<int32_t>(distance));
}
inline char* pointer(uint32_t at) { return shared_memory + static_cast<int32_t>(at); }

template <class To, class From>
To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <class T>
T from_lane(T x, int source) {
  uint64_t word = 0;
  std::memcpy(&word, &x, sizeof x);
  const Row* rows = exchange(&word, 1);
  std::memcpy(&x, rows[source & 31], sizeof x);
  return x;
}

}  // namespace emulation

#define threadIdx (emulation::thread_index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

inline void __syncthreads() { emulation::barrier(1); }
inline int __syncthreads_and(int p) { return emulation::barrier(p); }
inline void __syncwarp(unsigned = ~0u) {
  const uint64_t nothing = 0;
  emulation::exchange(&nothing, 1);
}
template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return emulation::from_lane(x, from);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulation::from_lane(x, emulation::lane() ^ mask);
}
inline uint32_t __ballot_sync(unsigned, bool p) {
  const uint64_t word = p;
  const emulation::Row* rows = emulation::exchange(&word, 1);
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i) votes |= static_cast<uint32_t>(rows[i][0]) << i;
  return votes;
}
inline bool __any_sync(unsigned m, bool p) { return __ballot_sync(m, p) != 0; }
inline bool __all_sync(unsigned m, bool p) { return __ballot_sync(m, p) == ~0u; }
inline uint32_t __reduce_or_sync(unsigned, uint32_t x) {
  const uint64_t word = x;
  const emulation::Row* rows = emulation::exchange(&word, 1);
  uint32_t all = 0;
  for (int i = 0; i < 32; ++i) all |= static_cast<uint32_t>(rows[i][0]);
  return all;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __float2int_rn(float x) {
  if (x != x) return 0;
  if (x >= 0x1p31f) return INT32_MAX;
  return x <= -0x1p31f ? INT32_MIN : static_cast<int>(std::nearbyint(x));
}
inline int __float_as_int(float x) { return emulation::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulation::bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulation::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulation::bits<float>(x); }
inline double __longlong_as_double(long long x) { return emulation::bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline void __trap() { std::abort(); }
// Fibers of a block take turns, and blocks run one after the other.
template <class T>
T atomicAdd(T* p, T x) {
  const T before = *p;
  *p += x;
  return before;
}
template <class T>
T atomicMax(T* p, T x) {
  const T before = *p;
  *p = std::max(before, x);
  return before;
}
template <class T>
T atomicMin(T* p, T x) {
  const T before = *p;
  *p = std::min(before, x);
  return before;
}
// The runtime's own is for pointers to void; kernels have no attributes here.
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
