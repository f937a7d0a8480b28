// Arithmetic on sizes that come from outside: every product and sum of the library's checks goes through here.
#pragma once

#include <cstdint>

namespace sale {

// A non-negative count that remembers whether any step of its computation overflowed or went below zero.
class Checked {
public:
  constexpr Checked(int64_t value) : value_(value), ok_(value >= 0) {}

  friend constexpr Checked operator+(Checked a, Checked b) {
    Checked r = a;
    r.ok_ = !__builtin_add_overflow(a.value_, b.value_, &r.value_) && a.ok_ && b.ok_;
    return r;
  }
  friend constexpr Checked operator*(Checked a, Checked b) {
    Checked r = a;
    r.ok_ = !__builtin_mul_overflow(a.value_, b.value_, &r.value_) && a.ok_ && b.ok_;
    return r;
  }

  // Within what a pointer difference can hold, with room for one more alignment step.
  constexpr bool ok() const { return ok_ && value_ <= (int64_t{1} << 62); }
  constexpr int64_t value() const { return value_; }

private:
  int64_t value_;
  bool ok_;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace sale
