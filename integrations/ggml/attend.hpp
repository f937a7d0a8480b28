// One flash attention operation of the host: its mask read, its rows computed by the library where they are a causal
// problem, by ggml's own kernel where they are not.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <vector>

#include "calibrate.hpp"
#include "fallback.hpp"
#include "index_store.hpp"
#include "keys.hpp"
#include "layers.hpp"
#include "mask.hpp"
#include "report.hpp"
#include "settings.hpp"

namespace sale::ggml {

// What all contexts of the process share.
struct Common {
  Host host;
  Settings settings;
  Models models;
  Report report;
  Calibrating calibrating;
};

// One per context of the host, which calls it from one thread at a time.
class Attention {
public:
  explicit Attention(Common& common) : common_(common), fallback_(common.host) {}
  ~Attention();
  void set_threads(int n) { threads_ = n; }
  // Throws when not even ggml's kernel could run.
  void run(const Tensor& op);

private:
  // How a layer is to be computed, found out once per cache tensor.
  struct Layer {
    int32_t number = -1, q_heads = 0, kv_heads = 0;
    int64_t dim = 0;
    Type type = Type::other;
    std::optional<uint64_t> fingerprint;
    std::shared_ptr<const Options> options;
    int64_t dense_below = 0;
    bool sparse = false;
  };
  // One stream of the operation.
  struct Stream {
    const Tensor& op;
    int64_t number;
    Layer& layer;
    Stored k, v;
    int64_t most_keys;
  };
  struct MaskOf {
    const void* tensor = nullptr;
    const void* data = nullptr;
    int64_t rows = 0, keys = 0, streams = 0;
    int32_t last_layer = -1;
    uint64_t sample = 0;                 // digest of some of its rows
    std::vector<std::vector<Run>> runs;  // by stream
  };

  Layer& layer_of(const Tensor& op);
  void choose_options(Layer& layer);
  const std::vector<std::vector<Run>>& runs_of(const Tensor& op, int32_t layer);
  void run_stream(const Stream& s, const std::vector<Run>& runs);
  void run_library(const Stream& s, const Run& run);
  void run_ggml(const Stream& s, int64_t begin, int64_t end);
  const sale_index* index_for(const Stream& s, const Run& run, const Problem& problem, const Readable& k);
  Readable queries(const Stream& s, const Run& run, sale_dtype type);
  // Whether this run is shown to the calibrator, and so runs dense.
  bool shown(const Stream& s, const Run& run);
  void audit(const Stream& s, const Run& run, const std::vector<float>& lse);
  Options dense_options() const;

  Common& common_;
  Fallback fallback_;
  int threads_ = 1;
  std::map<const void*, Layer> layers_;
  std::map<const void*, MaskOf> masks_;
  IndexStore indexes_;
  Workspace workspace_;
  std::vector<char> q_room_, k_room_, v_room_, out_room_;
  std::unique_ptr<Plan> last_plan_;  // keeps the library's thread pool alive between calls
  Totals totals_;
};

}  // namespace sale::ggml
