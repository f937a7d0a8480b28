#include "lm/dequantize.hpp"

#include <array>
#include <cstring>

#include "lm/bf16.hpp"
#include "lm/error.hpp"

namespace sale::lm {
namespace {

uint16_t u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
uint32_t u32(const uint8_t* p) { return static_cast<uint32_t>(u16(p)) | static_cast<uint32_t>(u16(p + 2)) << 16; }
float half(const uint8_t* p) { return from_f16(u16(p)); }
int low(uint8_t x) { return x & 15; }
int high(uint8_t x) { return x >> 4; }
float real(int x) { return static_cast<float>(x); }

void f32(const uint8_t* x, float* y) { *y = std::bit_cast<float>(u32(x)); }
void f16(const uint8_t* x, float* y) { *y = half(x); }
void bf16(const uint8_t* x, float* y) { *y = from_bf16(u16(x)); }

// ---- blocks of 32: d (f16) | m (f16, types _1) | fifth bits (u32, types 5_) | 16 bytes, weight i low, i + 16 high
// ----

void q4_0(const uint8_t* x, float* y) {
  for (int i = 0; i < 16; ++i) {
    y[i] = real(low(x[2 + i]) - 8) * half(x);
    y[i + 16] = real(high(x[2 + i]) - 8) * half(x);
  }
}

void q4_1(const uint8_t* x, float* y) {
  for (int i = 0; i < 16; ++i) {
    y[i] = real(low(x[4 + i])) * half(x) + half(x + 2);
    y[i + 16] = real(high(x[4 + i])) * half(x) + half(x + 2);
  }
}

int fifth(uint32_t bits, int i) { return static_cast<int>(bits >> i & 1) << 4; }

void q5_0(const uint8_t* x, float* y) {
  const uint32_t bits = u32(x + 2);
  for (int i = 0; i < 16; ++i) {
    y[i] = real((low(x[6 + i]) | fifth(bits, i)) - 16) * half(x);
    y[i + 16] = real((high(x[6 + i]) | fifth(bits, i + 16)) - 16) * half(x);
  }
}

void q5_1(const uint8_t* x, float* y) {
  const uint32_t bits = u32(x + 4);
  for (int i = 0; i < 16; ++i) {
    y[i] = real(low(x[8 + i]) | fifth(bits, i)) * half(x) + half(x + 2);
    y[i + 16] = real(high(x[8 + i]) | fifth(bits, i + 16)) * half(x) + half(x + 2);
  }
}

void q8_0(const uint8_t* x, float* y) {
  for (int i = 0; i < 32; ++i) y[i] = real(static_cast<int8_t>(x[2 + i])) * half(x);
}

// Not evenly spaced: the 16 values that an iq4 weight picks from.
constexpr std::array<int8_t, 16> kLevels = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void iq4_nl(const uint8_t* x, float* y) {
  for (int i = 0; i < 16; ++i) {
    y[i] = half(x) * real(kLevels[at(low(x[2 + i]))]);
    y[i + 16] = half(x) * real(kLevels[at(high(x[2 + i]))]);
  }
}

// ---- blocks of 256: eight or sixteen stretches, each with a small scale of its own ----

// 84 bytes: 16 x (scale, minimum) of 4 bits | 64 bytes of 2-bit weights | d | d of the minima.
void q2_k(const uint8_t* x, float* y) {
  const uint8_t* weights = x + 16;
  const float d = half(x + 80), least = half(x + 82);
  for (int i = 0; i < 256; ++i) {
    const uint8_t scale = x[i / 16];
    const int q = weights[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    y[i] = d * real(low(scale)) * real(q) - least * real(high(scale));
  }
}

// 110 bytes: 32 of third bits | 64 of the lower two | 12 of sixteen 6-bit scales | d.
void q3_k(const uint8_t* x, float* y) {
  const uint8_t *third = x, *weights = x + 32, *scales = x + 96;
  const float d = half(x + 108);
  for (int i = 0; i < 256; ++i) {
    const int s = i / 16;
    const int four = s < 8 ? low(scales[s]) : high(scales[s - 8]);
    const int two = scales[8 + s % 4] >> (s / 4 * 2) & 3;
    const int q = weights[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const int missing = third[i % 32] >> (i / 32) & 1 ? 0 : 4;
    y[i] = d * real((four | two << 4) - 32) * real(q - missing);
  }
}

// The 6-bit scale and minimum of stretch j of 8, packed in 12 bytes.
struct ScaleAndLeast {
  int scale, least;
};
ScaleAndLeast sixes(const uint8_t* p, int j) {
  if (j < 4) return {p[j] & 63, p[j + 4] & 63};
  return {low(p[j + 4]) | (p[j - 4] >> 6) << 4, high(p[j + 4]) | (p[j] >> 6) << 4};
}

// 144 bytes: d | d of the minima | 12 of scales | 128 of weights, two stretches of 32 share 32 bytes.
void q4_k(const uint8_t* x, float* y) {
  const float d = half(x), least = half(x + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleAndLeast s = sixes(x + 4, j);
    const float scale = d * real(s.scale), minimum = least * real(s.least);
    for (int i = 0; i < 32; ++i) {
      const uint8_t both = x[16 + j / 2 * 32 + i];
      y[32 * j + i] = scale * real(j % 2 ? high(both) : low(both)) - minimum;
    }
  }
}

// 176 bytes: as q4_k, with 32 bytes of fifth bits before the weights.
void q5_k(const uint8_t* x, float* y) {
  const float d = half(x), least = half(x + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleAndLeast s = sixes(x + 4, j);
    const float scale = d * real(s.scale), minimum = least * real(s.least);
    for (int i = 0; i < 32; ++i) {
      const uint8_t both = x[48 + j / 2 * 32 + i];
      const int q = (j % 2 ? high(both) : low(both)) | (x[16 + i] >> j & 1) << 4;
      y[32 * j + i] = scale * real(q) - minimum;
    }
  }
}

// 210 bytes: 128 of low halves | 64 of upper two bits | 16 scales (int8) | d.
void q6_k(const uint8_t* x, float* y) {
  const uint8_t *lower = x, *upper = x + 128, *scales = x + 192;
  const float d = half(x + 208);
  for (int i = 0; i < 256; ++i) {
    const int part = i / 128, quarter = i % 128 / 32, j = i % 32;
    const uint8_t both = lower[part * 64 + quarter % 2 * 32 + j];
    const int q = (quarter < 2 ? low(both) : high(both)) | (upper[part * 32 + j] >> (2 * quarter) & 3) << 4;
    y[i] = d * real(static_cast<int8_t>(scales[i / 16])) * real(q - 32);
  }
}

// 136 bytes: d | upper two bits of eight scales (u16) | 4 of their low halves | 128 of weights.
void iq4_xs(const uint8_t* x, float* y) {
  for (int j = 0; j < 8; ++j) {
    const int lower = j % 2 ? high(x[4 + j / 2]) : low(x[4 + j / 2]);
    const int scale = (lower | (u16(x + 2) >> (2 * j) & 3) << 4) - 32;
    const float d = half(x) * real(scale);
    for (int i = 0; i < 16; ++i) {
      const uint8_t both = x[8 + 16 * j + i];
      y[32 * j + i] = d * real(kLevels[at(low(both))]);
      y[32 * j + i + 16] = d * real(kLevels[at(high(both))]);
    }
  }
}

// ggml's numbers; the gaps were types once.
constexpr GgufType kTypes[] = {{0, "F32", 1, 4, f32},
                               {1, "F16", 1, 2, f16},
                               {2, "Q4_0", 32, 18, q4_0},
                               {3, "Q4_1", 32, 20, q4_1},
                               {6, "Q5_0", 32, 22, q5_0},
                               {7, "Q5_1", 32, 24, q5_1},
                               {8, "Q8_0", 32, 34, q8_0},
                               {9, "Q8_1", 32, 36},
                               {10, "Q2_K", 256, 84, q2_k},
                               {11, "Q3_K", 256, 110, q3_k},
                               {12, "Q4_K", 256, 144, q4_k},
                               {13, "Q5_K", 256, 176, q5_k},
                               {14, "Q6_K", 256, 210, q6_k},
                               {15, "Q8_K", 256, 292},
                               {16, "IQ2_XXS", 256, 66},
                               {17, "IQ2_XS", 256, 74},
                               {18, "IQ3_XXS", 256, 98},
                               {19, "IQ1_S", 256, 50},
                               {20, "IQ4_NL", 32, 18, iq4_nl},
                               {21, "IQ3_S", 256, 110},
                               {22, "IQ2_S", 256, 82},
                               {23, "IQ4_XS", 256, 136, iq4_xs},
                               {24, "I8", 1, 1},
                               {25, "I16", 1, 2},
                               {26, "I32", 1, 4},
                               {27, "I64", 1, 8},
                               {28, "F64", 1, 8},
                               {29, "IQ1_M", 256, 56},
                               {30, "BF16", 1, 2, bf16},
                               {34, "TQ1_0", 256, 54},
                               {35, "TQ2_0", 256, 66},
                               {39, "MXFP4", 32, 17}};

}  // namespace

const GgufType* gguf_type(uint32_t number) {
  for (const GgufType& type : kTypes)
    if (type.number == number) return &type;
  return nullptr;
}

std::string readable_gguf_types() {
  std::string names;
  for (const GgufType& type : kTypes)
    if (type.widen != nullptr) names.append(names.empty() ? "" : ", ") += type.name;
  return names;
}

void dequantize(const GgufType& type, std::span<const std::byte> bytes, std::span<float> out) {
  const auto blocks = ssize_of(bytes) / type.bytes;
  if (type.widen == nullptr || blocks * type.bytes != ssize_of(bytes) || blocks * type.block != ssize_of(out))
    fail("dequantize: ", bytes.size(), " bytes of ", type.name, " for ", out.size(), " floats");
  const auto* from = reinterpret_cast<const uint8_t*>(bytes.data());
  for (int64_t i = 0; i < blocks; ++i) type.widen(from + i * type.bytes, out.data() + i * type.block);
}

}  // namespace sale::lm
