// Sections 1 and 2 of docs/numerics.md: smoothing, projections, codes.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "oracle.hpp"

namespace sale_oracle {
namespace {

// The table of section 1.4, for the rows of one group; each row has `r` coordinates.
struct Group {
  float largest = 0;
  bool finite = true;
  void see(const float* y, int64_t r) {
    for (int64_t c = 0; c < r; ++c) {
      if (!std::isfinite(y[c])) finite = false;
      largest = std::max(largest, std::fabs(y[c]));
    }
  }
  float scale(float qmax) const {
    if (!finite) return std::numeric_limits<float>::quiet_NaN();
    return largest < 0x1p-100f ? 0.0f : largest / qmax;
  }
  void code(const float* y, int64_t r, float qmax, int8_t* to) const {
    const bool zero = !finite || largest < 0x1p-100f;
    const float factor = zero ? 0.0f : qmax / largest;
    for (int64_t c = 0; c < r; ++c) to[c] = zero ? int8_t{0} : static_cast<int8_t>(std::nearbyint(y[c] * factor));
  }
};

// x [d] times the projection [d, r], ascending, every product and sum rounded; without one, x itself.
void project(const float* x, int64_t d, const float* projection, int64_t r, float* y) {
  if (projection == nullptr) {
    std::copy(x, x + r, y);
    return;
  }
  for (int64_t c = 0; c < r; ++c) {
    float sum = 0;
    for (int64_t a = 0; a < d; ++a) {
      const float product = x[a] * projection[a * r + c];
      sum = sum + product;
    }
    y[c] = sum;
  }
}

}  // namespace

Floats transform_fused(const Floats& x, int64_t rows, int64_t d, const float* shift, const float* projection,
                       int64_t r) {
  if (projection == nullptr) return transform(x, rows, d, shift, nullptr, r);
  Floats y(static_cast<size_t>(rows * r), 0.0f);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t a = 0; a < d; ++a) {
      const float e = x[static_cast<size_t>(i * d + a)] - shift[a];
      for (int64_t c = 0; c < r; ++c) {
        float& to = y[static_cast<size_t>(i * r + c)];
        to = std::fma(e, projection[a * r + c], to);
      }
    }
  return y;
}

Floats transform(const Floats& x, int64_t rows, int64_t d, const float* shift, const float* projection, int64_t r) {
  Floats y(static_cast<size_t>(rows * r)), shifted(static_cast<size_t>(d));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < d; ++c) {
      const float e = x[static_cast<size_t>(i * d + c)];
      shifted[static_cast<size_t>(c)] = shift != nullptr ? e - shift[c] : e;
    }
    project(shifted.data(), d, projection, r, y.data() + i * r);
  }
  return y;
}

namespace {

// Codes of rows [0, n) of y, grouped by group_of(row).
template <class GroupOf>
Codes encode(const Floats& y, int64_t n, int64_t r, int64_t groups, float qmax, GroupOf group_of) {
  std::vector<Group> group(static_cast<size_t>(groups));
  for (int64_t i = 0; i < n; ++i) group[static_cast<size_t>(group_of(i))].see(y.data() + i * r, r);
  Codes c;
  for (const Group& g : group) c.scales.push_back(g.scale(qmax));
  c.codes.resize(static_cast<size_t>(n * r));
  for (int64_t i = 0; i < n; ++i)
    group[static_cast<size_t>(group_of(i))].code(y.data() + i * r, r, qmax, c.codes.data() + i * r);
  return c;
}

// FP4. A row's numbers in units of the scale, and its exponents.
struct Fp4Row {
  std::vector<int> codes, exponents;  // codes: place in `doubled`, negative ones with 8 added
  std::vector<int8_t> numbers;
};
constexpr std::array<int, 8> doubled{0, 1, 2, 3, 4, 6, 8, 12};
constexpr int64_t fp4_group = 32;
constexpr float fp4_levels = 96.0f;

int nearest_code(double magnitude) {
  int best = 0;
  for (int code = 1; code < 8; ++code) {
    const double here = std::fabs(magnitude - doubled[static_cast<size_t>(code)]);
    const double there = std::fabs(magnitude - doubled[static_cast<size_t>(best)]);
    if (here < there || (here == there && code % 2 == 0)) best = code;
  }
  return best;
}

// factor: units of the scale in 1.
Fp4Row fp4_row(const float* y, int64_t r, float factor) {
  Fp4Row row;
  for (int64_t first = 0; first < r; first += fp4_group) {
    const int64_t end = std::min(r, first + fp4_group);
    std::vector<float> x;
    float most = 0;
    for (int64_t c = first; c < end; ++c) {
      x.push_back(y[c] * factor);
      most = std::max(most, std::fabs(x.back()));
    }
    int exponent = 0;
    while (exponent < 3 && most > static_cast<float>(12 << exponent)) ++exponent;
    row.exponents.push_back(exponent);
    for (const float e : x) {
      const int code = nearest_code(std::ldexp(std::fabs(double{e}), -exponent));
      const int number = doubled[static_cast<size_t>(code)] << exponent;
      row.codes.push_back(e < 0 && code != 0 ? code + 8 : code);
      row.numbers.push_back(static_cast<int8_t>(e < 0 ? -number : number));
    }
  }
  return row;
}

// Rows [0, n) of y coded, a scale for every `rows` of them.
struct Fp4 {
  std::vector<Fp4Row> rows;
  Floats scales;
};
Fp4 encode_fp4(const Floats& y, int64_t n, int64_t r, int64_t rows) {
  Fp4 all;
  for (int64_t first = 0; first < n; first += rows) {
    const int64_t end = std::min(n, first + rows);
    Group group;
    for (int64_t i = first; i < end; ++i) group.see(y.data() + i * r, r);
    all.scales.push_back(group.scale(fp4_levels));
    const bool zero = !group.finite || group.largest < 0x1p-100f;
    const Floats none(static_cast<size_t>(r), 0.0f);
    for (int64_t i = first; i < end; ++i)
      all.rows.push_back(zero ? fp4_row(none.data(), r, 1.0f)
                              : fp4_row(y.data() + i * r, r, fp4_levels / group.largest));
  }
  return all;
}

Codes codes_of(const Fp4& all) {
  Codes c;
  c.scales = all.scales;
  for (const Fp4Row& row : all.rows) c.codes.insert(c.codes.end(), row.numbers.begin(), row.numbers.end());
  return c;
}

}  // namespace

