#include <cstdlib>

#include "core/plan.hpp"
#include "core/status.hpp"

namespace sale {
namespace {

const Backend* const in_order[] = {&sm90_backend, &sm80_backend,    &sm100_backend,
#if defined(__x86_64__)
                                   &amx_backend,  &avx512_backend,  &avx2_backend,
#endif
                                   &neon_backend, &portable_backend};

std::string reason(const Backend& b, const Layer& layer) {
  std::string why = b.why_not_machine(machine());
  return why.empty() ? b.why_not_layer(layer) : why;
}

}  // namespace

int backend_count() { return static_cast<int>(std::size(in_order)); }
const Backend& backend(int i) { return *in_order[i]; }

const Backend& choose_backend(const Layer& layer, const char* asked, std::string& notes) {
  const char* environment = std::getenv("SALE_BACKEND");
  const std::string wanted = asked != nullptr ? asked : environment != nullptr ? environment : "";
  const std::string by = asked != nullptr ? "backend" : "SALE_BACKEND";
  for (const Backend* b : in_order) {
    std::string why = reason(*b, layer);
    if (why.empty() && wanted.empty() && b->why_not_unasked != nullptr) why = b->why_not_unasked(layer.device);
    if (wanted == b->name) {
      if (why.empty()) return *b;
      fail(SALE_UNSUPPORTED, by, ": ", wanted, " cannot be used: ", why);
    }
    if (why.empty() && wanted.empty()) return *b;
    notes += (notes.empty() ? "" : "; ") + std::string(b->name) + ": " + (why.empty() ? "usable" : why);
  }
  if (!wanted.empty()) fail(SALE_INVALID_ARGUMENT, by, ": no backend is called '", wanted, "'; there are ", notes);
  fail(SALE_UNSUPPORTED, "backend: none can run this layer: ", notes);
}

}  // namespace sale
