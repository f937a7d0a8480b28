// Whose keys these are. A backend sees tensors, not models: the layer comes from the name of the KV cache, and the
// model from the weights of its attention norms, which pass by while the host plans its graphs and are stored as F32 in
// every quantization of a model, so that one calibration serves all of them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "host.hpp"

namespace sale::ggml {

// The layer of a key tensor that is a view of a KV cache ("cache_k_l7"); -1 when it is none.
int32_t cache_layer(const Tensor& k);

// FNV-1a as in sale/calibration.hpp over the norms blk.N.attn_norm.weight in ascending order of N: type "F32", first 64
// bytes. `scripts/gguf.py fingerprint` computes the same.
class Models {
public:
  // Shown every operation the host plans.
  void saw(const Host& host, const Tensor& op);
  // Of the model that this cache belongs to, as far as its layers were seen; none without norms.
  std::optional<uint64_t> fingerprint(const void* cache) const;
  int32_t layers(const void* cache) const;  // of them; 0 without norms

private:
  using Norms = std::map<int32_t, std::vector<std::byte>>;  // by layer: name, type, shape and bytes as hashed
  mutable std::mutex mutex_;
  std::map<std::thread::id, std::shared_ptr<Norms>> planned_;  // the graph each thread is planning
  std::map<const void*, std::shared_ptr<Norms>> by_cache_;
};

}  // namespace sale::ggml
