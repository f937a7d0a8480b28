// One line of text that is at once a test input, a benchmark row, a log line and a reproduce command:
//
//   batch=2 qheads=4 kvheads=2 q=1000 k=4k d=128 type=bf16 tau=0.004 estimator=int8:32 data=real-like seed=7
//
// A Case is what such a line says: a problem, its options and how to fill the tensors. docs: sale_case::grammar().
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "sale/sale.h"

namespace sale_case {

enum class Layout {
  bhld,    // [batch, head, token, d], contiguous
  blhd,    // [batch, token, head, d], contiguous
  padded,  // bhld with gaps after every row, head and sequence
  packed,  // [all tokens, head, d], sequences one after the other with gaps between
  fused    // q, k, v are views of one [batch, token, q_heads + 2 kv_heads, d] buffer
};

enum class Data {
  normal,     // standard normal
  real_like,  // sinks, local structure, a few heavy hitters: attention as models have it
  integers,   // -2 .. 2, mostly 0: sums are exact
  constant,   // one value per tensor
  zeros,
  zero_rows,  // real-like, every third token 0
  outlier,    // real-like, one coordinate of one token in fifty is a hundred times larger
  large,      // real-like, q ten times larger: nearly one-hot rows
  tiny,       // 2^-100 (f16: 2^-12)
  denormal,   // only denormal numbers
  huge,       // scores beyond f32's range (f16: the largest numbers)
  nan_q,
  nan_k,
  nan_v,
  inf_q,
  inf_k,
  inf_v  // real-like with one to three poisoned elements per head
};

struct Case {
  int32_t batch = 1, q_heads = 1, kv_heads = 1, head_dim = 64;
  int64_t q_len = 1024, k_len = 1024;  // the longest, when a list is given
  int64_t q_offset = SALE_AUTO;
  std::vector<int64_t> q_lens, k_lens, q_offsets;  // empty or [batch]
  sale_dtype dtype = SALE_BF16;
  float scale = 0;
  std::vector<float> taus{0.004f};  // 1 or q_heads
  sale_format format = SALE_INT8;
  int32_t rank = 0;
  sale_compute compute = SALE_COMPUTE_EXACT;
  int32_t sink = 32, local = 128;
  int64_t window = 0;  // 0: none
  bool window_sink = false;
  int64_t dense_below = 1024;
  bool compensate = false;
  int32_t page_size = 0;    // a device's keys and values in pages, their order shuffled; the tensors here are not
  bool with_index = false;  // key indexes made beforehand and given to the run
  Layout layout = Layout::bhld;
  Data data = Data::real_like;
  uint64_t seed = 1;
  std::string backend;  // empty: any
  int32_t threads = 0;

  bool operator==(const Case&) const = default;
};

// What parse and make throw: one sentence naming the word and what is allowed.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Strict: unknown keys, bad numbers, overflow and repeated words are errors. q defaults to k and k to q.
Case parse(std::string_view line);
// Canonical: parse(print(c)) == c.
std::string print(const Case& c);
// The grammar for people, one key a line.
std::string grammar();

const char* name(Layout);
const char* name(Data);
const char* name(sale_dtype);

// A small random problem out of the whole space of features; costs milliseconds.
struct Limits {
  int64_t tokens = 4096;          // no sequence longer
  int64_t products = 64'000'000;  // batch * q_heads * q * k * d, about
};
Case random_case(uint64_t seed, const Limits& limits = {});

}  // namespace sale_case
