// The keys and values of one stream of a KV cache, in the order of a run's list.
#pragma once

#include <cstdint>
#include <vector>

#include "host.hpp"
#include "mask.hpp"
#include "rows.hpp"
#include "sale/sale.h"

namespace sale::ggml {

struct Stored {
  Type type;
  const char* data;
  size_t token_bytes, head_bytes;  // strides
  int32_t heads;
  int64_t dim;

  // A cache tensor [dim, tokens, heads, streams].
  static Stored of(const Host& host, const Tensor& t, int64_t stream) {
    return {host.type(t.type),
            static_cast<const char*>(t.data) + static_cast<size_t>(stream) * t.nb[3],
            t.nb[1],
            t.nb[2],
            static_cast<int32_t>(t.ne[2]),
            t.ne[0]};
  }
  const char* row(int64_t cell, int32_t head) const {
    return data + static_cast<size_t>(cell) * token_bytes + static_cast<size_t>(head) * head_bytes;
  }
};

// f(place in the list, cell) for places [begin, end).
template <class F>
void each_cell(const std::vector<Cells>& list, int64_t begin, int64_t end, F&& f) {
  int64_t at = 0;
  for (const Cells& c : list) {
    const int64_t n = c.end - c.begin;
    for (int64_t i = begin > at ? begin - at : 0; i < n && at + i < end; ++i) f(at + i, c.begin + i);
    if ((at += n) >= end) return;
  }
}

// One number per whole block of SALE_K_BLOCK keys, made of every byte of its rows.
std::vector<uint64_t> digest(const Stored& k, const Run& run, int threads);

// Of plain bytes.
uint64_t digest(const void* bytes, size_t n);

// What the library reads: in place where the cache holds the list as one range in a type that is computed with, else a
// copy [token, head, dim] in `room`.
struct Readable {
  const void* data;
  sale_strides strides;  // in elements
};
Readable readable(const Stored& from, const Run& run, std::vector<char>& room, int threads);

}  // namespace sale::ggml
