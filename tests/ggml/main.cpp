// With --load VERSION: a program whose ggml has that interface version; exit 0 when the backend loads.
// With --calibrate FILE: one that makes a calibration there.
#include <cstdlib>

#include "calibrate_test.hpp"
#include "plugin.hpp"

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--load") {
    fake::api_version = std::atoi(argv[2]);
    const auto* registry = fake::load_plugin();
    return registry != nullptr && registry->api_version == fake::api_version ? 0 : 1;
  }
  if (argc == 3 && std::string(argv[1]) == "--calibrate") {
    const std::string file = argv[2];
    testing::InitGoogleTest(&argc, argv);
    return calibrate_by_the_plugin(file.c_str());
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
