// Loops over ranges on a few threads, for what surrounds attention: packing, hashing, unpacking. Attention itself runs
// on the library's own pool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace sale::ggml {

// f(begin, end) over [0, count) in at most `threads` pieces of at least `least`.
template <class F>
void in_pieces(int threads, int64_t count, int64_t least, F&& f) {
  const int64_t pieces = std::clamp<int64_t>(count / std::max<int64_t>(1, least), 1, std::max(1, threads));
  const auto piece = [&](int64_t i) { f(count * i / pieces, count * (i + 1) / pieces); };
  std::vector<std::jthread> others;
  others.reserve(static_cast<size_t>(pieces - 1));
  int64_t started = 1;
  try {
    for (; started < pieces; ++started) others.emplace_back(piece, started);
  } catch (const std::system_error&) {
    // No thread to be had: the caller does the rest.
  }
  piece(0);
  for (int64_t i = started; i < pieces; ++i) piece(i);
}

}  // namespace sale::ggml
