// How wrong input is answered.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace sale::lab {

// Something the caller gave is wrong; the message names it.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw InputError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace sale::lab
