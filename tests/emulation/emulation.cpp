// Threads of a block as fibers, and the runtime calls that the library and its tests make. A host thread has its own
// state, so tests run side by side as on a device.
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "language.hpp"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif
// Saves what a call must preserve, changes stacks, and goes on where the other one left off.
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.globl emulation_switch
emulation_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

namespace emulation {

thread_local uint3 thread_index, block_index;
thread_local dim3 block_size, grid_size;
alignas(1024) thread_local char shared_memory[256 << 10];

namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr long most_rounds = 100'000'000;  // of a block in which nobody ends: a barrier that some never reach

[[noreturn]] void die(const char* why) {
  std::fprintf(stderr, "emulation: block (%u, %u, %u): %s\n", block_index.x, block_index.y, block_index.z, why);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  bool present;
};
struct Fiber {
  void* stack = nullptr;
  bool done = false;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};
// Barriers count generations: whoever waits goes on when the number has changed. What was exchanged in one generation
// stays while the next one fills.
struct Warp {
  int alive = 0, arrived = 0;
  uint64_t generation = 0;
  Row rows[2][32];
};
struct Block {
  int alive = 0, arrived = 0, all = 1;
  uint64_t generation = 0;
  int result[2];
};

thread_local std::vector<Fiber> fibers;
thread_local std::vector<char*> stacks;
thread_local std::vector<Warp> warps;
thread_local Block block;
thread_local int current;
thread_local void* scheduler;
thread_local const std::function<void()>* body;

Fiber& fiber() { return fibers[static_cast<size_t>(current)]; }
void yield() { emulation_switch(&fiber().stack, scheduler); }

void release(Warp& w) {
  if (w.alive > 0 && w.arrived == w.alive) w.arrived = 0, ++w.generation;
}
void release_block() {
  if (block.alive == 0 || block.arrived != block.alive) return;
  block.result[block.generation % 2] = block.all;
  block.all = 1, block.arrived = 0;
  ++block.generation;
}

void run_fiber() {
  (*body)();
  fiber().done = true;
  Warp& w = warps[static_cast<size_t>(current / 32)];
  --w.alive, --block.alive;
  release(w);
  release_block();
  yield();
  die("a fiber ran on behind its end");
}

void start_fibers(int n) {
  while (static_cast<int>(stacks.size()) < n) {
    void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) die("no memory for a stack");
    stacks.push_back(static_cast<char*>(stack));
  }
  fibers.assign(static_cast<size_t>(n), Fiber{});
  warps.assign(static_cast<size_t>((n + 31) / 32), Warp{});
  block = Block{};
  block.alive = n;
  for (int i = 0; i < n; ++i) {
    ++warps[static_cast<size_t>(i / 32)].alive;
    void** top = reinterpret_cast<void**>(stacks[static_cast<size_t>(i)] + stack_bytes - 64);
    *--top = nullptr;  // the stack is aligned as behind a call
    *--top = reinterpret_cast<void*>(&run_fiber);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fibers[static_cast<size_t>(i)].stack = top;
  }
}

// Threads take turns at barriers and exchanges, every other block from the last one down: what lacks a barrier shows.
void run_block(int n, bool downwards) {
  start_fibers(n);
  long rounds = 0;
  for (int left = n; left > 0;) {
    for (int i = 0; i < n; ++i) {
      current = downwards ? n - 1 - i : i;
      if (fiber().done) continue;
      thread_index = {static_cast<unsigned>(current), 0, 0};
      emulation_switch(&scheduler, fiber().stack);
      if (fiber().done) --left, rounds = 0;
    }
    if (++rounds > most_rounds) die("its threads wait for each other");
  }
}

void apply(const std::vector<Copy>& copies) {
  for (const Copy& c : copies) {
    if (c.present)
      std::memcpy(c.to, c.from, 16);
    else
      std::memset(c.to, 0, 16);
  }
}

}  // namespace

int lane() { return current % 32; }

const Row* exchange(const uint64_t* words, int n) {
  Warp& w = warps[static_cast<size_t>(current / 32)];
  const uint64_t now = w.generation;
  std::memcpy(w.rows[now % 2][lane()], words, static_cast<size_t>(n) * 8);
  ++w.arrived;
  release(w);
  while (w.generation == now) yield();
  return w.rows[now % 2];
}

