// What a target does with an input that the library refuses: nothing, except where the inputs are said to be good ones
// (SALE_FUZZ_ACCEPT=1, for the seeds): then a refusal means that the seeds no longer reach what they are for.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace sale_fuzz {

inline void refused(const char* message) {
  static const bool must_accept = std::getenv("SALE_FUZZ_ACCEPT") != nullptr;
  if (!must_accept) return;
  std::fprintf(stderr, "a seed is refused: %s\n", message);
  std::abort();
}

}  // namespace sale_fuzz
