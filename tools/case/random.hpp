// Numbers that are the same on every machine and compiler: integer arithmetic, and floats made of it without libm.
#pragma once

#include <cstdint>

namespace sale_case {

class Random {
public:
  explicit Random(uint64_t seed) : state_(seed) { u64(); }
  // A stream of its own for each tensor, sequence and head, whatever order they are filled in.
  Random(uint64_t seed, uint64_t a, uint64_t b, uint64_t c) : Random(mix(mix(mix(seed + 1) + a + 1) + b + 1) + c + 1) {}

  uint64_t u64() { return mix(state_ += 0x9e3779b97f4a7c15u); }
  // 0 .. n - 1, near enough to uniform for tests.
  int64_t below(int64_t n) {
    return static_cast<int64_t>((static_cast<unsigned __int128>(u64()) * static_cast<uint64_t>(n)) >> 64);
  }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float uniform() { return static_cast<float>(u64() >> 40) * 0x1p-24f; }
  // Sum of four uniforms, scaled to variance 1: close to normal, tails end at 3.46.
  float normal() {
    const uint64_t w = u64();
    int64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int64_t>((w >> (16 * i)) & 0xffff);
    return static_cast<float>(sum - 131070) * (1.7320508f / 65536.0f);
  }

private:
  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

}  // namespace sale_case