int barrier(int predicate) {
  const uint64_t now = block.generation;
  block.all = block.all && predicate;
  ++block.arrived;
  release_block();
  while (block.generation == now) yield();
  return block.result[now % 2];
}

void launch(dim3 grid, dim3 threads, size_t shared, cudaStream_t, const std::function<void()>& kernel) {
  const unsigned n = threads.x;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) die("the grid is none");
  if (n == 0 || n > 1024 || threads.y != 1 || threads.z != 1) die("blocks are of 1 to 1024 threads in one dimension");
  if (shared > sizeof shared_memory) die("too much shared memory");
  body = &kernel;
  block_size = threads, grid_size = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        std::memset(shared_memory, 0xa5, shared);
        run_block(static_cast<int>(n), (x + y + z) % 2 == 1);
      }
}

void copy(void* to, const void* from, bool present) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    die("a copy of 16 bytes is not aligned");
  fiber().open.push_back({to, from, present});
}
void copies_commit() {
  fiber().groups.push_back(std::move(fiber().open));
  fiber().open.clear();
}
void copies_wait(size_t left) {
  auto& groups = fiber().groups;
  while (groups.size() > left) {
    apply(groups.front());
    groups.erase(groups.begin());
  }
}

}  // namespace emulation

// ---- the runtime ---------------------------------------------------------------------------------------------------

namespace {

struct Allocation {
  char* map;
  size_t map_bytes, bytes;
};
std::mutex mutex;
std::map<uintptr_t, Allocation> allocations;  // by their first byte
constexpr size_t page = 4096, alignment = 256;

}  // namespace

extern "C" {

// A page that may not be touched before and behind; the last bytes are as near to it as the alignment allows.
cudaError_t cudaMalloc(void** p, size_t bytes) {
  const size_t size = std::max<size_t>(alignment, (bytes + alignment - 1) / alignment * alignment);
  const size_t pages = (size + page - 1) / page * page;
  void* map = mmap(nullptr, pages + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return cudaErrorMemoryAllocation;
  char* first = static_cast<char*>(map) + page;
  mprotect(first, pages, PROT_READ | PROT_WRITE);
  std::memset(first, 0x5a, pages);
  *p = first + pages - size;
  const std::lock_guard lock(mutex);
  allocations[reinterpret_cast<uintptr_t>(*p)] = {static_cast<char*>(map), pages + 2 * page, bytes};
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  const std::lock_guard lock(mutex);
  const auto at = allocations.find(reinterpret_cast<uintptr_t>(p));
  if (at == allocations.end()) return cudaErrorInvalidValue;
  munmap(at->second.map, at->second.map_bytes);
  allocations.erase(at);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, const void* p) {
  const std::lock_guard lock(mutex);
  const auto at = reinterpret_cast<uintptr_t>(p);
  auto found = allocations.upper_bound(at);
  const bool ours = found != allocations.begin() && at < (--found)->first + std::max<size_t>(found->second.bytes, 1);
  *to = {};
  to->type = ours ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t rows,
                         cudaMemcpyKind) {
  for (size_t i = 0; i < rows; ++i)
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { return cudaMemset(to, value, bytes); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 30;
  return cudaSuccess;
}

// One device, as if it were of compute capability 8.9 with four multiprocessors.
cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr of, int) {
  // Another compute capability for what is chosen by it; the kernels stay what they are.
  const char* capability = std::getenv("SALE_EMULATED_CAPABILITY");
  const int version = capability == nullptr ? 89 : std::atoi(capability);
  *value = of == cudaDevAttrComputeCapabilityMajor   ? version / 10
           : of == cudaDevAttrComputeCapabilityMinor ? version % 10
                                                     : 4;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t e) { return e == cudaErrorNotSupported ? "not emulated" : "emulated"; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// Everything has been done when a call returns; graphs are not emulated.
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static char some;
  *stream = reinterpret_cast<cudaStream_t>(&some);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaErrorNotSupported; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) { return cudaErrorNotSupported; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
}
