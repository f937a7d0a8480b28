// A KV cache and the operations of a prompt that comes in pieces, as llama.cpp builds them.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "fake_host.hpp"

namespace fake {

struct Shape {
  int32_t k_type = f16, v_type = f16;
  int64_t dim = 64, heads = 4, kv_heads = 2, streams = 1;
};

class Prompt {
public:
  Prompt(const Shape& shape, int64_t cells, int layer = 0, uint32_t seed = 1)
      : shape_(shape), cells_(cells), random_(seed) {
    const std::string n = std::to_string(layer);
    k_ = make(shape.k_type, shape.dim * shape.kv_heads, cells, shape.streams, 1, "cache_k_l" + n);
    v_ = make(shape.v_type, shape.dim * shape.kv_heads, cells, shape.streams, 1, "cache_v_l" + n);
  }
  int64_t cells() const { return cells_; }

  // Stretches of 64 cells have one of eight topics, which their keys and the queries beside them share, so that
  // attention is concentrated and a selection has something to drop.
  void write(int64_t cell, int64_t stream = 0) {
    std::normal_distribution<float> normal;
    std::vector<float> row(static_cast<size_t>(shape_.dim * shape_.kv_heads));
    for (Tensor* t : {k_, v_}) {
      for (size_t i = 0; i < row.size(); ++i)
        row[i] = normal(random_) + (t == k_ ? topic(cell, static_cast<int64_t>(i) % shape_.dim) : 0);
      store(t->type, row.data(), place(*t, cell, stream), static_cast<int64_t>(row.size()));
    }
  }
  void write(int64_t begin, int64_t end, int64_t stream) {
    for (int64_t c = begin; c < end; ++c) write(c, stream);
  }
  // The same bytes in another cell.
  void move(int64_t from, int64_t to) {
    for (Tensor* t : {k_, v_}) std::memcpy(place(*t, to, 0), place(*t, from, 0), t->nb[1]);
  }

  // Rows attend to the first n_kv cells; bias(row, cell, stream) is the mask: 0, -INFINITY or anything. Row 0 stands
  // beside cell `first`.
  using Bias = std::function<float(int64_t row, int64_t cell, int64_t stream)>;
  Tensor* attend(int64_t rows, int64_t n_kv, const Bias& bias, int64_t first = 0) {
    const Shape& s = shape_;
    Tensor* q = make(f32, s.dim * s.heads, rows, s.streams, 1, "q");
    std::normal_distribution<float> normal;
    auto* numbers = static_cast<float*>(q->data);
    for (int64_t stream = 0; stream < s.streams; ++stream)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < s.dim * s.heads; ++c) *numbers++ = normal(random_) + topic(first + r, c % s.dim);
    Tensor* op = operation(op_flash, f32, s.dim, s.heads, rows, s.streams);
    const float scale = 1 / std::sqrt(static_cast<float>(s.dim));
    std::memcpy(op->op_params, &scale, 4);
    op->op_params[3] = 10;  // precision: f32
    op->flags = sale::ggml::flag_compute;
    op->src[0] = view(q, s.dim, rows, s.heads, element_bytes(f32) * static_cast<size_t>(s.dim));
    op->src[1] = view(k_, s.dim, n_kv, s.kv_heads, row_bytes(s.k_type, s.dim));
    op->src[2] = view(v_, s.dim, n_kv, s.kv_heads, row_bytes(s.v_type, s.dim));
    if (bias) {
      op->src[3] = make(f16, n_kv, rows, 1, s.streams, "mask");
      auto* m = static_cast<uint16_t*>(op->src[3]->data);
      for (int64_t stream = 0; stream < s.streams; ++stream)
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < n_kv; ++c) *m++ = half(bias(r, c, stream));
    }
    return op;
  }
  // Row r sees cells 0 .. first + r.
  Tensor* causal(int64_t rows, int64_t first, int64_t n_kv) {
    return attend(rows, n_kv, [=](int64_t r, int64_t c, int64_t) { return c <= first + r ? 0.0f : -INFINITY; }, first);
  }

private:
  static float topic(int64_t cell, int64_t coordinate) {
    const auto word = static_cast<uint64_t>(cell / 64 % 8 * 1009 + coordinate) * 0x9e3779b97f4a7c15u;
    return (word >> 40 & 1) != 0 ? 1.0f : -1.0f;
  }
  static char* place(const Tensor& t, int64_t cell, int64_t stream) {
    return static_cast<char*>(t.data) + static_cast<size_t>(cell) * t.nb[1] + static_cast<size_t>(stream) * t.nb[2];
  }
  // [dim * heads, tokens, streams] seen as [dim, tokens, heads, streams].
  static Tensor* view(Tensor* of, int64_t dim, int64_t tokens, int64_t heads, size_t head_bytes) {
    auto* t = new Tensor(*of);
    t->op = op_view, t->view_src = of, t->name[0] = '\0';
    t->ne[0] = dim, t->ne[1] = tokens, t->ne[2] = heads, t->ne[3] = of->ne[2];
    t->nb[3] = of->nb[2], t->nb[2] = head_bytes;
    return t;
  }

  Shape shape_;
  int64_t cells_;
  std::mt19937 random_;
  Tensor *k_, *v_;
};

}  // namespace fake
