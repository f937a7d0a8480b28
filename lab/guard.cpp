#include "lab/guard.hpp"

#include <fmt/format.h>

namespace sale::lab {
namespace {

// Level 2 is dense.
float lowered(float tau, int level) { return level == 0 ? tau : level == 1 ? tau / 8 : 0; }

}  // namespace

void Guard::apply(int layer, std::vector<float>& thresholds) const {
  for (size_t h = 0; h < thresholds.size(); ++h)
    thresholds[h] = lowered(thresholds[h], levels_[static_cast<size_t>(layer * q_heads_) + h]);
}

bool Guard::passes(int layer, int head, float tau, const sale_head_audit& audit) {
  int& level = levels_[static_cast<size_t>(layer * q_heads_ + head)];
  const double error = relative_l1(audit);
  // What is not a number is no reason: a dense head would say the same.
  if (limit_ <= 0 || tau == 0 || !(error > limit_)) return false;
  const float calibrated = level == 0 ? tau : tau * 8;
  ++level;
  steps_.push_back({layer, head, tau, error, lowered(calibrated, level)});
  return true;
}

std::string lines_of(const std::vector<GuardStep>& steps) {
  std::string text;
  for (const GuardStep& s : steps)
    text += fmt::format("guard: layer {} head {}: audited error {:.2f} % at threshold {:.3g}, {}\n", s.layer, s.head,
                        100 * s.error, s.tau, s.next_tau == 0 ? "so dense" : fmt::format("so {:.3g}", s.next_tau));
  return text;
}

}  // namespace sale::lab
