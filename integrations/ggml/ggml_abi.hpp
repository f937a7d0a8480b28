// The part of ggml's binary interface that a backend touches, written down here because ggml does not install the
// header that has it. Only the layouts matter: names of members are ours where ggml's say no more. Every number of an
// enumeration that ggml might renumber is looked up by name when the host is known (host.cpp), and the tensor's layout
// is proved there on a tensor that the host made.
//
// Interface versions 2 and 3 have these tables in common as far as they are given: version 3 changed the buffer type's
// table, which we never fill, and what follows graph_compute, which stays null.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sale::ggml {

constexpr int max_dims = 4, max_sources = 10;

struct Buffer;
struct BufferType;
struct Graph;
struct Context;

struct Tensor {
  int32_t type;
  Buffer* buffer;
  int64_t ne[max_dims];
  size_t nb[max_dims];  // strides in bytes
  int32_t op;
  int32_t op_params[16];
  int32_t flags;
  Tensor* src[max_sources];
  Tensor* view_src;
  size_t view_offs;
  void* data;
  char name[64];
  void* extra;
  char padding[8];
};
static_assert(sizeof(Tensor) == 336);

// The host wants a node computed; hosts that never set it on a node they build want all of them.
constexpr int32_t flag_compute = 16;

// Operation parameters of flash attention.
enum FlashParam { flash_scale = 0, flash_max_bias = 1, flash_softcap = 2, flash_precision = 3, flash_most_keys = 4 };

enum DeviceType : int32_t { device_cpu = 0, device_accelerator = 3 };

enum Status : int32_t { status_failed = -1, status_success = 0 };

struct Registry;
struct Device;
struct Backend;

// The members that every version has; the host clears the rest before it asks.
struct DeviceProperties {
  const char* name;
  const char* description;
  size_t memory_free, memory_total;
  int32_t type;
};

struct BackendTable {
  const char* (*get_name)(Backend*);
  void (*free)(Backend*);
  void* asynchronous_copies[5];  // optional; we have none
  void* synchronize;             // optional
  void* graph_plans[4];          // optional
  Status (*graph_compute)(Backend*, Graph*);
  void* events_and_optimize[3];  // optional
};

struct Backend {
  const uint8_t* guid;  // 16 bytes
  BackendTable table;
  Device* device;
  void* context;
};

struct DeviceTable {
  const char* (*get_name)(Device*);
  const char* (*get_description)(Device*);
  void (*get_memory)(Device*, size_t* free, size_t* total);
  int32_t (*get_type)(Device*);
  void (*get_properties)(Device*, DeviceProperties*);
  Backend* (*init_backend)(Device*, const char* parameters);
  BufferType* (*get_buffer_type)(Device*);
  void* get_host_buffer_type;  // optional
  void* buffer_from_host_ptr;  // optional
  bool (*supports_op)(Device*, const Tensor*);
  bool (*supports_buffer_type)(Device*, BufferType*);
  void* offload_op;  // optional
  void* events[3];   // optional
};

struct Device {
  DeviceTable table;
  Registry* registry;
  void* context;
};

struct RegistryTable {
  const char* (*get_name)(Registry*);
  size_t (*get_device_count)(Registry*);
  Device* (*get_device)(Registry*, size_t index);
  void* (*get_function)(Registry*, const char* name);
};

struct Registry {
  int32_t api_version;
  RegistryTable table;
  void* context;
};

// Arguments of the function that makes a context.
struct ContextParameters {
  size_t bytes;
  void* memory;
  bool no_tensor_data;
};

}  // namespace sale::ggml
