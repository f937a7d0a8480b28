#include "capture.hpp"

#include <algorithm>

#include "command.hpp"
#include "progress.hpp"

namespace sale::cli {
namespace {

// Copies what passes through: one call a layer, the whole prompt each.
class Recorder : public lm::Attention {
public:
  Recorder(const lm::Config& config, AttentionSettings dense, CapturedAttention& to)
      : attention_(config, std::move(dense), to.tokens), to_(to) {}

  void run(const lm::AttentionCall& call) override {
    attention_.run(call);
    copy(call.q, call.q_head_stride, call.q_token_stride, call.layer, call.q_heads, to_.q);
    copy(call.k, call.kv_head_stride, call.kv_token_stride, call.layer, call.kv_heads, to_.k);
    copy(call.v, call.kv_head_stride, call.kv_token_stride, call.layer, call.kv_heads, to_.v);
    to_.scale = call.scale;
  }

private:
  void copy(const uint16_t* from, int64_t head_stride, int64_t token_stride, int layer, int heads,
            std::vector<uint16_t>& to) const {
    const int64_t d = to_.head_dim, head = to_.tokens * d;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < to_.tokens; ++t)
        std::copy_n(from + h * head_stride + t * token_stride, d, to.begin() + ((layer * heads + h) * head + t * d));
  }

  SaleAttention attention_;
  CapturedAttention& to_;
};

}  // namespace

CapturedAttention capture(LoadedModel& m, const std::vector<int32_t>& prompt, AttentionSettings settings, bool quiet) {
  const lm::Config& config = m.model.config();
  CapturedAttention c;
  c.q_heads = static_cast<int32_t>(config.layers * config.q_heads);
  c.kv_heads = static_cast<int32_t>(config.layers * config.kv_heads);
  c.head_dim = static_cast<int32_t>(config.head_dim);
  c.tokens = static_cast<int64_t>(prompt.size());
  const auto numbers = [&](int64_t heads) { return static_cast<size_t>(heads * c.tokens * c.head_dim); };
  c.q.resize(numbers(c.q_heads)), c.k.resize(numbers(c.kv_heads)), c.v.resize(numbers(c.kv_heads));

  settings.dense = true;
  lm::KVCache cache(config, c.tokens);
  Recorder recorder(config, std::move(settings), c);
  Progress progress(fmt::format("capturing the attention of {} tokens", c.tokens), quiet);
  lm::ForwardOptions options;
  options.logits = lm::Logits::none;
  options.progress = progress.callback();
  m.model.forward(prompt, cache, recorder, options);
  return c;
}

Options captured_options(const AttentionSettings& settings) {
  Options options = settings.options(0);
  if (const Calibration* c = settings.calibration) {
    if (!settings.tau_over_calibration) options.thresholds(c->thresholds);
    if (c->projected()) options.estimator(c->format, c->rank, c->q_projections, c->k_projections);
    if (!c->smoothing.empty()) options.smoothing(c->smoothing, c->scales);
  }
  return options;
}

}  // namespace sale::cli
