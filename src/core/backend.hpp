// A backend is a value: a name, reasons, and the stages. One ordered list, fastest first.
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
struct Estimator;
struct IndexMap;
struct IndexUpdate;
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

// What a backend does. One table serves those whose stages are items on a thread pool and those that launch kernels.
struct Stages {
  int64_t q_block;  // rows of a query tile
  const Space& space;

  // Key index: where its parts are, what an index needs besides its memory (state, bytes), keys added, codes read.
  IndexMap (*index_map)(int32_t kv_heads, int32_t head_dim, const Estimator&, int64_t keys);
  void (*open_index)(sale_index&, const sale_options&);
  void (*update)(sale_index&, const IndexUpdate&);
  void (*codes)(const sale_index&, int32_t head, const int8_t** codes, const float** scales, const float** smoothing);

  // The backend's part of a plan: its state, and its scratch in the workspace. Then its lines of sale_plan_explain.
  void (*plan)(Plan&, const sale_options&, Areas&);
  std::string (*explain)(const Plan&);

  // What a call's pointers must be beyond what api.cpp checks; before anything is written.
  void (*check)(const Call&);
  void (*index)(const Call&);  // the workspace's own indexes
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
  std::string (*why_not_machine)(const Machine&);
  // Beyond the machine: shapes and types. Called with a problem that core has already checked.
  std::string (*why_not)(const sale_problem&, const sale_options&);
  // Used only when why_not_machine is empty; null in builds that leave the backend out.
  const Stages* stages;
  // What the items of a CPU's stages run on this machine; null for others.
  const Kernels& (*kernels)(const Machine&);
  // Why a problem that it can run is not for it unless asked for by name; null: it never is.
  std::string (*why_not_unasked)(const sale_problem&) = nullptr;
};

extern const Backend portable_backend, avx2_backend, avx512_backend, amx_backend, sm80_backend, sm90_backend;

int backend_count();
const Backend& backend(int i);

// The backend for this problem: the one asked for by option or SALE_BACKEND, else the first of the list that can.
// Appends to `notes` why those before it could not. Throws Failure with all names and reasons.
const Backend& choose_backend(const sale_problem& p, const sale_options& o, std::string& notes);

}  // namespace sale
