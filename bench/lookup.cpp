// Look-up products against maddubs on AVX2: 4-bit keys, a block list's scan reduced to its inner loop. Eight blocks of
// 32 keys, a tile of 64 queries; what comes out is the largest product of each query with the keys of each block.
//
//   kernel   what the avx2 backend does: bytes, |query| unsigned times key with the query's sign, sums in 32 bits
//   biased   keys plus 12 as unsigned bytes (0 .. 24), queries of 8 bits, four steps summed in 16 bits
//   tables4  bit planes of the keys as indices into tables of partial sums of four queries' coordinates (T-MAC's way),
//            queries of 4 bits, so that sums of four groups stay within a byte
//   tables8  the same for queries of 8 bits: partial sums in two bytes, so two tables
//
//   g++ -O3 -std=c++20 -mavx2 -mfma bench/lookup.cpp -o lookup && ./lookup
#include <immintrin.h>
#include <x86intrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr int queries = 64, blocks = 8, block = 32;
using Maxima = std::vector<int32_t>;  // [blocks][queries]

struct Data {
  int rank;
  std::vector<int8_t> keys, q8, q4;  // [blocks * block][rank], [queries][rank]
};

Data make(int rank) {
  std::mt19937 random(7);
  Data d{rank, {}, {}, {}};
  const auto number = [&](int most) {
    return static_cast<int8_t>(static_cast<int>(random() % (2u * most + 1)) - most);
  };
  for (int i = 0; i < blocks * block * rank; ++i) d.keys.push_back(number(7));
  for (int i = 0; i < queries * rank; ++i) d.q8.push_back(number(127)), d.q4.push_back(number(7));
  return d;
}

Maxima plain(const Data& d, const std::vector<int8_t>& q) {
  Maxima m;
  for (int b = 0; b < blocks; ++b)
    for (int i = 0; i < queries; ++i) {
      int32_t most = INT32_MIN;
      for (int j = b * block; j < (b + 1) * block; ++j) {
        int32_t sum = 0;
        for (int c = 0; c < d.rank; ++c) sum += q[i * d.rank + c] * d.keys[j * d.rank + c];
        most = std::max(most, sum);
      }
      m.push_back(most);
    }
  return m;
}

// [panel of 16][word of 4 coordinates][query]
std::vector<uint32_t> pack(const std::vector<int8_t>& q, int rank) {
  std::vector<uint32_t> to;
  for (int p = 0; p < queries; p += 16)
    for (int w = 0; w < rank / 4; ++w)
      for (int i = 0; i < 16; ++i) {
        uint32_t word;
        std::memcpy(&word, &q[(p + i) * rank + 4 * w], 4);
        to.push_back(word);
      }
  return to;
}

const __m256i* at(const void* p) { return static_cast<const __m256i*>(p); }
void put(int32_t* to, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }

struct Kernel {
  std::vector<uint32_t> q, k;
  explicit Kernel(const Data& d) : q(pack(d.q8, d.rank)), k(d.keys.size() / 4) {
    std::memcpy(k.data(), d.keys.data(), d.keys.size());
  }
  template <int rank>
  void run(int32_t* out) const {
    constexpr int words = rank / 4;
    const __m256i one = _mm256_set1_epi16(1);
    for (int b = 0; b < blocks; ++b)
      for (int p = 0; p < queries / 16; ++p) {
        __m256i top[2] = {_mm256_set1_epi32(INT32_MIN), _mm256_set1_epi32(INT32_MIN)};
        for (int j = 0; j < block; j += 4) {
          __m256i acc[4][2] = {};
          for (int w = 0; w < words; ++w)
            for (int i = 0; i < 4; ++i) {
              const __m256i a = _mm256_set1_epi32(static_cast<int>(k[(b * block + j + i) * words + w]));
              for (int h = 0; h < 2; ++h) {
                const __m256i x = _mm256_loadu_si256(at(&q[(p * words + w) * 16 + 8 * h]));
                const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(a, x));
                acc[i][h] = _mm256_add_epi32(acc[i][h], _mm256_madd_epi16(pairs, one));
              }
            }
          for (int i = 0; i < 4; ++i)
            for (int h = 0; h < 2; ++h) top[h] = _mm256_max_epi32(top[h], acc[i][h]);
        }
        put(out + b * queries + p * 16, top[0]), put(out + b * queries + p * 16 + 8, top[1]);
      }
  }
};

