// Index, selection and attention of one layer at a time, where they are to be computed.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "calibration/layer.hpp"
#include "calibration/memory.hpp"
#include "sale/sale.hpp"

namespace sale::calibration {

struct Setup {
  Shape shape;
  int32_t device = SALE_HOST;
  std::string backend;
  int32_t threads = 0;
  sale_format format = SALE_INT8;
  int32_t rank = 0;  // head_dim: all coordinates
  int32_t sink = 32, local = 128;
  int64_t dense_below = 1024;
  std::vector<float> q_projections, k_projections;  // [layers, kv_heads, head_dim, rank], or empty
  std::vector<float> smoothing, scales;  // [layers, kv_heads, head_dim], FP8: [layers, kv_heads]; or empty: of the keys
};

class Stage {
public:
  // Refuses what no backend can run. tokens: of some prompt.
  Stage(const Setup& setup, int64_t tokens);
  const Memory& memory() const { return memory_; }

  // A layer whose index is made at once. at: its tensors where they are computed on; null: layer's own are brought
  // there.
  void place(const Layer& layer, const Layer* at);
  struct Selected {
    Plan plan;
    BlockList blocks;
    Stats stats;
  };
  Selected select(std::span<const float> thresholds);
  // What was kept, read at once: a device answers a question for each row slowly.
  struct Kept {
    std::vector<uint64_t> words;
    std::vector<int64_t> starts;  // of each row of blocks in the words, by head and tile
    int64_t tiles = 0;
    std::span<const uint64_t> row(int64_t head, int64_t tile) const {
      const auto at = static_cast<size_t>(head * tiles + tile);
      return std::span(words).subspan(static_cast<size_t>(starts[at]),
                                      static_cast<size_t>(starts[at + 1] - starts[at]));
    }
  };
  Kept kept(const Selected& selected) const;
  Stats attend(const Selected& selected);
  // The whole of it; thresholds empty: dense. The output is fetched: [tokens, q_heads, head_dim] of the shape's type.
  Stats run(std::span<const float> thresholds, std::vector<std::byte>& out);

private:
  Options options(int32_t layer) const;
  Tensor bring(const Tensor& from, int32_t heads, int64_t tokens, Memory::Block& to);
  Bytes workspace(const Plan& plan);

  const Setup& setup_;
  Memory memory_;
  Memory::Block q_, k_, v_, out_, workspace_;
  std::vector<std::byte> packed_;
  std::unique_ptr<Problem> problem_;
  Tensors tensors_;
  std::unique_ptr<KeyIndex> index_;
  int32_t layer_ = 0;
};

}  // namespace sale::calibration
