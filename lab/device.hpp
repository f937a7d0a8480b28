// Tensors on a GPU, for the parts of the program that run there. In builds without CUDA every use refuses; no backend
// that needs it is usable then.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "sale/sale.hpp"

namespace sale::lab {

// Whether this backend's tensors live on a device ("" is the library's choice for host memory).
bool on_device(const std::string& backend);
// What its calibrations are made for ("": a CPU's).
sale_format format_of(const std::string& backend);
// The same as on_device, and refuses when that backend cannot run here.
bool uses_device(const std::string& backend);
constexpr int32_t device_ordinal = 0;  // the one the program uses

// Uninitialised device memory. Copies wait for what the device was given before.
class DeviceMemory {
public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) { need(bytes); }
  // At least `bytes`; the contents are lost when it grows.
  void need(size_t bytes);
  std::byte* data() const { return static_cast<std::byte*>(memory_.get()); }
  size_t size() const { return size_; }
  void put(size_t at, const void* from_host, size_t bytes) const;
  void get(size_t at, void* to_host, size_t bytes) const;
  // `rows` pieces of `bytes`, `stride` bytes apart on the device, `host_stride` on the host.
  void put_rows(size_t at, size_t stride, const void* from_host, size_t host_stride, size_t bytes, size_t rows) const;

private:
  std::shared_ptr<void> memory_;
  size_t size_ = 0;
};

// A workspace where the backend wants it.
class Scratch {
public:
  explicit Scratch(bool device) : device_(device) {}
  void need(size_t bytes) { device_ ? there_.need(bytes) : here_.need(bytes); }
  Bytes bytes() const { return device_ ? Bytes(there_.data(), there_.size()) : Bytes(here_); }

private:
  bool device_;
  Workspace here_;
  DeviceMemory there_;
};

// Seconds that f's work takes: on a device between two events of the default stream, else by the clock.
double seconds_of(bool device, const std::function<void()>& f);
// "NVIDIA H100 80GB HBM3"; "" without one.
std::string device_name();

}  // namespace sale::lab
