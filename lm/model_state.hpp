// What a Model holds and the steps of its forward pass (internal to lm/).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "lm/model.hpp"
#include "lm/rope.hpp"

namespace sale::lm {

struct Layer {
  std::vector<float> attention_norm, mlp_norm;
  std::vector<float> q_norm, k_norm;  // of a head; empty: none
  Linear qkv, out, gate, up, down;
};

// What one thread works in: a tile's normed rows, QKV or gate, and the activated rows.
struct Workspace {
  Buffer<std::byte> normed, gate, inner;
  Buffer<float> wide;
};

struct Model::State {
  Config config;
  Compute compute = Compute::f32;
  int threads = 1;
  Rope rope;
  std::vector<float> embedding_f32, final_norm;
  std::vector<uint16_t> embedding_bf16;  // one of the two embeddings is filled
  std::vector<Layer> layers;
  std::unique_ptr<Linear> head;
  std::vector<Workspace> workspaces;

  // One chunk on its way through the layers.
  struct Pass {
    std::span<const int32_t> tokens;
    KVCache& cache;
    int64_t first_position;
    RopeTable table;
    Buffer<float> x;        // [tokens][hidden]
    Buffer<uint16_t> q, a;  // [tokens][heads * head_dim]
    int64_t rows() const { return ssize_of(tokens); }
  };

  int64_t activation_size() const { return compute == Compute::bf16 ? 2 : 4; }
  int64_t q_width() const { return int64_t{config.q_heads} * config.head_dim; }
  int64_t kv_width() const { return int64_t{config.kv_heads} * config.head_dim; }

  void check(std::span<const int32_t> tokens, const KVCache& cache, const ForwardOptions& options) const;
  void chunk(std::span<const int32_t> tokens, int64_t done, KVCache& cache, Attention& attention,
             const ForwardOptions& options, ForwardResult& result);
  void embed(Pass& pass);
  void norm_row(const float* x, const std::vector<float>& weight, std::byte* out) const;
  const std::byte* norm_tile(const Pass& pass, int64_t begin, int64_t rows, const std::vector<float>& weight,
                             Workspace& space) const;
  void before_attention(Pass& pass, int64_t layer);
  void scatter_row(Pass& pass, int64_t layer, int64_t row, float* qkv);
  void norm_heads(float* x, int64_t heads, const std::vector<float>& weight) const;
  double attend(Pass& pass, int64_t layer, Attention& attention, bool decode) const;
  void after_attention(Pass& pass, int64_t layer, int64_t from);
  void logits(const Pass& pass, int64_t done, const ForwardOptions& options, ForwardResult& result);
  void tiles(int64_t from, int64_t to, int64_t tile,
             const std::function<void(int64_t begin, int64_t rows, Workspace&, int threads)>& work);
};

}  // namespace sale::lm
