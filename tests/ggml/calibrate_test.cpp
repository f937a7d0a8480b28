// SALE_GGML_CALIBRATE: prompts of the host give the file that the library's calibrator gives for the same attention. In
// a process of its own, since settings are read once.
#include "calibrate_test.hpp"

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "plugin.hpp"
#include "prompt.hpp"
#include "sale/calibrator.hpp"

using namespace fake;

namespace {

constexpr int64_t tokens = 1536;
constexpr int32_t layers = 2;
constexpr double budget = 0.1;

struct Model {
  std::vector<Prompt> prompts;
  std::vector<Tensor*> operations;

  explicit Model(const Shape& shape) {
    for (int32_t layer = 0; layer < layers; ++layer) {
      prompts.emplace_back(shape, tokens, layer, static_cast<uint32_t>(layer + 1));
      prompts.back().write(0, tokens, 0);
      operations.push_back(prompts.back().causal(tokens, 0, tokens));
    }
  }
  // What the host plans: norms, then attention.
  void plan(const Session& session) const {
    for (int32_t layer = 0; layer < layers; ++layer) {
      Tensor* norm = make(f32, 20, 1, 1, 1, "blk." + std::to_string(layer) + ".attn_norm.weight");
      for (int i = 0; i < 20; ++i) static_cast<float*>(norm->data)[i] = static_cast<float>(layer + i);
      Tensor* multiply = operation(op_multiply, f32, 20, 1, 1, 1);
      multiply->src[1] = norm;
      static_cast<void>(session.claims(multiply));
      static_cast<void>(session.claims(operations[static_cast<size_t>(layer)]));
    }
  }
};

// The same by the library alone.
sale::Calibration expected(const Shape& shape, const Model& model, uint64_t fingerprint) {
  const sale::ModelIdentity identity{"",
                                     layers,
                                     static_cast<int32_t>(shape.heads),
                                     static_cast<int32_t>(shape.kv_heads),
                                     static_cast<int32_t>(shape.dim),
                                     fingerprint};
  const sale_model c = identity.c();
  const sale_goal goal{SALE_GOAL_BUDGET, budget};
  sale_calibrator_options o = sale_calibrator_options_init();
  o.model = &c, o.dtype = SALE_F16, o.goals = &goal, o.n_goals = 1;
  sale::Calibrator calibrator(o);
  while (!calibrator.done()) {
    calibrator.begin("", tokens);
    for (int32_t layer = 0; layer < layers; ++layer) {
      const Tensor& op = *model.operations[static_cast<size_t>(layer)];
      const auto* q = static_cast<const float*>(op.src[0]->data);
      std::vector<uint16_t> rounded;
      for (int64_t i = 0; i < tokens * shape.heads * shape.dim; ++i) rounded.push_back(half(q[i]));
      sale_calibrator_layer l{};
      l.struct_size = sizeof l;
      l.layer = layer, l.device = SALE_HOST, l.q_len = l.k_len = tokens;
      l.q = rounded.data(), l.k = op.src[1]->data, l.v = op.src[2]->data;
      l.q_strides = {0, shape.dim, shape.dim * shape.heads};
      l.k_strides = l.v_strides = {0, shape.dim, shape.dim * shape.kv_heads};
      calibrator.feed(l);
    }
    calibrator.end();
  }
  return calibrator.result();
}

}  // namespace

int calibrate_by_the_plugin(const char* file) {
  ::setenv("SALE_GGML_CALIBRATE", file, 1);
  ::setenv("SALE_GGML_CALIBRATE_BUDGET", std::to_string(budget).c_str(), 1);
  const Shape shape{};
  const Model model(shape);
  Session session;
  model.plan(session);
  for (int pass = 0; pass < 2; ++pass) {
    EXPECT_FALSE(std::filesystem::exists(file));
    for (Tensor* op : model.operations) {
      const std::vector<float> out = session.compute(op);
      EXPECT_LT(relative_l1(out, plainly(op)), 2e-3) << "what is watched runs dense";
    }
    EXPECT_EQ(std::filesystem::exists(std::string(file) + ".progress"), pass == 0);
  }
  const sale::Calibration made = sale::read_calibration(file);
  const sale::Calibration want = expected(shape, model, made.model.fingerprint);
  EXPECT_EQ(made.thresholds, want.thresholds);
  EXPECT_EQ(made.density, want.density);
  EXPECT_NEAR(made.relative_l1, want.relative_l1, 1e-12);
  EXPECT_LT(made.density, 1);
  EXPECT_EQ(made.model.layers, layers);
  return ::testing::Test::HasFailure() ? 1 : 0;
}

TEST(Calibrate, PromptsOfTheHostGiveTheLibrarysFile) {
  const std::string file = SALE_GGML_SCRATCH "/made.json", said = SALE_GGML_SCRATCH "/calibrate.txt";
  std::filesystem::remove(file), std::filesystem::remove(file + ".progress");
  const std::string command = std::string(SALE_GGML_TEST " --calibrate ") + file + " >" + said + " 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << "see " << said;
  // It is there now: it is used, and nothing is calibrated.
  ::setenv("SALE_GGML_CALIBRATE", file.c_str(), 1);
  EXPECT_EQ(std::system(SALE_GGML_TEST " --load 2 2>/dev/null"), 0);
  ::setenv("SALE_GGML_CALIBRATE", said.c_str(), 1);
  EXPECT_NE(std::system(SALE_GGML_TEST " --load 2 2>/dev/null"), 0) << "not a calibration";
  ::unsetenv("SALE_GGML_CALIBRATE");
}
