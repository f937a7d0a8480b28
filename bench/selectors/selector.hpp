// Ways to choose key blocks, SALE's and others', for comparison under one kernel. Everything here works on exact scores
// in f32 and is written to be plain, not fast: what is compared is what a selector keeps.
//
// All of them keep the first block and the blocks that hold the last 128 keys before each row; what follows is said of
// the others. A tile is 64 query rows, a block 32 keys.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lm/attention.hpp"
#include "lm/linear.hpp"

namespace sale::bench {

enum class Kind {
  exact,           // SALE's rule on exact scores: some pair's exp(s - m) / l, m and l over sink and local keys, >= x
  top_k,           // the x blocks with the most softmax mass, mean over the tile's rows
  top_p,           // the fewest blocks whose mass, with that of sink and local blocks, reaches x
  pooled,          // keys pooled by means over 128: softmax over the means, mean over rows, >= x times the largest
  antidiagonal,    // sums along every 16th antidiagonal, softmax over them, then as top_p (XAttention's estimate)
  vertical_slash,  // the fewest keys and the fewest diagonals that reach a share x of the last 64 rows' mass each
  sink_local       // none
};

// One query head of a call, in f32.
class Head {
public:
  Head(const lm::AttentionCall& call, int head);
  int64_t tiles() const { return (q_len + 63) / 64; }
  int64_t rows(int64_t tile) const { return std::min<int64_t>(64, q_len - tile * 64); }
  int64_t position(int64_t row) const { return row + k_len - q_len; }
  int64_t visible_blocks(int64_t tile) const { return position(tile * 64 + rows(tile) - 1) / 32 + 1; }
  int64_t local_block(int64_t tile) const { return std::max<int64_t>(0, position(tile * 64) + 1 - 128) / 32; }
  // Scaled scores of rows [first, first + count) with keys [0, keys), -infinity where a row does not see the key:
  // [count, stride()].
  std::vector<float> scores(int64_t first, int64_t count, int64_t keys) const;
  static int64_t stride(int64_t keys) { return (keys + piece - 1) / piece * piece; }

  int64_t q_len, k_len, d;
  std::vector<float> q, k;  // [tokens, d], q scaled

private:
  static constexpr int64_t piece = 1024;  // keys of a product
  std::vector<lm::Linear> keys_;
};

// Made for one head; keep() may be called by many threads.
class Selector {
public:
  virtual ~Selector() = default;
  // Blocks of the tile, ascending.
  std::vector<int32_t> keep(int64_t tile) const;

protected:
  explicit Selector(const Head& head) : head_(head) {}
  // Marks blocks besides those that are always kept; `wanted` has a place for every visible one.
  virtual void choose(int64_t tile, std::vector<char>& wanted) const = 0;
  const Head& head_;
};
std::unique_ptr<Selector> make_selector(Kind kind, double x, const Head& head);

}  // namespace sale::bench
