#include "lab/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

namespace sale::lab {
namespace {

constexpr double between_rewrites = 0.2, between_lines = 10;

std::string clock_text(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  return s < 60 ? fmt::format("{} s", s) : fmt::format("{}:{:02} min", s / 60, s % 60);
}

}  // namespace

Progress::Progress(std::string what, bool quiet)
    : what_(std::move(what)),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {
  if (!quiet_ && terminal_) fmt::print(stderr, "{} ...", what_), open_ = true;
}

Progress::~Progress() {
  if (quiet_) return;
  fmt::print(stderr, "{}{}: {}\n", terminal_ && open_ ? "\r\033[K" : "", what_, clock_text(elapsed()));
}

double Progress::elapsed() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Progress::operator()(int64_t done, int64_t total) {
  const double now = elapsed();
  if (quiet_ || done <= 0 || done >= total || now - last_ < (terminal_ ? between_rewrites : between_lines)) return;
  last_ = now;
  const double left = now * static_cast<double>(total - done) / static_cast<double>(done);
  const std::string line =
      fmt::format("{}: {} %, {} elapsed, about {} left", what_, 100 * done / total, clock_text(now), clock_text(left));
  if (terminal_)
    fmt::print(stderr, "\r\033[K{}", line);
  else
    fmt::print(stderr, "{}\n", line);
  open_ = true;
}

}  // namespace sale::lab
