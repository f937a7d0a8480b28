#include "cuda/sm90/tables.hpp"

#include <algorithm>
#include <cstring>

#include "core/checked.hpp"

namespace sale::sm90 {
namespace {

// To nearest, ties to even.
uint16_t to_bf16(float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  return static_cast<uint16_t>((w + 0x7fffu + ((w >> 16) & 1u)) >> 16);
}
uint16_t to_f16(float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  const uint32_t sign = w >> 16 & 0x8000u, magnitude = w & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x38800000u) {                                               // below 2^-14: a multiple of 2^-24
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;  // whose last place is 2^-24
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) - 0x38000000u) >> 13);
}

// [kv_heads, width, head_dim], transposed; rows beyond rank are 0.
std::vector<uint16_t> transposed(const Plan& plan) {
  const sale::Estimator& e = plan.estimator;
  const int64_t d = plan.problem.head_dim, width = width_of(e);
  std::vector<uint16_t> t(static_cast<size_t>(plan.problem.kv_heads * width * d), 0);
  for (int64_t h = 0; h < plan.problem.kv_heads; ++h)
    for (int64_t a = 0; a < d; ++a)
      for (int64_t c = 0; c < e.rank; ++c) {
        const float x = e.q_projection[static_cast<size_t>((h * d + a) * e.rank + c)];
        t[static_cast<size_t>((h * width + c) * d + a)] = plan.problem.dtype == SALE_BF16 ? to_bf16(x) : to_f16(x);
      }
  return t;
}

}  // namespace

int32_t width_of(const sale::Estimator& e) { return !e.projected ? e.rank : e.rank <= 28 ? 32 : 64; }

void make_tables(Plan& plan, const sale_options&, Areas& areas) {
  const sale_problem& p = plan.problem;
  cuda::Upload upload;
  const bool projected = plan.estimator.projected;
  const size_t q_at = projected ? upload.add(transposed(plan)) : 0;
  const std::shared_ptr<Tables> made = cuda::make_tables(architecture, plan, areas, upload);
  made->q_projection = projected ? cuda::part<uint16_t>(made->memory, q_at) : nullptr;

  int64_t most_items = 1;
  for (const cuda::Group& g : made->groups) most_items = std::max<int64_t>(most_items, g.items);
  const Estimator e = cuda::estimator_of(architecture, plan.estimator, nullptr, nullptr);
  const SelectScratch one = select_scratch(e, p.q_heads, 1);
  made->slice =
      std::clamp<int64_t>(cuda::slice_bytes / static_cast<int64_t>(one.q_codes + one.row_limits), 1, most_items);
  const SelectScratch scratch = cuda::all_dense(plan) ? SelectScratch{} : select_scratch(e, p.q_heads, made->slice);
  made->q_codes_at = areas.add(static_cast<int64_t>(scratch.q_codes));
  made->row_limits_at = areas.add(static_cast<int64_t>(scratch.row_limits));
  plan.state = made;
}

std::string explain(const Plan& plan) {
  const Tables& t = tables_of(plan);
  int64_t items = 0;
  for (const cuda::Group& g : t.groups) items += g.items;
  return text("device     ", t.device.ordinal, ", ", t.device.multiprocessors, " multiprocessors\n",  //
              "items      ", items, " query tiles x ", plan.problem.q_heads, " query heads in ", t.groups.size(),
              " launches, selected ", t.slice, " tiles at a time\n");
}

}  // namespace sale::sm90
