// device_test [gtest flags] [--backend sm90|sm80] [--cases N] [--seed S] [--repeats N] [--case "problem line"]...
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "device.hpp"

namespace {

sale_test::Flags the_flags;
sale_device::Tested the_backend;

bool read_arguments(int argc, char** argv) {
  the_flags.program = "device_test";
  the_flags.cases = 600;
  the_flags.repeats = 1000;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--backend") {
      if (value == "sm80" || value == "sm100")
        the_backend = {value == "sm80" ? "sm80" : "sm100", 64};
      else if (value != "sm90")
        return false;
    } else if (flag == "--cases") {
      the_flags.cases = std::atoll(value.c_str());
    } else if (flag == "--seed") {
      the_flags.seed = std::strtoull(value.c_str(), nullptr, 10);
    } else if (flag == "--repeats") {
      the_flags.repeats = std::atoll(value.c_str());
    } else if (flag == "--case") {
      the_flags.lines.push_back(value);
    } else {
      return false;
    }
  }
  return argc % 2 == 1;
}

int check_lines() {
  int failed = 0;
  for (const std::string& line : the_flags.lines) {
    try {
      const auto t = sale_device::check_device_case(sale_case::parse(line));
      std::printf("ok: %lld of %lld blocks kept, %lld of %lld candidates differ, worst error %.0f%% of its limit: %s\n",
                  static_cast<long long>(t.kept), static_cast<long long>(t.visible), static_cast<long long>(t.exempted),
                  static_cast<long long>(t.candidates), 100 * t.worst, line.c_str());
    } catch (const std::exception& e) {
      std::printf("FAILED: %s\n    %s\n", e.what(), line.c_str());
      ++failed;
    }
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace

const sale_test::Flags& sale_test::flags() { return the_flags; }
const sale_device::Tested& sale_device::tested() { return the_backend; }

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!read_arguments(argc, argv)) {
    std::fprintf(
        stderr,
        "usage: device_test [--backend sm90|sm80] [--cases N] [--seed S] [--repeats N] [--case \"LINE\"]...\n\n%s",
        sale_case::grammar().c_str());
    return 2;
  }
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    if (sale_backend_name(i) != std::string(the_backend.name) || *sale_backend_why_not(i) == '\0') continue;
    std::printf("SKIPPED: %s cannot run here: %s\n", the_backend.name, sale_backend_why_not(i));
    return 77;
  }
  if (!the_flags.lines.empty()) return check_lines();
  return RUN_ALL_TESTS();
}
