// One line on stderr that says what is going on, how long it has taken and how long it may take. On a terminal the line
// is rewritten; elsewhere a new one is printed every ten seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace sale::lab {

class Progress {
public:
  explicit Progress(std::string what, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void operator()(int64_t done, int64_t total);
  // For those who take a callback; the progress must outlive it.
  std::function<void(int64_t, int64_t)> callback() {
    return [this](int64_t done, int64_t total) { (*this)(done, total); };
  }
  double elapsed() const;

private:
  std::string what_;
  bool quiet_, terminal_, open_ = false;
  std::chrono::steady_clock::time_point start_;
  double last_ = 0;
};

}  // namespace sale::lab
