#include "serve.hpp"

#include <cmath>
#include <cstring>

#include "layers.hpp"
#include "rows.hpp"

namespace sale::ggml {
namespace {

std::string of(int64_t n) { return std::to_string(n); }

// Strides that are whole elements, rows that do not overlap.
bool plain(const Tensor& t, size_t element, size_t row) {
  if (t.nb[0] != element) return false;
  for (int i = 1; i < max_dims; ++i)
    if (t.ne[i] > 1 && (t.nb[i] % element != 0 || t.nb[i] < row)) return false;
  return true;
}

std::string why_not_keys(const Host& h, const char* name, const Tensor& t) {
  const Type type = h.type(t.type);
  if (type == Type::other)
    return std::string(name) + " of type " + h.type_name(t.type) + "; f16, bf16, f32 and q8_0 are served";
  if (t.ne[0] % 16 != 0 || t.ne[0] < 16 || t.ne[0] > 256 || (type == Type::q8_0 && t.ne[0] % 32 != 0))
    return "head dimension " + of(t.ne[0]) + "; multiples of 16 up to 256 are served (q8_0: of 32)";
  if (!plain(t, type == Type::q8_0 ? row_bytes(type, 32) : size_of(computed_as(type)), row_bytes(type, t.ne[0])))
    return std::string(name) + " with unusual strides";
  return "";
}

std::string why_not_mask(const Tensor& op) {
  const Tensor &q = *op.src[0], &k = *op.src[1], *m = op.src[3];
  if (m == nullptr) return "";
  const size_t row = static_cast<size_t>(m->ne[0]) * 2;
  if (m->ne[0] != k.ne[1] || m->ne[1] < q.ne[1] || m->ne[2] != 1 || (m->ne[3] != 1 && m->ne[3] != q.ne[3]))
    return "a mask of " + of(m->ne[0]) + " x " + of(m->ne[1]) + " x " + of(m->ne[2]) + " x " + of(m->ne[3]) + " for " +
           of(k.ne[1]) + " keys and " + of(q.ne[1]) + " rows";
  if (m->nb[0] != 2 || m->nb[1] != row) return "a mask with unusual strides";
  return "";
}

// What the operation asks for beyond plain attention.
std::string why_not_extras(const Tensor& op) {
  if (parameter(op, flash_max_bias) != 0) return "ALiBi (max_bias)";
  if (parameter(op, flash_softcap) != 0) return "soft-capped scores";
  if (op.src[4] != nullptr) return "learned attention sinks";
  if (op.op_params[flash_most_keys] != 0) return "a sparse mask (n_kv_max)";
  for (int i = 5; i < max_sources; ++i)
    if (op.src[i] != nullptr) return "an input that SALE does not know (source " + of(i) + ")";
  for (int i = flash_most_keys + 1; i < 16; ++i)
    if (op.op_params[i] != 0) return "a parameter that SALE does not know (number " + of(i) + ")";
  const float scale = parameter(op, flash_scale);
  if (!(scale > 0) || !std::isfinite(scale)) return "a scale that is not positive";
  return "";
}

std::string why_not_shapes(const Host& h, const Tensor& op) {
  const Tensor &q = *op.src[0], &k = *op.src[1], &v = *op.src[2];
  if (q.type != h.f32 || op.type != h.f32 || !plain(q, 4, static_cast<size_t>(q.ne[0]) * 4))
    return "queries or outputs that are not plain f32";
  if (k.ne[0] != v.ne[0]) return "head dimensions " + of(k.ne[0]) + " and " + of(v.ne[0]) + " of K and V differ";
  for (const auto& [name, t] : {std::pair<const char*, const Tensor*>{"K", &k}, {"V", &v}})
    if (std::string why = why_not_keys(h, name, *t); !why.empty()) return why;
  if (computed_as(h.type(k.type)) != computed_as(h.type(v.type)))
    return std::string("K of type ") + h.type_name(k.type) + " with V of type " + h.type_name(v.type);
  if (q.ne[0] != k.ne[0] || k.ne[2] != v.ne[2] || k.ne[1] != v.ne[1] || k.ne[2] < 1 || q.ne[2] % k.ne[2] != 0 ||
      q.ne[3] != k.ne[3] || q.ne[3] != v.ne[3])
    return "shapes of Q, K and V that do not fit";
  return "";
}

}  // namespace

float parameter(const Tensor& op, int i) {
  float f;
  std::memcpy(&f, &op.op_params[i], sizeof f);
  return f;
}

Refusal why_not(const Host& h, const Settings& settings, const Tensor& op) {
  for (int i = 0; i < 3; ++i)
    if (op.src[i] == nullptr) return {"an operation without Q, K or V"};
  if (op.src[0]->ne[1] < settings.min_rows)
    return {"a block of fewer than " + of(settings.min_rows) + " query rows", true};
  if (std::string why = why_not_extras(op); !why.empty()) return {why};
  if (std::string why = why_not_shapes(h, op); !why.empty()) return {why};
  if (std::string why = why_not_mask(op); !why.empty()) return {why};
  if (!settings.any_keys && cache_layer(*op.src[1]) < 0) return {"keys that are no KV cache"};
  return {};
}

}  // namespace sale::ggml
