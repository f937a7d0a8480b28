// Section 6 of docs/numerics.md: what attention multiplies. Codes and means to the bit.
#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle.hpp"

namespace sale_oracle {
namespace {

// x coded with 127 steps over its largest number; NaN when anything is not finite.
void through_int8(float* x, int64_t n) {
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  const float factor = 127.0f / largest;
  for (int64_t i = 0; i < n; ++i) {
    if (!finite) {
      x[i] = std::numeric_limits<float>::quiet_NaN();
    } else {
      x[i] = largest < 0x1p-100f ? 0.0f : std::nearbyint(x[i] * factor);
    }
  }
}

float int8_scale(const float* x, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest / 127.0f;
}

// Coded with a scale for every group of rows, and decoded.
std::vector<double> int8_rows(Floats x, int64_t rows, int64_t d, int64_t group) {
  std::vector<double> decoded;
  for (int64_t r = 0; r < rows; r += group) {
    float* at = x.data() + r * d;
    const int64_t n = std::min(group, rows - r) * d;
    const double scale = double{int8_scale(at, n)};
    through_int8(at, n);
    for (int64_t i = 0; i < n; ++i) decoded.push_back(double{at[i]} * scale);
  }
  return decoded;
}

Floats less(Floats x, const Floats& shift) {
  for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] - shift[i % shift.size()];
  return x;
}

Floats largest_of_columns(const Floats& x, int64_t d) {
  Floats most(static_cast<size_t>(d), 0.0f);
  for (size_t i = 0; i < x.size(); ++i)
    if (std::isfinite(x[i])) most[i % most.size()] = std::max(most[i % most.size()], std::fabs(x[i]));
  return most;
}

// Through e4m3 or f16 with a scale for every column.
std::vector<double> coded_columns(const Floats& x, const Floats& most, sale_compute compute) {
  const bool fp8 = compute == SALE_COMPUTE_FP8;
  const float coded = fp8 ? 448.0f : 1.0f;  // of the largest
  std::vector<double> decoded;
  for (size_t i = 0; i < x.size(); ++i) {
    const float largest = most[i % most.size()], factor = largest < 0x1p-100f ? 0.0f : coded / largest;
    const float y = x[i] * factor;
    decoded.push_back(!std::isfinite(x[i]) ? std::numeric_limits<double>::quiet_NaN()
                                           : (fp8 ? from_e4m3(to_e4m3(y)) : rounded(double{y}, SALE_F16)) *
                                                 double{largest} / double{coded});
  }
  return decoded;
}

std::vector<double> doubles(const Floats& x) { return {x.begin(), x.end()}; }

}  // namespace

double rounded(double x, sale_dtype dtype) {
  if (x == 0 || !std::isfinite(x) || dtype == SALE_F32) return x;
  const int digits = dtype == SALE_BF16 ? 8 : 11, least = dtype == SALE_BF16 ? -133 : -24;
  int e;
  std::frexp(x, &e);
  const int last = std::max(e - digits, least);
  return std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
}

Floats block_means(const Floats& x, int64_t rows, int64_t d, sale_dtype dtype) {
  Floats means;
  const int64_t parts = d > 64 ? 2 : 4;
  for (int64_t first = 0; first < rows; first += block_keys)
    for (int64_t c = 0; c < d; ++c) {
      const int64_t present = std::min(block_keys, rows - first);
      float part[4] = {0, 0, 0, 0};
      for (int64_t r = 0; r < present; ++r) part[r % parts] += x[static_cast<size_t>((first + r) * d + c)];
      const float sum = (part[0] + part[1]) + (part[2] + part[3]), mean = sum / static_cast<float>(present);
      means.push_back(std::isfinite(mean) ? static_cast<float>(rounded(double{mean}, dtype)) : 0.0f);
    }
  return means;
}

Operands operands(const Head& h, const Form& form) {
  Operands x;
  Floats k_means, v_means;
  if (form.compensate) {
    k_means = block_means(h.k, h.k_len, h.d, form.dtype);
    v_means = block_means(h.v, h.k_len, h.d, form.dtype);
  }
  if (form.compute == SALE_COMPUTE_EXACT)
    return {doubles(h.q), doubles(h.k), doubles(h.v), doubles(k_means), doubles(v_means), {}, {}};
  x.smoothing = mean(h.k, h.k_len, h.d);
  if (form.compute != SALE_COMPUTE_INT8)
    for (float& m : x.smoothing) m = std::isfinite(m) ? m : 0.0f;
  x.q = int8_rows(h.q, h.q_len, h.d, 1);
  x.k = int8_rows(less(h.k, x.smoothing), h.k_len, h.d, block_keys);
  const auto blocks = static_cast<int64_t>(k_means.size()) / h.d;
  x.k_means = int8_rows(less(k_means, x.smoothing), blocks, h.d, block_keys);
  if (form.compute == SALE_COMPUTE_INT8) {
    x.v = doubles(h.v);
    x.v_means = doubles(v_means);
    return x;
  }
  x.most = largest_of_columns(h.v, h.d);
  x.v = coded_columns(h.v, x.most, form.compute);
  x.v_means = coded_columns(v_means, x.most, form.compute);
  return x;
}

}  // namespace sale_oracle