struct Biased {
  std::vector<uint32_t> q, k;
  std::vector<int32_t> undo;
  explicit Biased(const Data& d) : q(pack(d.q8, d.rank)), k(d.keys.size() / 4) {
    std::vector<int8_t> up = d.keys;
    for (int8_t& x : up) x = static_cast<int8_t>(x + 12);
    std::memcpy(k.data(), up.data(), up.size());
    for (int i = 0; i < queries; ++i) {
      int32_t sum = 0;
      for (int c = 0; c < d.rank; ++c) sum += d.q8[i * d.rank + c];
      undo.push_back(-12 * sum);
    }
  }
  template <int rank>
  void run(int32_t* out) const {
    constexpr int words = rank / 4, steps = 4;
    const __m256i one = _mm256_set1_epi16(1);
    for (int b = 0; b < blocks; ++b)
      for (int p = 0; p < queries / 16; ++p) {
        __m256i top[2] = {_mm256_set1_epi32(INT32_MIN), _mm256_set1_epi32(INT32_MIN)}, start[2];
        for (int h = 0; h < 2; ++h) start[h] = _mm256_loadu_si256(at(&undo[p * 16 + 8 * h]));
        for (int j = 0; j < block; j += 2) {
          __m256i acc[2][2] = {{start[0], start[1]}, {start[0], start[1]}};
          for (int first = 0; first < words; first += steps) {
            __m256i pairs[2][2] = {};
            for (int w = first; w < first + steps; ++w)
              for (int i = 0; i < 2; ++i) {
                const __m256i a = _mm256_set1_epi32(static_cast<int>(k[(b * block + j + i) * words + w]));
                for (int h = 0; h < 2; ++h) {
                  const __m256i x = _mm256_loadu_si256(at(&q[(p * words + w) * 16 + 8 * h]));
                  pairs[i][h] = _mm256_add_epi16(pairs[i][h], _mm256_maddubs_epi16(a, x));
                }
              }
            for (int i = 0; i < 2; ++i)
              for (int h = 0; h < 2; ++h) acc[i][h] = _mm256_add_epi32(acc[i][h], _mm256_madd_epi16(pairs[i][h], one));
          }
          for (int i = 0; i < 2; ++i)
            for (int h = 0; h < 2; ++h) top[h] = _mm256_max_epi32(top[h], acc[i][h]);
        }
        put(out + b * queries + p * 16, top[0]), put(out + b * queries + p * 16 + 8, top[1]);
      }
  }
};

int32_t largest(__m256i x) {
  int16_t v[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(v), x);
  return *std::max_element(v, v + 16);
}

// Bit planes: [block][plane][group of four coordinates][key], an index a byte. Tables: [query][group][16].
struct Tables {
  std::vector<uint8_t> index, low, high;
  explicit Tables(const Data& d, bool wide) {
    const int groups = d.rank / 4;
    for (int b = 0; b < blocks; ++b)
      for (int plane = 0; plane < 4; ++plane)
        for (int g = 0; g < groups; ++g)
          for (int j = 0; j < block; ++j) {
            int bits = 0;
            for (int c = 0; c < 4; ++c) bits |= (d.keys[(b * block + j) * d.rank + 4 * g + c] >> plane & 1) << c;
            index.push_back(static_cast<uint8_t>(bits));
          }
    const std::vector<int8_t>& q = wide ? d.q8 : d.q4;
    for (int i = 0; i < queries; ++i)
      for (int g = 0; g < groups; ++g)
        for (int bits = 0; bits < 16; ++bits) {
          int sum = 0;
          for (int c = 0; c < 4; ++c) sum += (bits >> c & 1) * q[i * d.rank + 4 * g + c];
          // Never negative: 28, or 512 = 8 * 64, more. The low part has 6 bits, so that four sums fit a byte.
          sum += wide ? 512 : 28;
          low.push_back(static_cast<uint8_t>(wide ? sum & 63 : sum));
          high.push_back(static_cast<uint8_t>(wide ? sum >> 6 : 0));
        }
  }
  // One plane of one query's products with 32 keys, added to 16-bit sums.
  template <int rank, int n>
  static void plane(const uint8_t* index, const uint8_t* tables, __m256i (*sums)[2]) {
    constexpr int groups = rank / 4;
    const __m256i zero = _mm256_setzero_si256();
    for (int first = 0; first < groups; first += 4) {
      __m256i bytes[n] = {};
      for (int g = first; g < first + 4; ++g) {
        const __m256i keys = _mm256_loadu_si256(at(index + g * block));
        for (int i = 0; i < n; ++i) {
          const auto* table = reinterpret_cast<const __m128i*>(tables + (i * groups + g) * 16);
          bytes[i] = _mm256_add_epi8(bytes[i], _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(*table), keys));
        }
      }
      for (int i = 0; i < n; ++i) {
        sums[i][0] = _mm256_add_epi16(sums[i][0], _mm256_unpacklo_epi8(bytes[i], zero));
        sums[i][1] = _mm256_add_epi16(sums[i][1], _mm256_unpackhi_epi8(bytes[i], zero));
      }
    }
  }
  template <int rank, int n>
  static void products(const uint8_t* index, const uint8_t* tables, __m256i (*acc)[2]) {
    constexpr int groups = rank / 4;
    for (int i = 0; i < n; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
    for (int p = 3; p >= 0; --p) {
      for (int i = 0; i < n; ++i)
        for (int h = 0; h < 2; ++h)  // the top plane counts negative
          acc[i][h] = p == 2 ? _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_add_epi16(acc[i][h], acc[i][h]))
                             : _mm256_add_epi16(acc[i][h], acc[i][h]);
      plane<rank, n>(index + p * groups * block, tables, acc);
    }
  }
};

