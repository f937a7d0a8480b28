// The library as the tests drive it: loaded as ggml loads it, its tables called as ggml calls them.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fake_host.hpp"

namespace fake {

// Null when the library refused; what it said is on stderr.
sale::ggml::Registry* load_plugin();

// A context of the host on the loaded library. Its statistics appear when it goes.
class Session {
public:
  explicit Session(int threads = 2);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  bool claims(const Tensor* op) const;
  // The output rows; EXPECTs success.
  std::vector<float> compute(Tensor* op);
  // Ends the session and returns its line of statistics.
  nlohmann::json end();

private:
  sale::ggml::Backend* backend_;
};

// |a - b| / |b|, summed.
double relative_l1(const std::vector<float>& a, const std::vector<float>& b);
// What the fake CPU backend makes of the operation.
std::vector<float> plainly(Tensor* op);

}  // namespace fake
