// What is made of moments, against sums over the keys themselves.
#include "calibration/moments.hpp"

#include <gtest/gtest.h>
#include <cmath>

#include "synthetic.hpp"

namespace sale::calibration {
namespace {

using synthetic::head_dim, synthetic::kv_heads, synthetic::layers, synthetic::q_heads;

constexpr int64_t tokens = 700;
constexpr int32_t rank = 16;

struct Fed {
  Fed() : shape{layers, q_heads, kv_heads, head_dim, SALE_F32}, moments(shape) {
    const auto pool = shared_pool(2);
    for (uint32_t prompt = 0; prompt < 2; ++prompt) {
      Moments one(shape);
      for (int32_t layer = 0; layer < layers; ++layer) {
        const auto l = static_cast<uint32_t>(layer);
        keys.push_back(synthetic::tensor(prompt, l, 1, tokens));
        const std::vector<float> q = synthetic::tensor(prompt, l, 0, tokens);
        const sale_strides strides{0, tokens * head_dim, head_dim};
        one.see({shape, layer, tokens, 1, {q.data(), strides}, {keys.back().data(), strides}, {}}, *pool);
      }
      moments.add(Moments::of(shape, Json::parse(one.json().dump())));  // the way of a progress file
    }
  }
  // [prompt][layer] [kv_heads, tokens, head_dim]
  const float* key(int64_t prompt, int64_t layer, int64_t head, int64_t token) const {
    return keys[static_cast<size_t>(prompt * layers + layer)].data() + (head * tokens + token) * head_dim;
  }
  Shape shape;
  std::vector<std::vector<float>> keys;
  Moments moments;
};

TEST(Moments, SmoothingIsTheMeanOfAllKeys) {
  const Fed fed;
  for (int32_t layer = 0; layer < layers; ++layer) {
    std::vector<float> got;
    fed.moments.smoothing(layer, got);
    ASSERT_EQ(got.size(), static_cast<size_t>(kv_heads * head_dim));
    for (int64_t h = 0; h < kv_heads; ++h)
      for (int64_t c = 0; c < head_dim; ++c) {
        double sum = 0;
        for (int64_t p = 0; p < 2; ++p)
          for (int64_t t = 0; t < tokens; ++t) sum += double{fed.key(p, layer, h, t)[c]};
        EXPECT_NEAR(got[static_cast<size_t>(h * head_dim + c)], sum / (2 * tokens), 1e-5);
      }
  }
}

// Six root mean squares of the largest coordinate that is scanned stand for 112.
TEST(Moments, ScalesAreOfTheCoordinatesScanned) {
  const Fed fed;
  std::vector<float> q, k;
  for (int32_t layer = 0; layer < layers; ++layer) fed.moments.projections(layer, rank, q, k);
  for (const bool projected : {false, true}) {
    const int32_t coordinates = projected ? rank : head_dim;
    for (int32_t layer = 0; layer < layers; ++layer) {
      std::vector<float> got;
      fed.moments.scales(layer, coordinates, projected ? k : std::vector<float>(), got);
      ASSERT_EQ(got.size(), static_cast<size_t>(kv_heads));
      for (int64_t h = 0; h < kv_heads; ++h) {
        std::vector<double> energy(static_cast<size_t>(coordinates));
        for (int64_t p = 0; p < 2; ++p) {
          std::vector<double> mean(head_dim);
          for (int64_t t = 0; t < tokens; ++t)
            for (int64_t c = 0; c < head_dim; ++c)
              mean[static_cast<size_t>(c)] += double{fed.key(p, layer, h, t)[c]} / tokens;
          for (int64_t t = 0; t < tokens; ++t)
            for (int64_t r = 0; r < coordinates; ++r) {
              double y = 0;
              for (int64_t c = 0; c < head_dim; ++c) {
                const auto at = static_cast<size_t>(((int64_t{layer} * kv_heads + h) * head_dim + c) * rank + r);
                const double weight = projected ? double{k[at]} : c == r ? 1 : 0;
                y += weight * (double{fed.key(p, layer, h, t)[c]} - mean[static_cast<size_t>(c)]);
              }
              energy[static_cast<size_t>(r)] += y * y / (2 * tokens);
            }
        }
        const double most = *std::max_element(energy.begin(), energy.end());
        EXPECT_NEAR(got[static_cast<size_t>(h)] * 112 / std::sqrt(most), 6, 1e-3) << layer << " " << h;
      }
    }
  }
}

}  // namespace
}  // namespace sale::calibration
