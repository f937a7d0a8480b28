// Failures inside the library are one exception type; it never crosses the C ABI.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <utility>

#include "sale/sale.h"

namespace sale {

class Failure : public std::exception {
public:
  Failure(sale_status status, std::string message) : status_(status), message_(std::move(message)) {}
  sale_status status() const { return status_; }
  const char* what() const noexcept override { return message_.c_str(); }

private:
  sale_status status_;
  std::string message_;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(sale_status status, const Parts&... parts) {
  throw Failure(status, text(parts...));
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(SALE_INVALID_ARGUMENT, parts...);
}

// Keeps `message` for sale_last_error on this thread.
sale_status record(sale_status status, const char* message) noexcept;

// Runs `body`; turns what it throws into a status and a message.
template <class Body>
sale_status guarded(Body&& body) noexcept {
  try {
    body();
    return SALE_OK;
  } catch (const Failure& f) {
    return record(f.status(), f.what());
  } catch (const std::bad_alloc&) {
    return record(SALE_OUT_OF_MEMORY, "memory: an allocation failed");
  } catch (const std::exception& e) {
    return record(SALE_INTERNAL, e.what());
  } catch (...) {
    return record(SALE_INTERNAL, "an unknown exception");
  }
}

}  // namespace sale
