#include "calibration/measured.hpp"

namespace sale::calibration {

void Cost::add(double rows, double kept, double seconds) {
  rr_ += rows * rows, rk_ += rows * kept, kk_ += kept * kept, rs_ += rows * seconds, ks_ += kept * seconds;
}
void Cost::add(const Cost& o) { rr_ += o.rr_, rk_ += o.rk_, kk_ += o.kk_, rs_ += o.rs_, ks_ += o.ks_; }

Cost Cost::of(const Json& j) {
  Cost c;
  c.rr_ = j.at(0), c.rk_ = j.at(1), c.kk_ = j.at(2), c.rs_ = j.at(3), c.ks_ = j.at(4);
  return c;
}

std::pair<double, double> Cost::solve() const {
  const double determinant = rr_ * kk_ - rk_ * rk_;
  if (!(determinant > 1e-9 * rr_ * kk_)) return {0, kk_ > 0 ? ks_ / kk_ : 0};
  const double a = (rs_ * kk_ - ks_ * rk_) / determinant, b = (ks_ * rr_ - rs_ * rk_) / determinant;
  // A negative share would be noise of the clock.
  if (a < 0) return {0, ks_ / kk_};
  if (b < 0) return {rs_ / rr_, 0};
  return {a, b};
}

void Measured::add(const Measured& other) {
  if (of.empty()) of.resize(other.of.size(), Points(other.of.empty() ? 0 : other.of.front().size()));
  for (size_t t = 0; t < of.size(); ++t)
    for (size_t h = 0; h < of[t].size(); ++h) {
      Point& to = of[t][h];
      const Point& p = other.of.at(t).at(h);
      to = {std::max(to.error, p.error), std::max(to.relative, p.relative), to.mass + p.mass, to.kept + p.kept,
            to.visible + p.visible};
    }
  cost.add(other.cost);
  rows_of_blocks += other.rows_of_blocks;
  prompts += other.prompts;
}

Json Measured::json() const {
  Json tries = Json::array();
  for (const Points& points : of) {
    Json heads = Json::array();
    for (const Point& p : points) heads.push_back({p.error, p.relative, p.mass, p.kept, p.visible});
    tries.push_back(heads);
  }
  return {{"tries", tries}, {"cost", cost.json()}, {"rows_of_blocks", rows_of_blocks}, {"prompts", prompts}};
}

Measured Measured::from(const Json& j) {
  Measured m;
  for (const Json& heads : j.at("tries")) {
    m.of.emplace_back();
    for (const Json& p : heads) m.of.back().push_back({p.at(0), p.at(1), p.at(2), p.at(3), p.at(4)});
  }
  m.cost = Cost::of(j.at("cost"));
  j.at("rows_of_blocks").get_to(m.rows_of_blocks), j.at("prompts").get_to(m.prompts);
  return m;
}

}  // namespace sale::calibration
