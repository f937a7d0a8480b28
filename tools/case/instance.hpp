// A Case made real: tensors in guarded memory, filled, and the structs that describe them.
#pragma once

#include <memory>
#include <vector>

#include "case/case.hpp"
#include "case/element.hpp"
#include "case/memory.hpp"

namespace sale_case {

// A tensor [sequence, head, token, d] inside some memory.
struct Tensor {
  std::shared_ptr<Memory> memory;
  size_t first = 0;  // byte of element 0
  sale_dtype dtype{};
  sale_strides strides{};
  int64_t heads = 0, head_dim = 0;
  std::vector<int64_t> starts, lengths;  // [batch], tokens

  std::byte* data() const { return memory->begin() + first; }
  size_t offset(int64_t b, int64_t h, int64_t token) const;
  std::byte* row(int64_t b, int64_t h, int64_t token) const { return memory->begin() + offset(b, h, token); }
  // One head of one sequence as f32 [tokens, d], and back.
  std::vector<float> head(int64_t b, int64_t h) const;
  void set_head(int64_t b, int64_t h, const std::vector<float>& values);
  // The bytes that belong to it.
  Memory::Ranges ranges() const;
};

struct Sequence {
  int64_t q_len, k_len, q_offset, q_start, k_start;
};

class Instance {
public:
  // Throws Error when the case cannot be made: sizes beyond `most_bytes`, or numbers no tensor can have.
  explicit Instance(const Case& c, int64_t most_bytes = int64_t{4} << 30);
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  const Case c;
  std::vector<Sequence> sequences;
  Tensor q, k, v, out;
  std::unique_ptr<Memory> lse;  // [batch, q_heads, longest q_len]
  std::vector<float> q_projection, k_projection;
  std::vector<float> reference;  // [batch, q_heads, longest q_len], where tests give one; else empty
  sale_problem problem{};        // points into this, as do
  sale_layer layer{};
  sale_options options{};

  // Of sale_call the tensors, lse and reference.
  sale_call call() const;

  int64_t longest_q() const { return longest_q_; }
  float scale() const;
  float tau(int64_t head) const { return c.taus[c.taus.size() == 1 ? 0 : static_cast<size_t>(head)]; }
  bool dense(int64_t b) const { return sequences[static_cast<size_t>(b)].k_len < c.dense_below; }
  float* lse_row(int64_t b, int64_t h) const {
    return reinterpret_cast<float*>(lse->begin()) + (b * c.q_heads + h) * longest_q_;
  }
  void clear_outputs();
  // out and lse hold bytes nobody should write outside the rows of the sequences: gaps, margins, rows beyond the end.
  bool outputs_intact() const;
  // Key indexes are made per sequence of the keys from here on.
  const std::byte* keys(int64_t b) const { return k.row(b, 0, 0); }

private:
  void check() const;
  void lay_out(int64_t most_bytes);
  void describe();
  int64_t longest_q_ = 0, longest_k_ = 0;
};

// data.cpp
void fill(Instance& instance);
std::vector<float> random_projections(uint64_t seed, int32_t kv_heads, int32_t head_dim, int32_t rank);

}  // namespace sale_case
