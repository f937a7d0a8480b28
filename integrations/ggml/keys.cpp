#include "keys.hpp"

#include <cstring>

#include "workers.hpp"

namespace sale::ggml {
namespace {

// Four lanes of 64 bits. Every step is one to one in the lane and in the word taken in, and moves high bits down, so
// that a change of sign in two words does not cancel.
class Digest {
public:
  void add(const char* bytes, size_t n) {
    uint64_t words[4];
    for (; n >= sizeof words; bytes += sizeof words, n -= sizeof words) {
      std::memcpy(words, bytes, sizeof words);
      step(words);
    }
    if (n == 0) return;
    std::memset(words, 0, sizeof words);
    std::memcpy(words, bytes, n);
    step(words);
  }
  uint64_t value() const {
    uint64_t h = 0;
    for (uint64_t lane : lanes_) h = turn(h ^ lane);
    return h;
  }

private:
  static uint64_t turn(uint64_t h) {
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
  }
  void step(const uint64_t words[4]) {
    for (int i = 0; i < 4; ++i) lanes_[i] = turn(lanes_[i] ^ words[i]);
  }
  uint64_t lanes_[4] = {1, 2, 3, 4};
};

}  // namespace

std::vector<uint64_t> digest(const Stored& k, const Run& run, int threads) {
  std::vector<uint64_t> values(static_cast<size_t>(run.key_count / SALE_K_BLOCK));
  const size_t bytes = row_bytes(k.type, k.dim);
  in_pieces(threads, static_cast<int64_t>(values.size()), 64, [&](int64_t begin, int64_t end) {
    Digest sum;
    each_cell(run.keys, begin * SALE_K_BLOCK, end * SALE_K_BLOCK, [&](int64_t i, int64_t cell) {
      if (i % SALE_K_BLOCK == 0) sum = {};
      for (int32_t h = 0; h < k.heads; ++h) sum.add(k.row(cell, h), bytes);
      if (i % SALE_K_BLOCK == SALE_K_BLOCK - 1) values[static_cast<size_t>(i / SALE_K_BLOCK)] = sum.value();
    });
  });
  return values;
}

uint64_t digest(const void* bytes, size_t n) {
  Digest sum;
  sum.add(static_cast<const char*>(bytes), n);
  return sum.value();
}

Readable readable(const Stored& from, const Run& run, std::vector<char>& room, int threads) {
  const sale_dtype type = computed_as(from.type);
  const size_t size = size_of(type), row = static_cast<size_t>(from.dim) * size;
  if (from.type != Type::q8_0 && run.contiguous())
    return {from.row(run.keys[0].begin, 0),
            {0, static_cast<int64_t>(from.head_bytes / size), static_cast<int64_t>(from.token_bytes / size)}};
  const size_t token = row * static_cast<size_t>(from.heads);
  room.resize(static_cast<size_t>(run.key_count) * token);
  in_pieces(threads, run.key_count, 1024, [&](int64_t begin, int64_t end) {
    each_cell(run.keys, begin, end, [&](int64_t i, int64_t cell) {
      for (int32_t h = 0; h < from.heads; ++h)
        unpack_row(from.type, from.row(cell, h),
                   room.data() + static_cast<size_t>(i) * token + static_cast<size_t>(h) * row, from.dim);
    });
  });
  return {room.data(), {0, from.dim, from.dim * from.heads}};
}

}  // namespace sale::ggml
