#include "cuda/common/why_not.hpp"

namespace sale::cuda {
namespace {
constexpr int64_t most_keys = int64_t{1} << 21, most_tokens = (int64_t{1} << 31) - 1;
}  // namespace

std::string why_not_layer(const Layer& l) {
  if (l.device == SALE_HOST) return "the tensors are in host memory (device SALE_HOST)";
  if (l.dtype == SALE_F32) return "dtype SALE_F32: its tensor cores multiply 16-bit tensors";
  if (l.form.format == SALE_FP4) return "format SALE_FP4 runs on CPUs only";
  if (l.head_dim != 64 && l.head_dim != 128) return text("head_dim ", l.head_dim, " is neither 64 nor 128");
  if (l.q_heads > 65535) return text("q_heads ", l.q_heads, " exceeds 65535");
  return {};
}

std::string why_not_problem(const sale_problem& p) {
  if (p.kv_dtype == SALE_KV_E4M3) return "kv_dtype SALE_KV_E4M3 is read on CPUs only";
  for (int32_t b = 0; b < p.batch; ++b) {
    const int64_t keys = p.k_lens != nullptr ? p.k_lens[b] : p.k_len,
                  rows = p.q_lens != nullptr ? p.q_lens[b] : p.q_len;
    if (keys > most_keys) return text("k_len ", keys, " exceeds 2^21 keys a sequence");
    if (rows + (p.q_starts != nullptr ? p.q_starts[b] : 0) > most_tokens ||
        keys + (p.k_starts != nullptr ? p.k_starts[b] : 0) > most_tokens)
      return text("sequence ", b, " ends beyond token 2^31 of its tensor");
  }
  return why_not_strides({p.q, p.k, p.v, p.out});
}

std::string why_not_strides(const Strides& s) {
  const std::pair<const char*, const sale_strides&> tensors[] = {{"q", s.q}, {"k", s.k}, {"v", s.v}, {"out", s.out}};
  for (const auto& [name, strides] : tensors)
    for (const auto& [axis, stride] :
         {std::pair("batch", strides.batch), {"head", strides.head}, {"token", strides.token}})
      if (stride % 8 != 0) return text(name, " strides: ", axis, " stride ", stride, " is not a multiple of 8");
  return {};
}

}  // namespace sale::cuda
