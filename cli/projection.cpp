#include "projection.hpp"

#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

#include "lm/bf16.hpp"
#include "lm/workers.hpp"

namespace sale::cli {
namespace {

constexpr int64_t slab = 1024;  // rows multiplied at once
constexpr double ridge = 1e-5;  // of the largest eigenvalue, added to all

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Rows load(const uint16_t* from, int64_t stride, int64_t rows, int dim) {
  Rows x(rows, dim);
  for (int64_t r = 0; r < rows; ++r)
    for (int c = 0; c < dim; ++c) x(r, c) = lm::from_bf16(from[r * stride + c]);
  return x;
}

// Sum of x x' over the rows, less `mean`.
void add_products(const uint16_t* from, int64_t stride, int64_t rows, const Eigen::RowVectorXf& mean,
                  Eigen::MatrixXd& to) {
  const auto dim = static_cast<int>(mean.size());
  for (int64_t r = 0; r < rows; r += slab) {
    Rows x = load(from + r * stride, stride, std::min(slab, rows - r), dim);
    x.rowwise() -= mean;
    to += (x.transpose() * x).cast<double>();
  }
}

Eigen::RowVectorXf mean_of(const uint16_t* from, int64_t stride, int64_t rows, int dim) {
  Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(dim);
  for (int64_t r = 0; r < rows; r += slab)
    sum += load(from + r * stride, stride, std::min(slab, rows - r), dim).cast<double>().colwise().sum();
  return (sum / static_cast<double>(rows)).cast<float>();
}

struct Root {
  Eigen::MatrixXd root, inverse;
};

Root root_of(Eigen::MatrixXd c) {
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

}  // namespace

Covariances::Covariances(const lm::Config& config, AttentionSettings dense, int64_t capacity, int threads)
    : dense_(config, std::move(dense), capacity),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      threads_(threads) {
  const Eigen::MatrixXd zero = Eigen::MatrixXd::Zero(head_dim_, head_dim_);
  sums_.assign(static_cast<size_t>(config.layers * config.kv_heads), Sums{zero, zero, 0, 0});
}

void Covariances::run(const lm::AttentionCall& call) {
  dense_.run(call);
  const int group = call.q_heads / call.kv_heads;
  lm::for_each_index(threads_, call.kv_heads, [&](int64_t kv, int) {
    Sums& s = sums_[static_cast<size_t>(call.layer * kv_heads_ + kv)];
    const uint16_t* keys = call.k + kv * call.kv_head_stride;
    add_products(keys, call.kv_token_stride, call.k_len, mean_of(keys, call.kv_token_stride, call.k_len, head_dim_),
                 s.keys);
    s.key_count += static_cast<double>(call.k_len);
    const Eigen::RowVectorXf zero = Eigen::RowVectorXf::Zero(head_dim_);
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      add_products(call.q + h * call.q_head_stride, call.q_token_stride, call.q_len, zero, s.queries);
      s.query_count += static_cast<double>(call.q_len);
    }
  });
}

double Covariances::projections(int layer, int rank, std::vector<float>& q, std::vector<float>& k) const {
  double lost = 0;
  for (int kv = 0; kv < kv_heads_; ++kv) {
    const Sums& s = at(layer, kv);
    const Root keys = root_of(s.keys / s.key_count), queries = root_of(s.queries / s.query_count);
    // A square matrix needs no QR first, and without it this is a fraction of the code that BDCSVD makes of itself.
    const Eigen::JacobiSVD<Eigen::MatrixXd, Eigen::NoQRPreconditioner> svd(queries.root * keys.root,
                                                                           Eigen::ComputeFullU | Eigen::ComputeFullV);
    const Eigen::VectorXd values = svd.singularValues();
    const Eigen::VectorXd half = values.head(rank).cwiseSqrt();
    append(queries.inverse * svd.matrixU().leftCols(rank) * half.asDiagonal(), q);
    append(keys.inverse * svd.matrixV().leftCols(rank) * half.asDiagonal(), k);
    lost += values.tail(values.size() - rank).squaredNorm() / values.squaredNorm();
  }
  return lost / kv_heads_;
}

}  // namespace sale::cli
