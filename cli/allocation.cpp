#include "allocation.hpp"

#include <cmath>

namespace sale::cli {
namespace {

constexpr double most_of_own_output = 4;  // times the budget

float grid_tau(double i) { return i == 0 ? 0.0f : static_cast<float>(std::exp2(i - 14)); }

}  // namespace

Sweep::Tries sweep_tries(size_t heads) {
  Sweep::Tries tries;
  for (int i = 0; i < sweep_points; ++i) tries.emplace_back(heads, grid_tau(i));
  return tries;
}

Allocation::Allocation(const Measured& m) : cost_(m.cost), rows_(m.rows_of_blocks) {
  for (size_t h = 0; h < m.tries.front().size(); ++h) {
    const auto point = [&](int i) -> const Point& { return m.tries[static_cast<size_t>(i)][h]; };
    const auto choice = [](float tau, const Point& p) {
      return Choice{tau, p.error, p.relative, static_cast<double>(p.kept)};
    };
    Curve curve{choice(0, point(0))};
    for (int i = 1; i + 1 < sweep_points; ++i)
      for (int f = 0; f < fineness; ++f) {
        const double t = static_cast<double>(f) / fineness;
        const Choice a = choice(0, point(i)), b = choice(0, point(i + 1));
        curve.push_back({grid_tau(i + t), a.error + t * (b.error - a.error), a.relative + t * (b.relative - a.relative),
                         a.kept + t * (b.kept - a.kept)});
      }
    curve.push_back(choice(grid_tau(sweep_points - 1), point(sweep_points - 1)));
    curves_.push_back(std::move(curve));
  }
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
std::vector<int> Allocation::choose(double multiplier, double most_relative) const {
  std::vector<int> chosen;
  const double block = std::max(cost_.per_block(), 1e-15) * static_cast<double>(curves_.size()) / dense_seconds();
  for (const Curve& c : curves_) {
    size_t best = 0;
    const auto price = [&](size_t i) { return block * c[i].kept + multiplier * c[i].error * c[i].error; };
    for (size_t i = 1; i < c.size(); ++i)
      if (c[i].relative <= most_relative && price(i) < price(best)) best = i;
    chosen.push_back(static_cast<int>(best));
  }
  return chosen;
}

// The smallest multiplier that is good; good ones are above it.
template <class Good>
std::vector<float> Allocation::search(Good&& good, double most_relative) const {
  double low = 1e-6, high = 1e12;
  for (int i = 0; i < 100; ++i) {
    const double middle = std::sqrt(low * high);
    (good(choose(middle, most_relative)) ? high : low) = middle;
  }
  return taus(choose(high, most_relative));
}

std::vector<float> Allocation::within_budget(double budget) const {
  return search([&](const std::vector<int>& c) { return rms_error(c) <= budget; }, most_of_own_output * budget);
}

std::vector<float> Allocation::within_time(double share) const {
  // Time grows with the multiplier: the last that is within is just below the first that is not.
  const double limit = share * dense_seconds(), no_limit = 1e30;
  double low = 1e-6, high = 1e12;
  for (int i = 0; i < 100; ++i) {
    const double middle = std::sqrt(low * high);
    (seconds(kept(choose(middle, no_limit))) <= limit ? low : high) = middle;
  }
  return taus(choose(low, no_limit));
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
  std::vector<float> t;
  for (size_t h = 0; h < curves_.size(); ++h) t.push_back(curves_[h][static_cast<size_t>(chosen[h])].tau);
  return t;
}

}  // namespace sale::cli
