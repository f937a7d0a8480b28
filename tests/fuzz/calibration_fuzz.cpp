// Calibration files are not trusted: whatever the bytes, a Calibration or sale::Error. The input is the JSON, a zero
// byte and the projections file; the fingerprint is made to fit, so that the second reader is reached.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "refused.hpp"
#include "sale/calibration.hpp"

namespace {

std::string with_fingerprint(std::string json, const std::string& projections) {
  static const std::string key = "\"fingerprint\": \"";
  const size_t projections_at = json.find("\"projections\"");
  const size_t at = projections_at == std::string::npos ? projections_at : json.find(key, projections_at);
  if (at == std::string::npos || json.size() < at + key.size() + 16) return json;
  uint64_t hash = sale::Fingerprint().add(projections).value();
  for (size_t i = 16; i-- > 0; hash >>= 4) json[at + key.size() + i] = "0123456789abcdef"[hash & 15];
  return json;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string projections = zero == std::string::npos ? "" : input.substr(zero + 1);
  try {
    const std::string json = with_fingerprint(input.substr(0, zero), projections);
    const sale::Calibration c = sale::parse_calibration(json, projections, "fuzz");
    // What was accepted can be written, and reads back as the same bytes.
    const auto once = sale::print_calibration(c, "p.tensors");
    const auto again = sale::print_calibration(sale::parse_calibration(once.json, once.tensors, "again"), "p.tensors");
    if (once.json != again.json || once.tensors != again.tensors) std::abort();
    for (int32_t layer = 0; layer < c.model.layers; ++layer)
      static_cast<void>(c.options(layer).layer(
          sale::Problem(1, c.model.q_heads, c.model.kv_heads, 1, 1, c.model.head_dim, SALE_F32)));
  } catch (const sale::Error& e) {
    sale_fuzz::refused(e.what());
  }
  return 0;
}
