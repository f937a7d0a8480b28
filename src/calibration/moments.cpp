#include "calibration/moments.hpp"

#include <Eigen/Eigenvalues>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <cstring>

#include "calibration/numbers.hpp"

namespace sale::calibration {
namespace {

constexpr int64_t slab = 1024;  // rows multiplied at once
constexpr double ridge = 1e-5;  // of the largest eigenvalue, added to all

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Square = Eigen::Map<Eigen::MatrixXd>;
using ConstSquare = Eigen::Map<const Eigen::MatrixXd>;

// One head of a tensor.
struct Head {
  const Tensor& tensor;
  sale_dtype type;
  int64_t number, tokens;
  int32_t dim;

  Rows load(int64_t first, int64_t rows) const {
    Rows x(rows, dim);
    with_type(type, tensor.data, [&](const auto* from) {
      from += number * tensor.strides.head + first * tensor.strides.token;
      for (int64_t r = 0; r < rows; ++r)
        for (int32_t c = 0; c < dim; ++c) x(r, c) = from[r * tensor.strides.token + c];
    });
    return x;
  }
  template <class F>
  void slabs(F&& f) const {
    for (int64_t r = 0; r < tokens; r += slab) f(load(r, std::min(slab, tokens - r)));
  }
};

Eigen::RowVectorXf mean_of(const Head& head) {
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(head.dim);
  head.slabs([&](const Rows& x) { sum += x.cast<double>().colwise().sum(); });
  return (sum / static_cast<double>(head.tokens)).cast<float>();
}

// Sum of x x' over the rows, less `mean`.
void add_products(const Head& head, const Eigen::RowVectorXf& mean, std::vector<double>& to) {
  Square sum(to.data(), head.dim, head.dim);
  head.slabs([&](Rows x) {
    x.rowwise() -= mean;
    sum += (x.transpose() * x).cast<double>();
  });
}

bool finite(const std::vector<double>& all) {
  return std::all_of(all.begin(), all.end(), [](double x) { return std::isfinite(x); });
}

struct Root {
  Eigen::MatrixXd root, inverse;
};

Root root_of(const Eigen::MatrixXd& c) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(c);
  const double top = std::max(solver.eigenvalues().maxCoeff(), 1e-30);
  const Eigen::ArrayXd roots = (solver.eigenvalues().array().max(0.0) + ridge * top).sqrt();
  const Eigen::MatrixXd& v = solver.eigenvectors();
  return {v * roots.matrix().asDiagonal() * v.transpose(), v * roots.inverse().matrix().asDiagonal() * v.transpose()};
}

void append(const Eigen::MatrixXd& m, std::vector<float>& to) {
  for (Eigen::Index r = 0; r < m.rows(); ++r)
    for (Eigen::Index c = 0; c < m.cols(); ++c) to.push_back(static_cast<float>(m(r, c)));
}

size_t place(int32_t row, int32_t column, int32_t columns) {
  return static_cast<size_t>(row) * static_cast<size_t>(columns) + static_cast<size_t>(column);
}

// A symmetric matrix as text: the bits of its lower half (all that is read of it) in hexadecimal. Exact, and no number
// to parse.
std::string packed(const std::vector<double>& square, int32_t dim) {
  std::string text;
  text.reserve(static_cast<size_t>(dim) * static_cast<size_t>(dim + 1) * 8);
  for (int32_t r = 0; r < dim; ++r)
    for (int32_t c = 0; c <= r; ++c) text += hex64(std::bit_cast<uint64_t>(square[place(c, r, dim)]));
  return text;
}

void unpack(const std::string& text, int32_t dim, std::vector<double>& square) {
  require(text.size() == static_cast<size_t>(dim) * static_cast<size_t>(dim + 1) * 8, "progress: a matrix has ",
          text.size(), " digits; it is not of this model");
  size_t at = 0;
  for (int32_t r = 0; r < dim; ++r)
    for (int32_t c = 0; c <= r; ++c, at += 16)
      square[place(r, c, dim)] = square[place(c, r, dim)] =
          std::bit_cast<double>(std::stoull(text.substr(at, 16), nullptr, 16));
}

}  // namespace

Moments::Moments(const Shape& shape) : shape_(shape) {
  const std::vector<double> zero(static_cast<size_t>(shape.head_dim) * static_cast<size_t>(shape.head_dim));
  sums_.assign(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.kv_heads),
               Sums{std::vector<double>(static_cast<size_t>(shape.head_dim)), zero, zero, 0, 0});
}

