// Rows of a served call computed again in double precision over every key they see: what the selection left out.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attend.hpp"
#include "serve.hpp"

namespace sale::ggml {
namespace {

void widen(const Stored& from, int64_t cell, int32_t head, std::vector<char>& room, std::vector<float>& to) {
  const sale_dtype type = computed_as(from.type);
  room.resize(static_cast<size_t>(from.dim) * size_of(type)), to.resize(static_cast<size_t>(from.dim));
  unpack_row(from.type, from.row(cell, head), room.data(), from.dim);
  widen_row(type, room.data(), to.data(), from.dim);
}

}  // namespace

void Attention::audit(const Stream& s, const Run& run, const std::vector<float>& lse) {
  const auto start = std::chrono::steady_clock::now();
  const Tensor& q = *s.op.src[0];
  const int64_t rows = std::min(common_.settings.audit, run.rows());
  const int32_t group = static_cast<int32_t>(q.ne[2]) / s.k.heads;
  const double scale = static_cast<double>(parameter(s.op, flash_scale));
  std::vector<char> room;
  std::vector<float> row;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t r = i * run.rows() / rows, head = i % q.ne[2];
    const int32_t kv_head = static_cast<int32_t>(head) / group;
    const auto at = [&](const Tensor& t, size_t head_stride, size_t row_stride) {
      return reinterpret_cast<const float*>(static_cast<const char*>(t.data) + static_cast<size_t>(s.number) * t.nb[3] +
                                            static_cast<size_t>(head) * head_stride +
                                            static_cast<size_t>(run.row_begin + r) * row_stride);
    };
    const float *query = at(q, q.nb[2], q.nb[1]), *out = at(s.op, s.op.nb[1], s.op.nb[2]);
    const int64_t sees = run.kind == Run::all ? run.key_count : run.first_sees + r;
    const int64_t first = run.window == 0 ? 0 : std::max<int64_t>(sees - run.window, 0);
    std::vector<double> scores(static_cast<size_t>(sees));
    double most = -INFINITY;
    each_cell(run.keys, first, sees, [&](int64_t j, int64_t cell) {
      widen(s.k, cell, kv_head, room, row);
      double sum = 0;
      for (size_t c = 0; c < row.size(); ++c) sum += static_cast<double>(query[c]) * static_cast<double>(row[c]);
      most = std::max(most, scores[static_cast<size_t>(j)] = sum * scale);
    });
    double norm = 0;
    std::vector<double> exact(static_cast<size_t>(s.v.dim));
    each_cell(run.keys, first, sees, [&](int64_t j, int64_t cell) {
      const double weight = std::exp(scores[static_cast<size_t>(j)] - most);
      norm += weight;
      widen(s.v, cell, kv_head, room, row);
      for (size_t c = 0; c < row.size(); ++c) exact[c] += weight * static_cast<double>(row[c]);
    });
    for (size_t c = 0; c < exact.size(); ++c) {
      totals_.audit_error += std::fabs(exact[c] / norm - static_cast<double>(out[c]));
      totals_.audit_norm += std::fabs(exact[c] / norm);
    }
    const double kept = static_cast<double>(lse[static_cast<size_t>(head * run.rows() + r)]);
    const double mass = std::exp(kept - (most + std::log(norm)));
    totals_.audit_mass += mass, totals_.least_mass = std::min(totals_.least_mass, mass);
    ++totals_.audited;
  }
  totals_.audit_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace sale::ggml
