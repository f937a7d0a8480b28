#include "lm/rope.hpp"

#include <nlohmann/json.hpp>

#include "support.hpp"

namespace sale::lm {
namespace {

// data/rope.json: transformers' ROPE_INIT_FUNCTIONS on the same parameters (see make_reference.py).
TEST(Rope, FrequenciesOfEveryTypeMatchTransformers) {
  const auto cases = nlohmann::json::parse(slurp(kDataDir / "rope.json"));
  ASSERT_EQ(cases.size(), 5u);
  const auto base = nlohmann::json::parse(slurp(kModelDir / "config.json"));
  for (const auto& c : cases) {
    const Scratch scratch;
    nlohmann::json config = base;
    config["rope_parameters"] = c["rope_parameters"];
    const Config read = read_config(scratch.write("config.json", config.dump()));
    const Rope rope = make_rope(read.rope, c["head_dim"].get<int>());
    EXPECT_NEAR(rope.attention_factor, c["attention_factor"].get<double>(), 1e-6) << c["name"];
    const auto expected = c["inv_freq"].get<std::vector<double>>();
    ASSERT_EQ(rope.inverse_frequencies.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(rope.inverse_frequencies[i], expected[i], 3e-7 * expected[i]) << c["name"] << " " << i;
  }
}

TEST(Rope, TableAndRotation) {
  RopeConfig config;
  config.theta = 10000.0;
  const Rope rope = make_rope(config, 8);
  const RopeTable table = rope_table(rope, 1000, 3000, 3);
  for (int64_t row : {int64_t{0}, int64_t{1500}, int64_t{2999}})
    for (int64_t i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(1000 + row) * std::pow(10000.0, -static_cast<double>(i) / 4.0);
      EXPECT_NEAR(table.cosines.data()[row * 4 + i], std::cos(angle), 5e-4);
      EXPECT_NEAR(table.sines.data()[row * 4 + i], std::sin(angle), 5e-4);
    }
  const float x[8] = {1, 0, 0, 0, 0, 1, 0, 0}, cosines[4] = {0, 0.5f, 1, 1}, sines[4] = {1, 0.25f, 0, 0};
  uint16_t out[8];
  rotate_head(x, cosines, sines, 4, out);
  const float expected[8] = {0, -0.25f, 0, 0, 1, 0.5f, 0, 0};
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(from_bf16(out[i]), expected[i]) << i;
}

TEST(Bf16, RoundsToNearestEvenAndKeepsNans) {
  EXPECT_EQ(to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(to_bf16(1.00390625f), 0x3f80);                        // halfway: to even
  EXPECT_EQ(to_bf16(1.01171875f), 0x3f82);                        // halfway: to even
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);  // just above halfway
  EXPECT_EQ(to_bf16(INFINITY), 0x7f80);
  EXPECT_TRUE(std::isnan(from_bf16(to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(from_f16(0x3c00), 1.0f);
  EXPECT_EQ(from_f16(0x8001), -0x1p-24f);
  EXPECT_EQ(from_f16(0x7bff), 65504.0f);
  EXPECT_EQ(from_f16(0xfc00), -INFINITY);
}

}  // namespace
}  // namespace sale::lm