void Moments::see(const Layer& layer, ThreadPool& pool) {
  const Shape& s = shape_;
  const auto d = static_cast<size_t>(s.head_dim);
  std::vector<Sums> fresh(static_cast<size_t>(s.kv_heads));  // taken when all of them are good
  share_out(pool, s.kv_heads, [&](int64_t kv, int) {
    Sums& sums = fresh[static_cast<size_t>(kv)];
    sums.keys.resize(d * d), sums.queries.resize(d * d);
    const Head keys{layer.k, s.dtype, kv, layer.tokens, s.head_dim};
    const Eigen::RowVectorXf mean = mean_of(keys);
    add_products(keys, mean, sums.keys);
    sums.key_count = static_cast<double>(layer.tokens);
    for (const float x : mean) sums.mean.push_back(double{x} * sums.key_count);
    const Eigen::RowVectorXf zero = Eigen::RowVectorXf::Zero(s.head_dim);
    for (int64_t h = kv * s.group(); h < (kv + 1) * s.group(); ++h) {
      add_products({layer.q, s.dtype, h, layer.tokens, s.head_dim}, zero, sums.queries);
      sums.query_count += static_cast<double>(layer.tokens);
    }
    require(finite(sums.keys) && finite(sums.queries), "layer ", layer.number, ": ",
            finite(sums.keys) ? "a query of kv head " : "a key of kv head ", kv,
            " is not finite; q and k of finite numbers are needed");
  });
  const auto first = static_cast<ptrdiff_t>(static_cast<size_t>(layer.number) * fresh.size());
  std::move(fresh.begin(), fresh.end(), sums_.begin() + first);
}

void Moments::add(const Moments& other) {
  for (size_t i = 0; i < sums_.size(); ++i) {
    Sums& to = sums_[i];
    const Sums& from = other.sums_[i];
    for (size_t e = 0; e < to.mean.size(); ++e) to.mean[e] += from.mean[e];
    for (size_t e = 0; e < to.keys.size(); ++e) to.keys[e] += from.keys[e], to.queries[e] += from.queries[e];
    to.key_count += from.key_count, to.query_count += from.query_count;
  }
}

void Moments::smoothing(int32_t layer, std::vector<float>& to) const {
  for (int32_t kv = 0; kv < shape_.kv_heads; ++kv) {
    const Sums& s = sums_[place(layer, kv, shape_.kv_heads)];
    for (const double x : s.mean) to.push_back(static_cast<float>(x / s.key_count));
  }
}

void Moments::scales(int32_t layer, int32_t rank, const std::vector<float>& k_projections,
                     std::vector<float>& to) const {
  constexpr double reach = 6.0 / 112, least = 1e-30;  // least: of keys that are all alike
  const int32_t d = shape_.head_dim;
  for (int32_t kv = 0; kv < shape_.kv_heads; ++kv) {
    const Sums& s = sums_[place(layer, kv, shape_.kv_heads)];
    const Eigen::MatrixXd c = ConstSquare(s.keys.data(), d, d) / s.key_count;
    double most = c.diagonal().maxCoeff();
    if (!k_projections.empty()) {
      const float* at = k_projections.data() + place(layer, kv, shape_.kv_heads) * place(d, 0, rank);
      const Eigen::MatrixXd b = Eigen::Map<const Rows>(at, d, rank).cast<double>();
      most = (b.transpose() * c * b).diagonal().maxCoeff();
    }
    to.push_back(static_cast<float>(std::max(std::sqrt(std::max(most, 0.0)) * reach, least)));
  }
}

double Moments::projections(int32_t layer, int32_t rank, std::vector<float>& q, std::vector<float>& k) const {
  double lost = 0;
  const int32_t d = shape_.head_dim;
  for (int32_t kv = 0; kv < shape_.kv_heads; ++kv) {
    const Sums& s = sums_[place(layer, kv, shape_.kv_heads)];
    const Root keys = root_of(ConstSquare(s.keys.data(), d, d) / s.key_count);
    const Root queries = root_of(ConstSquare(s.queries.data(), d, d) / s.query_count);
    // A square matrix needs no QR first, and without it this is a fraction of the code that BDCSVD makes of itself.
    const Eigen::JacobiSVD<Eigen::MatrixXd, Eigen::NoQRPreconditioner> svd(queries.root * keys.root,
                                                                           Eigen::ComputeFullU | Eigen::ComputeFullV);
    const Eigen::VectorXd& values = svd.singularValues();
    const Eigen::VectorXd half = values.head(rank).cwiseSqrt();
    append(queries.inverse * svd.matrixU().leftCols(rank) * half.asDiagonal(), q);
    append(keys.inverse * svd.matrixV().leftCols(rank) * half.asDiagonal(), k);
    const double whole = values.squaredNorm();
    lost += whole > 0 ? values.tail(values.size() - rank).squaredNorm() / whole : 0;
  }
  return lost / shape_.kv_heads;
}

Json Moments::json() const {
  Json all = Json::array();
  for (const Sums& s : sums_)
    all.push_back(
        {packed(s.keys, shape_.head_dim), packed(s.queries, shape_.head_dim), s.key_count, s.query_count, s.mean});
  return all;
}

Moments Moments::of(const Shape& shape, const Json& json) {
  Moments m(shape);
  require(json.size() == m.sums_.size(), "progress: moments of ", json.size(), " heads; it is not of this model");
  for (size_t i = 0; i < m.sums_.size(); ++i) {
    unpack(json.at(i).at(0).get<std::string>(), shape.head_dim, m.sums_[i].keys);
    unpack(json.at(i).at(1).get<std::string>(), shape.head_dim, m.sums_[i].queries);
    json.at(i).at(2).get_to(m.sums_[i].key_count), json.at(i).at(3).get_to(m.sums_[i].query_count);
    json.at(i).at(4).get_to(m.sums_[i].mean);
    require(m.sums_[i].mean.size() == static_cast<size_t>(shape.head_dim), "progress: a mean of ",
            m.sums_[i].mean.size(), " coordinates; it is not of this model");
  }
  return m;
}

}  // namespace sale::calibration