std::vector<int8_t> fp4_rows(const Floats& k, int64_t k_len, int64_t d, const Floats& smoothing, const Estimator& e) {
  const Floats y = transform(k, k_len, d, smoothing.data(), e.k_projection, e.rank);
  std::vector<int8_t> bytes;
  for (const Fp4Row& row : encode_fp4(y, k_len, e.rank, block_keys).rows) {
    for (size_t c = 0; c < row.codes.size(); c += 2)
      bytes.push_back(static_cast<int8_t>(row.codes[c] | row.codes[c + 1] << 4));
    for (const int exponent : row.exponents) bytes.push_back(static_cast<int8_t>(exponent));
  }
  return bytes;
}

int64_t Head::last_row(int64_t tile) const { return std::min(q_len, (tile + 1) * tile_rows) - 1; }
int64_t Head::visible_keys(int64_t row) const { return std::min(k_len, row + q_offset + 1); }
int64_t Head::first_key(int64_t row) const {
  return window == 0 ? 0 : std::max<int64_t>(0, row + q_offset - window + 1);
}
bool Head::sees(int64_t row, int64_t key) const {
  const int64_t position = row + q_offset;
  if (key < 0 || key >= k_len || key > position) return false;
  return window == 0 || position - key < window || key < kept_sink;
}
bool Head::sees_block(int64_t tile, int64_t block, int64_t rows) const {
  for (int64_t i = tile * rows; i < std::min(q_len, (tile + 1) * rows); ++i)
    for (int64_t j = block * block_keys; j < (block + 1) * block_keys; ++j)
      if (sees(i, j)) return true;
  return false;
}
int64_t Head::visible_blocks(int64_t tile) const {
  return (visible_keys(last_row(tile)) + block_keys - 1) / block_keys;
}
int64_t Head::first_local(int64_t row, int64_t local) const {
  int64_t position = row + q_offset;
  if (reference.empty()) position = std::min(position, k_len - 1);
  return std::max<int64_t>(0, position + 1 - local) / block_keys;
}

Floats mean(const Floats& x, int64_t rows, int64_t d) {
  std::vector<double> sum(static_cast<size_t>(d), 0.0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < d; ++c) sum[static_cast<size_t>(c)] += x[static_cast<size_t>(i * d + c)];
  Floats m;
  for (double s : sum) m.push_back(static_cast<float>(s / static_cast<double>(rows)));
  return m;
}

Codes key_codes(const Floats& k, int64_t k_len, int64_t d, const Floats& smoothing, const Estimator& e) {
  const Floats y = transform(k, k_len, d, smoothing.data(), e.k_projection, e.rank);
  const int64_t blocks = (k_len + block_keys - 1) / block_keys;
  if (e.format == SALE_FP4) return codes_of(encode_fp4(y, k_len, e.rank, block_keys));
  if (e.format == SALE_INT8) return encode(y, k_len, e.rank, blocks, 127.0f, [](int64_t j) { return j / block_keys; });
  return encode(y, k_len, e.rank, blocks * 4, 7.0f, [](int64_t j) { return j / block_keys * 4 + j % 8 / 2; });
}

Codes query_codes(const Floats& q, int64_t q_len, int64_t d, const Floats& smoothing, const Estimator& e) {
  if (e.format != SALE_INT4) {
    const Floats x = transform(q, q_len, d, nullptr, e.q_projection, e.rank);
    return encode(x, q_len, e.rank, (q_len + tile_rows - 1) / tile_rows, 127.0f,
                  [](int64_t i) { return i / tile_rows; });
  }
  const Floats x = transform(q, q_len, d, smoothing.data(), e.q_projection, e.rank);
  return encode(x, q_len, e.rank, (q_len + 15) / 16 * 8, 7.0f, [](int64_t i) { return i / 16 * 8 + i % 8; });
}

}  // namespace sale_oracle
