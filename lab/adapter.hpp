// The model's attention computed by SALE: a key index per layer that grows with the KV cache, plans made once per
// shape, one workspace. Prefill (questions included) is sparse, decode is dense unless asked otherwise, and "dense" is
// the same path with every block kept.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "lab/device.hpp"
#include "lab/guard.hpp"
#include "lm/attention.hpp"
#include "lm/config.hpp"
#include "sale/calibration.hpp"
#include "sale/sale.hpp"

namespace sale::lab {

struct AttentionSettings {
  bool dense = false;
  float tau = 0.004f;  // when there is no calibration
  sale_format format = SALE_INT8;
  sale_compute compute = SALE_COMPUTE_EXACT;
  bool compensate = false;
  const Calibration* calibration = nullptr;  // outlives the attention
  // Ignore the calibration's thresholds and use tau; its projections stay.
  bool tau_over_calibration = false;
  bool sparse_decode = false;  // tokens generated one by one select blocks too
  int32_t audit = 0;           // rows per head and prefill call, audited; 0 = none
  uint64_t audit_seed = 0;
  double guard = 0;  // audited error that makes a head run again, denser; 0 = none
  std::string backend;
  int32_t threads = 0;

  Options options(int layer) const;
  std::vector<float> thresholds(int layer, int q_heads) const;
};

struct AttentionTotals {
  double index_s = 0, select_s = 0, attend_s = 0;
  double watch_s = 0;  // spent in the watcher, not in attention
  double audit_s = 0;
  std::vector<sale_head_stats> heads;   // [layers * q_heads], prefill only
  std::vector<sale_head_audit> audits;  // the same, of every call; without rows when nothing is audited
  double density() const;
  double density(size_t head) const;
};

// Sees every prefill call after it was computed, with the blocks it kept.
class Watcher {
public:
  virtual ~Watcher() = default;
  virtual void saw(const lm::AttentionCall& call, const BlockList& blocks) = 0;
};

// Where a backend reads a layer's tensors: in the model's own memory, or on a device, to which keys and values are
// copied once and stay, queries call by call.
class Placement {
public:
  // capacity: of the KV cache.
  Placement(const lm::Config& config, bool device, int64_t capacity);
  struct Call {
    Problem problem;
    Tensors tensors;
    sale_strides keys;
  };
  Call place(const lm::AttentionCall& call);
  void fetch(const lm::AttentionCall& call) const;  // the output, when it was made elsewhere
  void truncate(int64_t tokens);
  bool device() const { return device_; }

private:
  struct Layer {
    DeviceMemory k, v;  // [kv_heads, capacity, head_dim]
    int64_t length = 0;
  };
  void append(Layer& layer, const lm::AttentionCall& call) const;
  bool device_;
  int64_t capacity_;
  std::vector<Layer> layers_;
  DeviceMemory q_, out_;
};

class SaleAttention : public lm::Attention {
public:
  // capacity: of the KV cache.
  SaleAttention(const lm::Config& config, AttentionSettings settings, int64_t capacity);
  void run(const lm::AttentionCall& call) override;
  void truncate(int64_t tokens) override;

  void watch(Watcher* watcher) { watcher_ = watcher; }
  const AttentionTotals& totals() const { return totals_; }
  void reset_totals();
  const std::string& backend() const { return backend_; }
  const Guard& guard() const { return guard_; }

private:
  using Key = std::tuple<int, bool, int64_t, int64_t>;  // layer, dense, q_len, k_len
  const Plan& plan_for(const lm::AttentionCall& call, const Problem& problem, bool dense);
  KeyIndex& index_for(const lm::AttentionCall& call, const Placement::Call& placed, Stats& stats);
  void run_sparse(const lm::AttentionCall& call, const Placement::Call& placed);
  void attend(const lm::AttentionCall& call, const Placement::Call& placed, Stats& stats);
  void run_again(const lm::AttentionCall& call, const Placement::Call& placed, Stats& stats);
  Stats run_head(const lm::AttentionCall& call, const Placement::Call& placed, int head, float tau);
  Options options_now(int layer) const;  // as the guard has left them

  int q_heads_;
  AttentionSettings settings_;
  int64_t capacity_;
  std::map<Key, Plan> plans_;
  std::vector<std::unique_ptr<KeyIndex>> indexes_;  // by layer
  Placement placement_;
  Scratch workspace_;
  AttentionTotals totals_;
  Guard guard_;
  Watcher* watcher_ = nullptr;
  std::string backend_;
};

}  // namespace sale::lab
