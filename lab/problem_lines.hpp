// What the subcommands that take problem lines share.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "case/instance.hpp"
#include "lab/answers.hpp"
#include "lab/device.hpp"
#include "lab/refuse.hpp"

namespace sale::lab {

// A line's tensors where a backend reads them: the instance's own, or a device's copies of them.
class PlacedCase {
public:
  PlacedCase(sale_case::Instance& in, const std::string& backend);
  const sale_problem& problem() const { return problem_; }
  const void* q() const { return at(q_, in_.q); }
  const void* k() const { return at(fused_ ? q_ : k_, in_.k); }
  const void* v() const { return at(fused_ ? q_ : v_, in_.v); }
  void* out() const { return at(out_, in_.out); }
  float* lse() const { return reinterpret_cast<float*>(device_ ? lse_.data() : in_.lse->begin()); }
  sale_call call() const;  // of all of them
  void clear_outputs();
  void fetch();  // outputs, into the instance
  bool device() const { return device_; }

private:
  std::byte* at(const DeviceMemory& m, const sale_case::Tensor& t) const {
    return device_ ? m.data() + t.first : t.data();
  }
  sale_case::Instance& in_;
  bool device_, fused_;
  sale_problem problem_;
  DeviceMemory q_, k_, v_, out_, lse_;
};

// A layer of its own and a plan without key indexes for it, and their workspace once there is something to run.
class CasePlan {
public:
  // Where the problem's tensors are; backend "": what the layer says.
  CasePlan(const sale_problem& problem, sale_layer layer, sale_options options, const std::string& backend,
           bool dense = false);
  const sale_plan* get() const { return handle_.get(); }
  sale_workspace needs() const;
  void run(sale_call call);
  void select(sale_call call, sale_blocks* to);
  void attend(sale_call call, sale_blocks* from);

private:
  void with_workspace(sale_call& call);
  struct Free {
    void operator()(sale_plan* p) const { sale_plan_destroy(p); }
    void operator()(sale_estimator* e) const { sale_estimator_destroy(e); }
  };
  std::unique_ptr<sale_estimator, Free> estimator_;
  std::unique_ptr<sale_plan, Free> handle_;
  Scratch workspace_;
};

struct FreeBlocks {
  void operator()(sale_blocks* b) const { sale_blocks_destroy(b); }
};
using Blocks = std::unique_ptr<sale_blocks, FreeBlocks>;
Blocks blocks_for(const CasePlan& plan);
BlockList::Row row_of(const sale_blocks* blocks, sale_tile at);

std::string joined(const std::vector<std::string>& words);
// The problem line on the command line, or those of --file.
std::vector<std::string> lines_of(const std::vector<std::string>& words, const std::string& file);

// Backends to go through for a line: --backend, else the line's own, else every usable one. Those that refuse the
// problem are named with their reason in `refused`.
struct BackendChoice {
  std::vector<std::string> usable;
  std::vector<std::pair<std::string, std::string>> refused;  // name, why not
};
BackendChoice backends_for(const sale_case::Instance& in, const std::string& forced);
// The same for what takes one backend only: the first of them.
std::string backend_for(const sale_case::Instance& in, const std::string& forced);

}  // namespace sale::lab
