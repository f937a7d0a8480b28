#include "rows.hpp"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sale::ggml {
namespace {

uint16_t to_f16(float f) {
  const uint32_t x = std::bit_cast<uint32_t>(f), sign = x >> 16 & 0x8000, a = x & 0x7fffffff;
  if (a > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  // Subnormal halves: adding 0.5 rounds at their last place and leaves it in the low bits.
  if (a < 0x38800000)
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000));
  return static_cast<uint16_t>(sign | ((a + 0xc8000fff + (a >> 13 & 1)) >> 13));
}
float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t{h} << 16 & 0x80000000, a = h & 0x7fff;
  if (a >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | a << 13);
  if (a < 0x400) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(a) * 0x1p-24f));
  return std::bit_cast<float>(sign | ((a << 13) + 0x38000000));
}
uint16_t to_bf16(float f) {
  const uint32_t x = std::bit_cast<uint32_t>(f);
  if ((x & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(x >> 16 | 0x40);
  return static_cast<uint16_t>((x + 0x7fff + (x >> 16 & 1)) >> 16);
}
float from_bf16(uint16_t h) { return std::bit_cast<float>(uint32_t{h} << 16); }

// A Q8_0 block: an F16 scale and 32 codes.
constexpr int64_t q8_block = 32;
constexpr size_t q8_bytes = 34;

#if defined(__x86_64__)
bool has_f16c() {
  static const bool has = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  return has;
}
// Each does the leading multiple of 8 and says how many that is.
__attribute__((target("avx,f16c"))) int64_t round_f16c(const float* from, uint16_t* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  return i;
}
__attribute__((target("avx,f16c"))) int64_t widen_f16c(const uint16_t* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  return i;
}
#else
constexpr bool has_f16c() { return false; }
int64_t round_f16c(const float*, uint16_t*, int64_t) { return 0; }
int64_t widen_f16c(const uint16_t*, float*, int64_t) { return 0; }
#endif

}  // namespace

sale_dtype computed_as(Type stored) {
  return stored == Type::f32 ? SALE_F32 : stored == Type::bf16 ? SALE_BF16 : SALE_F16;
}

size_t row_bytes(Type stored, int64_t n) {
  if (stored == Type::q8_0) return static_cast<size_t>(n / q8_block) * q8_bytes;
  return static_cast<size_t>(n) * size_of(computed_as(stored));
}

void round_row(sale_dtype to, const float* from, void* out, int64_t n) {
  uint16_t* h = static_cast<uint16_t*>(out);
  if (to == SALE_F32) {
    std::memcpy(out, from, static_cast<size_t>(n) * 4);
  } else if (to == SALE_BF16) {
    for (int64_t i = 0; i < n; ++i) h[i] = to_bf16(from[i]);
  } else {
    for (int64_t i = has_f16c() ? round_f16c(from, h, n) : 0; i < n; ++i) h[i] = to_f16(from[i]);
  }
}

void widen_row(sale_dtype from, const void* in, float* out, int64_t n) {
  const uint16_t* h = static_cast<const uint16_t*>(in);
  if (from == SALE_F32) {
    std::memcpy(out, in, static_cast<size_t>(n) * 4);
  } else if (from == SALE_BF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = from_bf16(h[i]);
  } else {
    for (int64_t i = has_f16c() ? widen_f16c(h, out, n) : 0; i < n; ++i) out[i] = from_f16(h[i]);
  }
}

void unpack_row(Type stored, const void* in, void* out, int64_t n) {
  if (stored != Type::q8_0) {
    std::memcpy(out, in, row_bytes(stored, n));
    return;
  }
  const unsigned char* block = static_cast<const unsigned char*>(in);
  uint16_t* to = static_cast<uint16_t*>(out);
  for (int64_t b = 0; b < n / q8_block; ++b, block += q8_bytes, to += q8_block) {
    uint16_t bits;
    std::memcpy(&bits, block, 2);
    const float scale = from_f16(bits);
    float values[q8_block];
    for (int64_t i = 0; i < q8_block; ++i) values[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
    round_row(SALE_F16, values, to, q8_block);
  }
}

}  // namespace sale::ggml
