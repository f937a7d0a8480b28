// A backend is a value: a name, reasons, facts, and the stages. One ordered list, fastest first.
#pragma once

#include <memory>
#include <string>

#include "core/kernel.hpp"
#include "core/machine.hpp"
#include "sale/sale.h"

struct sale_index;

namespace sale {

class Areas;
struct Call;
struct Form;
struct IndexMap;
struct IndexUpdate;
struct Layer;
struct Plan;

// The memory a backend works in. device: as in sale_problem.
struct Space {
  std::shared_ptr<void> (*allocate)(size_t bytes, int32_t device);
  // Copies; they wait until a device has done what it was given.
  void (*read)(void* to_host, const void* from, size_t bytes, int32_t device);
  void (*write)(void* to, const void* from_host, size_t bytes, int32_t device);
  // Refuses an address that is not in this memory.
  void (*check)(const char* name, const void* at, int32_t device);
};

// What a backend does. One table serves those whose stages are items on threads and those that launch kernels.
struct Stages {
  int64_t q_block;  // rows of a query tile
  const Space& space;

  // A layer: its state (threads, or tables on a device) is made once. workers: how many threads it has, 0 on a device.
  void (*open_layer)(Layer&, const sale_layer&);
  int32_t (*workers)(const Layer&);

  // Key index: where its parts are, bytes it needs after them, keys added, codes read.
  IndexMap (*index_map)(int32_t kv_heads, int32_t head_dim, const Form&, int64_t keys);
  size_t (*index_scratch)(int32_t kv_heads, int32_t head_dim);
  void (*open_index)(sale_index&);
  void (*update)(sale_index&, const IndexUpdate&);
  void (*codes)(const sale_index&, int32_t head, const int8_t** codes, const float** scales, const float** smoothing);
  void (*forget)(const Layer&, const sale_index_slots&);

  // The backend's parts of a workspace: tables that `prepare` fills in, the same for every form of a step; then, its
  // state in the plan made, its scratch.
  void (*tables)(Plan&, Areas&);
  void (*plan)(Plan&, Areas&);
  std::string (*explain)(const Plan&, const Layer&);  // its lines of sale_plan_explain

  // What a call's pointers and strides must be beyond what api.cpp checks; before anything is written.
  void (*check)(const Call&);
  void (*prepare)(const Plan&, char* workspace, void* stream);  // puts the tables there
  void (*begin)(const Call&);                                   // whatever the stages need first
  void (*index)(const Call&);                                   // the workspace's own indexes
  void (*select)(const Call&);
  void (*attend)(const Call&);
  void (*wait)(const Call&);  // until everything before is done
  // What plan.audit asks for, after attend; [batch * q_heads], host memory.
  void (*audit)(const Call&, sale_head_audit*);
  // Kept blocks of heads [first, first + n), sequence-major, to host memory; `first` ascends from 0 in a series.
  void (*count)(const Call&, int64_t first, int64_t n, int64_t* kept);
};

struct Backend {
  const char* name;
  const char* summary;
  bool on_device;      // a CUDA device's memory, or the host's
  int32_t q_block;     // as in Stages, in builds without them too
  sale_format format;  // what it scans fastest, and its calibrations are made for
  uint32_t formats;    // 1 << format, of those it has
  uint32_t projected;  // of those, over a projection
  bool compensates;
  int64_t dense_below_projected, dense_below;  // as in sale_backend_facts
  std::string (*why_not_machine)(const Machine&);
  // Beyond the machine: what core has already checked of a layer; of a problem, its options and strides, for such a
  // layer.
  std::string (*why_not_layer)(const Layer&);
  std::string (*why_not)(const sale_problem&, const sale_options&);
  // Used only when why_not_machine is empty; null in builds that leave the backend out.
  const Stages* stages;
  // What the items of a CPU's stages run on this machine; null for others, and in builds that leave the backend out.
  const Kernels& (*kernels)(const Machine&);
  // Why a device that it can run on is not for it unless asked for by name; null: it always is.
  std::string (*why_not_unasked)(int32_t device) = nullptr;
};

extern const Backend portable_backend, neon_backend, avx2_backend, avx512_backend, amx_backend, sm80_backend,
    sm90_backend, sm100_backend;

int backend_count();
const Backend& backend(int i);

// The backend for this layer: the one asked for by name or SALE_BACKEND, else the first of the list that can. Appends
// to `notes` why those before it could not. Throws Failure with all names and reasons.
const Backend& choose_backend(const Layer& layer, const char* asked, std::string& notes);

}  // namespace sale
