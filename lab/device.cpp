#include "lab/device.hpp"

#include <chrono>

#if defined(SALE_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace sale::lab {

namespace {

// Of a name of the list; null for other names.
const BackendInfo* info_of(const std::string& backend) {
  static const std::vector<BackendInfo> all = backends();
  for (const BackendInfo& b : all)
    if (b.name == backend) return &b;
  return nullptr;
}

}  // namespace

bool on_device(const std::string& backend) {
  const BackendInfo* const b = info_of(backend);
  return b != nullptr && b->facts.on_device != 0;
}
sale_format format_of(const std::string& backend) {
  const BackendInfo* const b = info_of(backend);
  return b != nullptr ? b->facts.format : SALE_INT8;
}

bool uses_device(const std::string& backend) {
  if (!on_device(backend)) return false;
  if (const std::string& why = info_of(backend)->why_not; !why.empty())
    throw Error(SALE_UNSUPPORTED, backend + ": " + why);
  return true;
}

#if defined(SALE_WITH_CUDA)
namespace {

void must(cudaError_t e, const char* doing) {
  if (e == cudaSuccess) return;
  throw Error(e == cudaErrorMemoryAllocation ? SALE_OUT_OF_MEMORY : SALE_INTERNAL,
              std::string("device: ") + doing + ": " + cudaGetErrorString(e));
}

double between_events(const std::function<void()>& f) {
  cudaEvent_t begin{}, end{};
  must(cudaEventCreate(&begin), "making an event");
  must(cudaEventCreate(&end), "making an event");
  must(cudaEventRecord(begin, nullptr), "recording an event");
  f();
  must(cudaEventRecord(end, nullptr), "recording an event");
  must(cudaEventSynchronize(end), "running");
  float ms = 0;
  must(cudaEventElapsedTime(&ms, begin, end), "reading an event");
  cudaEventDestroy(begin), cudaEventDestroy(end);
  return static_cast<double>(ms) * 1e-3;
}

}  // namespace

void DeviceMemory::need(size_t bytes) {
  if (bytes <= size_) return;
  memory_.reset(), size_ = 0;
  void* p = nullptr;
  must(cudaMalloc(&p, bytes), "allocating memory");
  memory_ = std::shared_ptr<void>(p, [](void* q) { cudaFree(q); });
  size_ = bytes;
}
void DeviceMemory::put(size_t at, const void* from_host, size_t bytes) const {
  must(cudaMemcpy(data() + at, from_host, bytes, cudaMemcpyHostToDevice), "copying there");
}
void DeviceMemory::get(size_t at, void* to_host, size_t bytes) const {
  must(cudaMemcpy(to_host, data() + at, bytes, cudaMemcpyDeviceToHost), "copying back");
}
void DeviceMemory::put_rows(size_t at, size_t stride, const void* from_host, size_t host_stride, size_t bytes,
                            size_t rows) const {
  must(cudaMemcpy2D(data() + at, stride, from_host, host_stride, bytes, rows, cudaMemcpyHostToDevice), "copying there");
}

std::string device_name() {
  cudaDeviceProp properties{};
  return cudaGetDeviceProperties(&properties, device_ordinal) == cudaSuccess ? properties.name : "";
}

#else
namespace {

[[noreturn]] void refuse_device() { throw Error(SALE_UNSUPPORTED, "device: this build was made without CUDA"); }
double between_events(const std::function<void()>&) { refuse_device(); }

}  // namespace

void DeviceMemory::need(size_t) { refuse_device(); }
void DeviceMemory::put(size_t, const void*, size_t) const { refuse_device(); }
void DeviceMemory::get(size_t, void*, size_t) const { refuse_device(); }
void DeviceMemory::put_rows(size_t, size_t, const void*, size_t, size_t, size_t) const { refuse_device(); }
std::string device_name() { return {}; }
#endif

double seconds_of(bool device, const std::function<void()>& f) {
  if (device) return between_events(f);
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace sale::lab
