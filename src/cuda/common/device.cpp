#include "cuda/common/device.hpp"

#include <map>
#include <mutex>

namespace sale::cuda {
namespace {

std::string version(int v) { return text(v / 1000, ".", v % 1000 / 10); }

int32_t attribute(int32_t device, cudaDeviceAttr a) {
  int value = 0;
  must(cudaDeviceGetAttribute(&value, a, device), "reading a device's attributes");
  return value;
}

// "" when the generation's kernels run on it.
std::string why_not_device(const Generation& generation, Device& d) {
  d.major = attribute(d.ordinal, cudaDevAttrComputeCapabilityMajor);
  d.minor = attribute(d.ordinal, cudaDevAttrComputeCapabilityMinor);
  d.multiprocessors = attribute(d.ordinal, cudaDevAttrMultiProcessorCount);
  if (generation.serves(d.major, d.minor)) return {};
  return text("device ", d.ordinal, " has compute capability ", d.major, ".", d.minor, ", not ", generation.wanted);
}

std::string look_for_device(const Generation& generation) {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t e = cudaGetDeviceCount(&count);
  cudaGetLastError();  // what is said here must not be found by a later call
  if (driver == 0) return "there is no NVIDIA driver";
  if (e == cudaErrorInsufficientDriver)
    return text("the NVIDIA driver serves CUDA ", version(driver), ", CUDA ", version(runtime), " is needed");
  if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0)) return "there is no CUDA device";
  if (e != cudaSuccess) return text("CUDA does not start: ", cudaGetErrorString(e));
  std::string reasons;
  for (int device = 0; device < count; ++device) {
    Device d{device, 0, 0, 0};
    const std::string why = why_not_device(generation, d);
    if (why.empty()) return {};
    reasons += (reasons.empty() ? "" : "; ") + why;
  }
  return reasons;
}

std::shared_ptr<void> allocate(size_t bytes, int32_t device) {
  const Current current(device);
  void* data = nullptr;
  must(cudaMalloc(&data, bytes == 0 ? 1 : bytes), "allocating device memory");
  return {data, [device](void* p) {
            const Current here(device);
            cudaFree(p);
          }};
}

void copy(void* to, const void* from, size_t bytes, int32_t device, cudaMemcpyKind kind) {
  const Current current(device);
  must(cudaDeviceSynchronize(), "waiting for the device");
  must(cudaMemcpy(to, from, bytes, kind), "copying");
}
void read(void* to, const void* from, size_t bytes, int32_t device) {
  copy(to, from, bytes, device, cudaMemcpyDeviceToHost);
}
void write(void* to, const void* from, size_t bytes, int32_t device) {
  copy(to, from, bytes, device, cudaMemcpyHostToDevice);
}

void check_address(const char* name, const void* at, int32_t device) {
  cudaPointerAttributes a{};
  must(cudaPointerGetAttributes(&a, at), "asking where an address is");
  if (a.type == cudaMemoryTypeManaged) return;
  require(a.type == cudaMemoryTypeDevice, name, ": in host memory; the problem's tensors are on device ", device);
  require(a.device == device, name, ": in the memory of device ", a.device, ", the problem's is ", device);
}

}  // namespace

void must(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  cudaGetLastError();  // reported here, not by the next call
  fail(e == cudaErrorMemoryAllocation ? SALE_OUT_OF_MEMORY : SALE_INTERNAL, "cuda: ", what, ": ",
       cudaGetErrorString(e));
}

Current::Current(int32_t device) {
  must(cudaGetDevice(&before_), "asking for the current device");
  if (before_ == device) return;
  must(cudaSetDevice(device), "making a device current");
  changed_ = true;
}
Current::~Current() {
  if (changed_) cudaSetDevice(before_);
}

Device open_device(const Generation& generation, int32_t ordinal) {
  static std::mutex mutex;
  static std::map<std::pair<const Generation*, int32_t>, Device> opened;
  const std::lock_guard lock(mutex);
  if (const auto found = opened.find({&generation, ordinal}); found != opened.end()) return found->second;
  int count = 0;
  must(cudaGetDeviceCount(&count), "counting devices");
  require(ordinal < count, "device: ", ordinal, " is not in 0 .. ", count - 1);
  Device d{ordinal, 0, 0, 0};
  if (const std::string why = why_not_device(generation, d); !why.empty()) fail(SALE_UNSUPPORTED, "device: ", why);
  const Current current(ordinal);
  must(generation.prepare(), "raising shared-memory limits");
  return opened.emplace(std::pair(&generation, ordinal), d).first->second;
}

std::string why_no_device(const Generation& generation) {
  try {
    return look_for_device(generation);
  } catch (const Failure& f) {
    return f.what();
  }
}

std::string why_not_unasked(const Generation& generation, int32_t ordinal) {
  int count = 0;
  must(cudaGetDeviceCount(&count), "counting devices");
  if (ordinal >= count) return {};
  const int32_t major = attribute(ordinal, cudaDevAttrComputeCapabilityMajor),
                minor = attribute(ordinal, cudaDevAttrComputeCapabilityMinor);
  if (generation.suits(major, minor)) return {};
  return text("device ", ordinal, " has compute capability ", major, ".", minor, ", and this is made for ",
              generation.made_for);
}

const Space device_space{allocate, read, write, check_address};

}  // namespace sale::cuda
