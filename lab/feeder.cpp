#include "lab/feeder.hpp"

#include <algorithm>

namespace sale::lab {
namespace {

class Feeder : public lm::Attention {
public:
  Feeder(const lm::Config& config, AttentionSettings dense, int64_t capacity, Calibrator& to)
      : dense_(config, std::move(dense), capacity), to_(to) {}
  void run(const lm::AttentionCall& call) override {
    dense_.run(call);
    sale_calibrator_layer l{};
    l.struct_size = sizeof l;
    l.layer = call.layer, l.device = SALE_HOST, l.q_len = call.q_len, l.k_len = call.k_len, l.scale = call.scale;
    l.q = call.q, l.k = call.k, l.v = call.v;
    l.q_strides = {0, call.q_head_stride, call.q_token_stride};
    l.k_strides = l.v_strides = {0, call.kv_head_stride, call.kv_token_stride};
    to_.feed(l);
  }
  void truncate(int64_t tokens) override { dense_.truncate(tokens); }

private:
  SaleAttention dense_;
  Calibrator& to_;
};

const char* doing(sale_pass pass) {
  return pass == SALE_PASS_PROJECT ? "projecting" : pass == SALE_PASS_MEASURE ? "measuring" : "checking";
}

}  // namespace

sale_calibrator_options calibrator_options(const CalibrationArguments& a, const sale_model& model, int64_t prompts) {
  sale_calibrator_options o = sale_calibrator_options_init();
  o.model = &model;
  o.device = uses_device(a.backend) ? device_ordinal : SALE_HOST;
  o.backend = a.backend.c_str(), o.threads = a.threads, o.seed = a.seed;
  o.prompts = static_cast<int32_t>(prompts);
  return o;
}

void show_prompts(const CalibrationArguments& a, LoadedModel& model, const std::vector<CalibrationPrompt>& prompts,
                  Calibrator& to) {
  size_t longest = 0;
  for (const CalibrationPrompt& p : prompts) longest = std::max(longest, p.tokens.size());
  lm::KVCache cache(model.model.config(), static_cast<int64_t>(longest));
  AttentionSettings dense;
  dense.dense = true;
  dense.backend = a.backend, dense.threads = a.threads;
  Feeder feeder(model.model.config(), dense, cache.capacity(), to);
  for (sale_calibrator_state s = to.state(); s.pass != SALE_PASS_DONE; s = to.state()) {
    const CalibrationPrompt& p = prompts.at(static_cast<size_t>(s.prompt));
    to.begin(p.name, static_cast<int64_t>(p.tokens.size()));
    to.asks(p.asking);
    run_prompt(model, p.tokens, cache, feeder,
               fmt::format("{} {} of {}: {}", doing(s.pass), s.prompt + 1, s.prompts, p.name), a.quiet);
    to.end();
  }
}

}  // namespace sale::lab
