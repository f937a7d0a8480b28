// Keys and values of 8 bits in pages: the bits of the same numbers in order, in the queries' type.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "case/random.hpp"
#include "harness.hpp"

namespace sale_test {
namespace {

using sale_case::Memory;
using sale_case::Random;

// From the definition: a sign, 4 bits of exponent (bias 7), 3 of mantissa.
float number_of(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double size = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>((code & 128) != 0 ? -size : size);
}

uint8_t nearest(float x) {
  static const auto sizes = [] {
    std::array<float, 0x7f> made{};
    for (size_t code = 0; code < made.size(); ++code) made[code] = number_of(static_cast<int>(code));
    return made;
  }();
  const float size = std::min(std::abs(x), 448.0f);
  auto above = static_cast<size_t>(std::lower_bound(sizes.begin(), sizes.end(), size) - sizes.begin());
  if (above > 0 && size - sizes[above - 1] < sizes[above] - size) --above;
  return static_cast<uint8_t>(above | (std::signbit(x) ? 128u : 0u));
}

// An Instance's keys and values as bytes in shuffled pages [keys, kv_heads, keys then values], all else not numbers;
// what they stand for is then what the Instance has.
struct Bytes {
  Bytes(Instance& in, int32_t page_size, bool scaled) : size(page_size) {
    const int64_t heads = in.c.kv_heads, d = in.c.head_dim;
    for (const auto& s : in.sequences) each = std::max(each, (s.k_len + size - 1) / size);
    table.resize(static_cast<size_t>(in.c.batch * each));
    std::iota(table.begin(), table.end(), 0);
    Random random(in.c.seed);
    for (size_t i = table.size(); i > 1; --i)
      std::swap(table[i - 1], table[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    strides = {size * heads * 2 * d, 2 * d, heads * 2 * d};
    memory = std::make_unique<Memory>(table.size() * static_cast<size_t>(strides.batch), 0xff, 1);
    for (int64_t h = 0; h < heads; ++h) {
      k_scales.push_back(scaled ? 0.004f * static_cast<float>(random.between(1, 9)) : 1.0f);
      v_scales.push_back(scaled ? 0.004f * static_cast<float>(random.between(1, 9)) : 1.0f);
      for (int32_t b = 0; b < in.c.batch; ++b) {
        put(in, in.k, b, h, k_scales.back(), 0);
        put(in, in.v, b, h, v_scales.back(), d);
      }
    }
    if (!scaled) k_scales.clear(), v_scales.clear();
  }
  void put(Instance& in, sale_case::Tensor& tensor, int32_t b, int64_t h, float scale, int64_t at) {
    const int64_t d = in.c.head_dim;
    std::vector<float> values = tensor.head(b, h);
    for (int64_t j = 0; j < in.sequences[static_cast<size_t>(b)].k_len; ++j) {
      auto* row = reinterpret_cast<uint8_t*>(memory->begin()) + at + h * strides.head + j % size * strides.token +
                  table[static_cast<size_t>(b * each + j / size)] * strides.batch;
      for (int64_t c = 0; c < d; ++c) {
        float& x = values[static_cast<size_t>(j * d + c)];
        row[c] = nearest(x / scale);
        x = number_of(row[c]) * scale;
      }
    }
    tensor.set_head(b, h, values);
  }
  sale_problem problem(const Instance& in) const {
    sale_problem p = in.problem;
    p.kv_dtype = SALE_KV_E4M3;
    p.page_size = size, p.pages = each;
    p.k = p.v = strides;
    return p;
  }
  sale_call call(const Instance& in) const {
    sale_call c = in.call();
    c.k = memory->begin(), c.v = memory->begin() + in.c.head_dim;
    c.page_table = table.data();
    if (!k_scales.empty()) c.k_scales = k_scales.data(), c.v_scales = v_scales.data();
    return c;
  }
  int32_t size;
  int64_t each = 1;  // pages of a sequence
  std::vector<int32_t> table;
  std::vector<float> k_scales, v_scales;
  std::unique_ptr<Memory> memory;
  sale_strides strides{};
};

TEST(E4m3, AreTheirNumbersInOrder) {
  const auto finite_and_separate = [](Case& c) {
    regular(c);
    if (c.layout == sale_case::Layout::packed || c.layout == sale_case::Layout::fused)
      c.layout = sale_case::Layout::bhld;
  };
  on_random_cases(450'000, 40, finite_and_separate, [](Instance& in, const std::string& backend) {
    Random random(in.c.seed + 1);
    const Bytes bytes(in, static_cast<int32_t>(16 * random.between(1, 5)), !random.one_in(3));
    const Result whole = run(in, backend);
    const Step step(bytes.problem(in), with_backend(in.layer, backend), in.options);
    in.clear_outputs();
    step.run(bytes.call(in));
    expect(in.outputs_intact(), "a run on bytes wrote outside out's or lse's rows");
    expect(std::memcmp(in.out.memory->begin(), whole.out.data(), whole.out.size()) == 0 &&
               std::memcmp(in.lse->begin(), whole.lse.data(), whole.lse.size()) == 0,
           backend + ": keys and values of 8 bits give other bits than their numbers");
  });
}

// Every code, in every type: one key, whose value is what comes out.
TEST(E4m3, EveryCode) {
  for (const char* type : {"f32", "f16", "bf16"}) {
    Instance in(sale_case::parse(std::string("qheads=4 kvheads=4 d=64 q=1 k=1 type=") + type));
    const float scale = 0.375f;
    std::vector<float> scales(4, scale);
    std::vector<uint8_t> page(16 * 256);
    const int32_t table = 0;
    for (int code = 0; code < 256; ++code) page[static_cast<size_t>(code)] = static_cast<uint8_t>(code);
    sale_problem p = in.problem;
    p.kv_dtype = SALE_KV_E4M3, p.page_size = 16, p.pages = 1;
    p.k = p.v = {16 * 256, 64, 256};
    for (const std::string& backend : backends_for(in)) {
      const Step step(p, with_backend(in.layer, backend), in.options);
      const std::vector<uint8_t> keys(page.size());
      sale_call call = in.call();
      call.k = keys.data(), call.v = page.data(), call.page_table = &table, call.v_scales = scales.data();
      in.clear_outputs();
      step.run(call);
      for (int64_t h = 0; h < 4; ++h) {
        const std::vector<float> got = in.out.head(0, h);
        for (int64_t c = 0; c < 64; ++c) {
          const int code = static_cast<int>(h * 64 + c);
          if ((code & 127) == 127) {
            EXPECT_TRUE(std::isnan(got[static_cast<size_t>(c)])) << backend << ' ' << type << ' ' << code;
            continue;
          }
          EXPECT_EQ(got[static_cast<size_t>(c)], number_of(code) * scale) << backend << ' ' << type << ' ' << code;
        }
      }
    }
  }
}

}  // namespace
}  // namespace sale_test
