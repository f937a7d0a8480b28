// What every file of lm/ throws, and the checked arithmetic that sizes from files go through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sale::lm {

class Error : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

// Text from a file, made safe to print: control bytes escaped, at most 80 bytes.
inline std::string in_quotes(std::string_view text) {
  static constexpr char hex[] = "0123456789abcdef";
  std::string out = "'";
  for (char c : text.substr(0, 80)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += hex[byte >> 4];
      out += hex[byte & 15];
    }
  }
  return out + (text.size() > 80 ? "...'" : "'");
}

inline int64_t checked_mul(int64_t a, int64_t b, std::string_view what) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) fail(what, ": ", a, " x ", b, " does not fit in 64 bits");
  return product;
}

inline int64_t checked_add(int64_t a, int64_t b, std::string_view what) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) fail(what, ": ", a, " + ", b, " does not fit in 64 bits");
  return sum;
}

// A count already known to be non-negative, as an index.
constexpr size_t at(int64_t count) { return static_cast<size_t>(count); }

template <class Container>
int64_t ssize_of(const Container& container) {
  return static_cast<int64_t>(container.size());
}

}  // namespace sale::lm