struct Tables4 : Tables {
  explicit Tables4(const Data& d) : Tables(d, false) {}
  template <int rank>
  void run(int32_t* out) const {
    constexpr int groups = rank / 4, n = 4;
    for (int b = 0; b < blocks; ++b)
      for (int i = 0; i < queries; i += n) {
        __m256i acc[n][2];
        products<rank, n>(index.data() + b * 4 * groups * block, low.data() + i * groups * 16, acc);
        // Every look-up had 28 more, weighed -8 + 4 + 2 + 1.
        for (int e = 0; e < n; ++e)
          out[b * queries + i + e] = largest(_mm256_max_epi16(acc[e][0], acc[e][1])) + 28 * groups;
      }
  }
};

struct Tables8 : Tables {
  explicit Tables8(const Data& d) : Tables(d, true) {}
  template <int rank>
  void run(int32_t* out) const {
    constexpr int groups = rank / 4, n = 4;
    const __m256i weights = _mm256_set1_epi32((64 << 16) | 1);  // of high and low
    for (int b = 0; b < blocks; ++b)
      for (int i = 0; i < queries; i += n) {
        __m256i lows[n][2], highs[n][2];
        const uint8_t* keys = index.data() + b * 4 * groups * block;
        products<rank, n>(keys, low.data() + i * groups * 16, lows);
        products<rank, n>(keys, high.data() + i * groups * 16, highs);
        for (int e = 0; e < n; ++e) {
          __m256i top = _mm256_set1_epi32(INT32_MIN);
          for (int h = 0; h < 2; ++h)
            for (const __m256i x :
                 {_mm256_unpacklo_epi16(lows[e][h], highs[e][h]), _mm256_unpackhi_epi16(lows[e][h], highs[e][h])})
              top = _mm256_max_epi32(top, _mm256_madd_epi16(x, weights));
          int32_t v[8];
          put(v, top);
          out[b * queries + i + e] = *std::max_element(v, v + 8) + 512 * groups;
        }
      }
  }
};

template <int rank, class Way>
void measure(const char* name, const Data& d, const std::vector<int8_t>& q) {
  const Way way(d);
  Maxima out(blocks * queries);
  way.template run<rank>(out.data());
  if (out != plain(d, q)) {
    std::printf("%s, rank %d: wrong\n", name, rank);
    std::exit(1);
  }
  uint64_t least = UINT64_MAX;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t begin = __rdtsc();
    way.template run<rank>(out.data());
    least = std::min<uint64_t>(least, __rdtsc() - begin);
  }
  std::printf("| %d | %s | %.2f |\n", rank, name, static_cast<double>(least) / (blocks * block * queries));
}

template <int rank>
void measure_all() {
  const Data d = make(rank);
  measure<rank, Kernel>("kernel", d, d.q8);
  measure<rank, Biased>("biased", d, d.q8);
  measure<rank, Tables4>("tables4", d, d.q4);
  measure<rank, Tables8>("tables8", d, d.q8);
}

}  // namespace

int main() {
  std::printf("| rank | way | cycles of the time-stamp counter a score |\n|---|---|---|\n");
  measure_all<32>();
  measure_all<64>();
}
