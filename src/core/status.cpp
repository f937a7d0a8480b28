#include "core/status.hpp"

namespace sale {
namespace {
// A fixed buffer: recording a failure must not be able to fail.
thread_local char last_error[512] = "";
}  // namespace

sale_status record(sale_status status, const char* message) noexcept {
  std::size_t n = 0;
  for (; message[n] != '\0' && n + 1 < sizeof last_error; ++n) last_error[n] = message[n];
  last_error[n] = '\0';
  return status;
}

}  // namespace sale

const char* sale_last_error(void) { return sale::last_error; }

const char* sale_status_name(sale_status status) {
  switch (status) {
    case SALE_OK: return "ok";
    case SALE_INVALID_ARGUMENT: return "invalid argument";
    case SALE_UNSUPPORTED: return "unsupported";
    case SALE_OUT_OF_MEMORY: return "out of memory";
    case SALE_INTERNAL: return "internal error";
  }
  return "unknown status";
}

#define SALE_STRING_(x) #x
#define SALE_STRING(x) SALE_STRING_(x)
const char* sale_version(void) {
  return SALE_STRING(SALE_VERSION_MAJOR) "." SALE_STRING(SALE_VERSION_MINOR) "." SALE_STRING(SALE_VERSION_PATCH);
}
