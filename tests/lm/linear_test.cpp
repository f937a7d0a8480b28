#include "lm/linear.hpp"

#include <thread>

#include "lm/buffer.hpp"
#include "lm/prompts.hpp"
#include "lm/workers.hpp"
#include "support.hpp"

namespace sale::lm {
namespace {

using Then = Linear::Then;

// Small whole numbers, so that every sum is exact in bf16 and f32 alike.
std::vector<float> small_integers(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(at(count));
  for (float& x : out) x = static_cast<float>(random.below(5) - 2);
  return out;
}

std::vector<std::byte> as_activations(const std::vector<float>& values, Compute compute) {
  std::vector<std::byte> out(values.size() * (compute == Compute::bf16 ? 2 : 4));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = to_bf16(values[i]);
    if (compute == Compute::bf16)
      std::memcpy(&out[i * 2], &half, 2);
    else
      std::memcpy(&out[i * 4], &values[i], 4);
  }
  return out;
}

float activation(const std::byte* from, size_t i, Compute compute) {
  uint16_t half = 0;
  float value = 0;
  if (compute == Compute::bf16)
    std::memcpy(&half, from + i * 2, 2);
  else
    std::memcpy(&value, from + i * 4, 4);
  return compute == Compute::bf16 ? from_bf16(half) : value;
}

TEST(Linear, EveryEpilogueOnSmallIntegers) {
  const int64_t in = 70, out = 37;
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    if (compute == Compute::bf16 && resolve(Compute::automatic) != Compute::bf16) continue;
    for (const bool biased : {false, true}) {
      const auto w = small_integers(in * out, 1), b = biased ? small_integers(out, 2) : std::vector<float>();
      const Linear linear(compute, in, out, w, b);
      for (const int64_t rows : {1, 3, 256, 300}) {
        const auto x = small_integers(rows * in, 3), other = small_integers(rows * out, 4);
        const auto src = as_activations(x, compute), mul = as_activations(other, compute);
        std::vector<float> wide(at(rows * out), 1.0f);
        std::vector<std::byte> narrow(at(rows * out) * 4), swish(at(rows * out) * 4);
        linear.run(rows, src.data(), wide.data(), Then::add_f32);
        linear.run(rows, src.data(), narrow.data(), Then::multiply, mul.data());
        linear.run(rows, src.data(), swish.data(), Then::swish);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t o = 0; o < out; ++o) {
            float y = biased ? b[at(o)] : 0.0f;
            for (int64_t i = 0; i < in; ++i) y += x[at(r * in + i)] * w[at(o * in + i)];
            const size_t k = at(r * out + o);
            ASSERT_EQ(wide[k], y + 1.0f) << rows << " " << r << " " << o;
            ASSERT_EQ(activation(narrow.data(), k, compute), from_bf16(to_bf16(y * other[k])));
            const double expected = y / (1.0 + std::exp(-static_cast<double>(y)));
            ASSERT_NEAR(activation(swish.data(), k, compute), expected, 1e-5 + std::abs(expected) / 256);
          }
      }
    }
  }
  expect_error([] { Linear(Compute::f32, 2, 3, std::vector<float>(5)); }, {"2 x 3"});
}

TEST(Workers, EveryIndexOnceAndTheFirstErrorComesOut) {
  std::vector<std::atomic<int>> seen(1000);
  for_each_index(4, 1000, [&](int64_t i, int worker) {
    EXPECT_LT(worker, 4);
    ++seen[at(i)];
  });
  for (auto& n : seen) EXPECT_EQ(n, 1);
  for_each_index(4, 0, [](int64_t, int) { FAIL(); });
  expect_error(
      [] {
        for_each_index(3, 50, [](int64_t i, int) {
          if (i == 7) fail("seven");
        });
      },
      {"seven"});
}

TEST(Buffer, RefusesImpossibleSizes) {
  EXPECT_THROW(Buffer<uint16_t>(INT64_MAX), Error);
  EXPECT_THROW(Buffer<uint16_t>(-1), Error);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(Buffer<uint8_t>(3).data()) % 64, 0u);
}

}  // namespace
}  // namespace sale::lm
