#include "calibration/allocation.hpp"

#include <cmath>

#include "sale/calibration.h"

namespace sale::calibration {
namespace {

constexpr double most_of_own_output = 4;  // times the budget
constexpr double no_limit = 1e30;

float ladder_tau(double i) { return i == 0 ? 0.0f : static_cast<float>(std::exp2(i - 14)); }

// The multiplier between what is too small and what is not, or too large and not, on a scale of its powers.
template <class High>
double search(bool take_high, High&& is_high) {
  double low = 1e-6, high = 1e12;
  for (int i = 0; i < 100; ++i) {
    const double middle = std::sqrt(low * high);
    (is_high(middle) ? high : low) = middle;
  }
  return take_high ? high : low;
}

}  // namespace

Tries ladder(size_t heads, bool local) {
  Tries tries;
  for (int i = 0; i < ladder_points; ++i) tries.emplace_back(heads, ladder_tau(i));
  if (local) tries.emplace_back(heads, SALE_TAU_LOCAL);
  return tries;
}

Allocation::Allocation(const Measured& m) : cost_(m.cost), rows_(m.rows_of_blocks) {
  double dense = 0;
  for (size_t h = 0; h < m.of.front().size(); ++h) {
    const auto point = [&](int i) -> const Point& { return m.of[static_cast<size_t>(i)][h]; };
    const auto choice = [](float tau, const Point& p) {
      return Choice{tau, p.error, p.relative, static_cast<double>(p.kept)};
    };
    Curve curve{choice(0, point(0))};
    for (int i = 1; i + 1 < ladder_points; ++i)
      for (int f = 0; f < fineness; ++f) {
        const double t = static_cast<double>(f) / fineness;
        const Choice a = choice(0, point(i)), b = choice(0, point(i + 1));
        curve.push_back({ladder_tau(i + t), a.error + t * (b.error - a.error),
                         a.relative + t * (b.relative - a.relative), a.kept + t * (b.kept - a.kept)});
      }
    curve.push_back(choice(ladder_tau(ladder_points - 1), point(ladder_points - 1)));
    if (m.of.size() > ladder_points) curve.push_back(choice(SALE_TAU_LOCAL, point(ladder_points)));
    dense += curve.front().kept;
    curves_.push_back(std::move(curve));
  }
  block_ = static_cast<double>(curves_.size()) / std::max(dense, 1.0);
}

std::vector<float> Allocation::each_within(double error) const {
  std::vector<int> chosen;
  for (const Curve& c : curves_) {
    // The worst error up to each threshold ascends, so that halves can be told apart.
    std::vector<double> worst;
    for (const Choice& x : c) worst.push_back(std::max(x.relative, worst.empty() ? 0 : worst.back()));
    size_t good = 0, bad = c.size();
    while (bad - good > 1) {
      const size_t middle = (good + bad) / 2;
      (worst[middle] <= error ? good : bad) = middle;
    }
    chosen.push_back(static_cast<int>(good));
  }
  return taus(chosen);
}

// The best choice of every head for this multiplier.
std::vector<int> Allocation::choose(double multiplier, double most_relative, double most_local) const {
  std::vector<int> chosen;
  for (const Curve& c : curves_) {
    size_t best = 0;
    const auto price = [&](size_t i) { return block_ * c[i].kept + multiplier * c[i].error * c[i].error; };
    for (size_t i = 1; i < c.size(); ++i) {
      const bool local = c[i].tau == SALE_TAU_LOCAL;  // at the same price the better one: nothing of it is scanned
      if (c[i].relative > (local ? most_local : most_relative)) continue;
      if (price(i) < price(best) || (local && price(i) == price(best))) best = i;
    }
    chosen.push_back(static_cast<int>(best));
  }
  return chosen;
}

std::vector<float> Allocation::within_budget(double budget) const {
  const auto chosen = [&](double m) { return choose(m, most_of_own_output * budget, budget); };
  return taus(chosen(search(true, [&](double m) { return rms_error(chosen(m)) <= budget; })));
}

std::vector<float> Allocation::within_time(double share) const {
  // Time grows with the multiplier: the last that is within is just below the first that is not.
  const double limit = share * dense_seconds();
  const auto chosen = [&](double m) { return choose(m, no_limit, no_limit); };
  return taus(chosen(search(false, [&](double m) { return seconds(kept(chosen(m))) > limit; })));
}

double Allocation::dense_seconds() const { return seconds(kept(std::vector<int>(curves_.size(), 0))); }

double Allocation::rms_error(const std::vector<int>& chosen) const {
  double sum = 0;
  for (size_t h = 0; h < curves_.size(); ++h) sum += std::pow(curves_[h][static_cast<size_t>(chosen[h])].error, 2);
  return std::sqrt(sum / static_cast<double>(curves_.size()));
}

double Allocation::kept(const std::vector<int>& chosen) const {
  double sum = 0;
  for (size_t h = 0; h < curves_.size(); ++h) sum += curves_[h][static_cast<size_t>(chosen[h])].kept;
  return sum;
}

std::vector<float> Allocation::taus(const std::vector<int>& chosen) const {
  std::vector<float> t(curves_.size());
  for (size_t h = 0; h < curves_.size(); ++h) t[h] = curves_[h][static_cast<size_t>(chosen[h])].tau;
  return t;
}

}  // namespace sale::calibration
