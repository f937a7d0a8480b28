#include "cuda/sm90/device.hpp"

#include <map>
#include <mutex>

#include "cuda/sm90/host.hpp"

namespace sale::sm90 {
namespace {

std::string version(int v) { return text(v / 1000, ".", v % 1000 / 10); }

// "" for a Hopper.
std::string why_not_device(int device, int& multiprocessors) {
  const auto attribute = [&](cudaDeviceAttr a) {
    int value = 0;
    must(cudaDeviceGetAttribute(&value, a, device), "reading a device's attributes");
    return value;
  };
  const int major = attribute(cudaDevAttrComputeCapabilityMajor), minor = attribute(cudaDevAttrComputeCapabilityMinor);
  multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  if (major == 9 && minor == 0) return {};
  return text("device ", device, " has compute capability ", major, ".", minor, ", not 9.0");
}

std::string look_for_device() {
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
    int multiprocessors = 0;
    const std::string why = why_not_device(device, multiprocessors);
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

Device open_device(int32_t ordinal) {
  static std::mutex mutex;
  static std::map<int32_t, Device> opened;
  const std::lock_guard lock(mutex);
  if (const auto found = opened.find(ordinal); found != opened.end()) return found->second;
  int count = 0;
  must(cudaGetDeviceCount(&count), "counting devices");
  require(ordinal < count, "device: ", ordinal, " is not in 0 .. ", count - 1);
  Device d{ordinal, 0};
  if (const std::string why = why_not_device(ordinal, d.multiprocessors); !why.empty())
    fail(SALE_UNSUPPORTED, "device: ", why);
  const Current current(ordinal);
  must(prepare_device(), "raising shared-memory limits");
  return opened.emplace(ordinal, d).first->second;
}

EncodeTiled tensor_map_encoder() {
  static const EncodeTiled encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    must(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found),
         "looking for cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) fail(SALE_UNSUPPORTED, "cuda: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<EncodeTiled>(f);
  }();
  return encode;
}

const Space device_space{allocate, read, write, check_address};

std::string why_no_device() {
  static const std::string why = [] {
    try {
      return look_for_device();
    } catch (const Failure& f) {
      return std::string(f.what());
    }
  }();
  return why;
}

}  // namespace sale::sm90
