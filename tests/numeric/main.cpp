// numeric_test [gtest flags] [--cases N] [--seed S] [--repeats N] [--case "problem line"]...
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "harness.hpp"

namespace sale_test {
namespace {

Flags the_flags;

void read_environment() {
  if (const char* n = std::getenv("SALE_CASES")) the_flags.cases = std::atoll(n);
  if (const char* n = std::getenv("SALE_SEED")) the_flags.seed = std::strtoull(n, nullptr, 10);
  if (const char* n = std::getenv("SALE_REPEATS")) the_flags.repeats = std::atoll(n);
}

bool read_arguments(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (i + 1 == argc) return false;
    const std::string flag = argv[i], value = argv[++i];
    if (flag == "--cases") {
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
  return true;
}

int check_lines() {
  int failed = 0;
  for (const std::string& line : the_flags.lines) {
    try {
      const Case c = sale_case::parse(line);
      set_current(line);
      const Tally t = check_case(c);
      std::printf("ok: %lld of %lld blocks kept, worst error %.0f%% of its limit, %lld backends: %s\n",
                  static_cast<long long>(t.kept), static_cast<long long>(t.visible), 100 * t.worst,
                  static_cast<long long>(t.backend_runs), sale_case::print(c).c_str());
    } catch (const std::exception& e) {
      std::printf("FAILED: %s\n    %s\n", e.what(), line.c_str());
      ++failed;
    }
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace

const Flags& flags() { return the_flags; }

}  // namespace sale_test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  sale_test::read_environment();
  if (!sale_test::read_arguments(argc, argv)) {
    std::fprintf(stderr, "usage: numeric_test [--cases N] [--seed S] [--repeats N] [--case \"LINE\"]...\n\n%s",
                 sale_case::grammar().c_str());
    return 2;
  }
  std::printf("%s\n%s", sale_machine(), sale_test::unusable_backends().c_str());
  if (!sale_test::flags().lines.empty()) return sale_test::check_lines();
  return RUN_ALL_TESTS();
}
