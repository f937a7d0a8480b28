#include "calibrate.hpp"

namespace sale::ggml {
namespace {

constexpr int64_t fewest_tokens = 1024;

sale_calibrator_layer layer_of(const Shown& s) {
  sale_calibrator_layer l{};
  l.struct_size = sizeof l;
  l.layer = s.layer, l.device = SALE_HOST, l.q_len = l.k_len = s.tokens, l.scale = s.scale;
  l.q = s.q, l.k = s.k, l.v = s.v;
  l.q_strides = s.q_strides, l.k_strides = s.k_strides, l.v_strides = s.v_strides;
  return l;
}

std::unique_ptr<Calibrator> calibrator_for(const Settings& settings, const Shown& s) {
  const ModelIdentity identity{"GGUF", s.layers, s.q_heads, s.kv_heads, s.head_dim, s.fingerprint};
  const sale_model model = identity.c();
  const sale_goal goal{SALE_GOAL_BUDGET, settings.calibrate_budget};
  const std::string progress = settings.calibrate.string() + ".progress";
  sale_calibrator_options o = sale_calibrator_options_init();
  o.model = &model, o.dtype = s.type, o.backend = settings.backend.c_str(), o.format = settings.format;
  const bool all = settings.format == SALE_INT4 || settings.calibrate_rank >= s.head_dim;
  o.rank = all ? 0 : static_cast<int32_t>(settings.calibrate_rank);
  o.goals = &goal, o.n_goals = 1;
  o.prompts = static_cast<int32_t>(settings.calibrate_prompts);
  o.progress = progress.c_str(), o.command = "SALE_GGML_CALIBRATE";
  return std::make_unique<Calibrator>(o);
}

}  // namespace

bool Calibrating::wants(const Settings& settings, int64_t tokens) {
  if (settings.calibrate.empty() || tokens < fewest_tokens) return false;
  const std::lock_guard lock(mutex_);
  return !over_;
}

void Calibrating::saw(const Settings& settings, Report& report, const void* context, const Shown& shown) {
  const std::lock_guard lock(mutex_);
  if (over_) return;
  try {
    if (!calibrator_) calibrator_ = calibrator_for(settings, shown);
    if (!calibrator_->done()) {
      if (context_ != nullptr && context_ != context) return;  // busy with another's
      if (context_ == nullptr || shown.tokens != tokens_ || shown.layer < seen_) {
        calibrator_->cancel();
        context_ = nullptr;
        if (shown.layer != 0) return;  // from its middle on
        calibrator_->begin("a prompt of the host", shown.tokens);
        context_ = context, tokens_ = shown.tokens, seen_ = 0;
      }
      calibrator_->feed(layer_of(shown));
      if (++seen_ < shown.layers) return;
      calibrator_->end();
      context_ = nullptr;
      const sale_calibrator_state s = calibrator_->state();
      report.notice("calibrating: " + std::to_string(static_cast<int>(100 * s.done)) + " % done");
    }
    if (calibrator_->done()) finish(settings, report);
  } catch (const std::exception& e) {
    over_ = true, calibrator_.reset(), context_ = nullptr;
    report.notice(std::string("no calibration is made: ") + e.what());
  }
}

void Calibrating::finish(const Settings& settings, Report& report) {
  const Calibration made = calibrator_->result();
  write_calibration(settings.calibrate, made);
  calibrator_->forget();
  over_ = true, calibrator_.reset();
  char figures[80];
  std::snprintf(figures, sizeof figures, "density %.1f %%, error %.2f %%", 100 * made.density, 100 * made.relative_l1);
  report.notice("calibration written: " + settings.calibrate.string() + " (" + figures +
                "); it is used from the next " + "start on");
}

}  // namespace sale::ggml
