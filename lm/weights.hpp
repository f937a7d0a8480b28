// Where a model's weights come from: tensors as float, by Hugging Face's names ("model.layers.0.mlp.up_proj.weight").
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sale::lm {

class Weights {
public:
  virtual ~Weights() = default;
  virtual bool contains(std::string_view name) const = 0;
  // A tensor of exactly this shape; anything else is an Error that says what was found.
  virtual std::vector<float> floats(std::string_view name, const std::vector<int64_t>& shape) const = 0;
};

// "[2, 3]"
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace sale::lm
