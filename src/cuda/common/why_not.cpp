#include "cuda/common/why_not.hpp"

namespace sale::cuda {
namespace {

constexpr int64_t most_keys = int64_t{1} << 21, most_tokens = (int64_t{1} << 31) - 1;

std::string why_not_strides(const char* name, const sale_strides& s) {
  const struct {
    const char* axis;
    int64_t stride;
  } axes[] = {{"batch", s.batch}, {"head", s.head}, {"token", s.token}};
  for (const auto& a : axes)
    if (a.stride % 8 != 0) return text(name, " strides: ", a.axis, " stride ", a.stride, " is not a multiple of 8");
  return {};
}

}  // namespace

std::string why_not_problem(const sale_problem& p) {
  if (p.device == SALE_HOST) return "the tensors are in host memory (device SALE_HOST)";
  if (p.dtype == SALE_F32) return "dtype SALE_F32: its tensor cores multiply 16-bit tensors";
  if (p.head_dim != 64 && p.head_dim != 128) return text("head_dim ", p.head_dim, " is neither 64 nor 128");
  if (p.q_heads > 65535) return text("q_heads ", p.q_heads, " exceeds 65535");
  for (int32_t b = 0; b < p.batch; ++b) {
    const int64_t keys = p.k_lens != nullptr ? p.k_lens[b] : p.k_len,
                  rows = p.q_lens != nullptr ? p.q_lens[b] : p.q_len;
    if (keys > most_keys) return text("k_len ", keys, " exceeds 2^21 keys a sequence");
    if (rows + (p.q_starts != nullptr ? p.q_starts[b] : 0) > most_tokens ||
        keys + (p.k_starts != nullptr ? p.k_starts[b] : 0) > most_tokens)
      return text("sequence ", b, " ends beyond token 2^31 of its tensor");
  }
  const std::pair<const char*, const sale_strides&> tensors[] = {{"q", p.q}, {"k", p.k}, {"v", p.v}, {"out", p.out}};
  for (const auto& [name, strides] : tensors)
    if (std::string why = why_not_strides(name, strides); !why.empty()) return why;
  return {};
}

}  // namespace sale::cuda
