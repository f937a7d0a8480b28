// Small problems out of the whole space: every field has its usual value most of the time, so that rare values meet
// mostly usual company and a failure has one likely cause.
#include <algorithm>

#include "case/case.hpp"
#include "case/random.hpp"

namespace sale_case {
namespace {

template <class T, size_t n>
T pick(Random& random, const T (&values)[n]) {
  return values[random.below(static_cast<int64_t>(n))];
}

// Lengths around every block boundary, some in the hundreds, few in the thousands.
int64_t length(Random& random, int64_t most) {
  const int64_t kind = random.below(100);
  int64_t n;
  if (kind < 35) {
    n = random.between(1, 257);
  } else if (kind < 55) {
    n = 32 * random.between(1, 20) + random.between(-1, 1);
  } else if (kind < 90) {
    n = random.between(200, 700);
  } else if (kind < 97) {
    n = random.between(700, 1500);
  } else {
    n = random.between(1500, 4096);
  }
  return std::clamp<int64_t>(n, 1, most);
}

// Queries and offset of one sequence of k keys.
void position(Random& random, int64_t k, int64_t& q, int64_t& offset) {
  const int64_t kind = random.below(10);
  q = k;
  offset = SALE_AUTO;
  if (kind < 4) return;  // the whole prompt
  q = random.between(1, k);
  if (kind < 7) return;                          // a chunk at the end
  if (kind < 8) offset = k;                      // not causal
  if (kind == 8) offset = random.below(k + 65);  // anywhere, also past the keys
  if (kind == 9) {                               // more queries than keys
    q = std::min<int64_t>(k + random.below(100), 2048);
    offset = random.below(40);
  }
}

void shape(Random& random, Case& c, const Limits& limits) {
  constexpr int32_t dims[]{64, 64, 64, 128, 128, 128, 16, 32, 48, 80, 96, 112, 160, 192, 256};
  constexpr int32_t groups[]{1, 1, 2, 3, 4, 7};
  c.head_dim = pick(random, dims);
  const bool ragged = random.one_in(4);
  c.batch = ragged ? static_cast<int32_t>(random.between(1, 4)) : random.one_in(4) ? 2 : 1;
  c.k_len = length(random, limits.tokens);
  position(random, c.k_len, c.q_len, c.q_offset);
  if (ragged) {
    for (int32_t b = 0; b < c.batch; ++b) {
      const int64_t k = b == 0 ? c.k_len : std::max<int64_t>(1, random.between(1, c.k_len));
      int64_t q, offset;
      position(random, k, q, offset);
      c.q_lens.push_back(q);
      c.k_lens.push_back(k);
      c.q_offsets.push_back(offset);
    }
    c.q_offset = SALE_AUTO;
    c.q_len = *std::max_element(c.q_lens.begin(), c.q_lens.end());
    c.k_len = *std::max_element(c.k_lens.begin(), c.k_lens.end());
  }
  const int64_t per_head = c.batch * c.q_len * c.k_len * c.head_dim;
  const int64_t heads = std::clamp<int64_t>(limits.products / std::max<int64_t>(per_head, 1), 1, 14);
  const int32_t group = static_cast<int32_t>(std::min<int64_t>(pick(random, groups), heads));
  c.kv_heads = static_cast<int32_t>(random.between(1, std::clamp<int64_t>(heads / group, 1, 3)));
  c.q_heads = group * c.kv_heads;
}

void estimate(Random& random, Case& c) {
  constexpr float taus[]{0.004f, 0.004f, 0.004f, 0.001f, 0.002f, 0.008f, 0.01f, 0.05f, 0.3f, 1e-5f, 3.0f};
  c.taus = {pick(random, taus)};
  if (c.q_heads > 1 && random.one_in(3)) {
    c.taus.clear();
    for (int32_t h = 0; h < c.q_heads; ++h)
      c.taus.push_back(random.one_in(4) ? 0.0f : random.one_in(6) ? SALE_TAU_LOCAL : pick(random, taus));
  } else if (random.one_in(20)) {
    c.taus = {0.0f};
  }
  const int64_t format = random.below(100);
  c.format = format < 30 ? SALE_INT4 : format < 55 ? SALE_FP4 : SALE_INT8;
  if (c.head_dim > 16 && random.one_in(3)) c.rank = static_cast<int32_t>(16 * random.between(1, c.head_dim / 16));
  if (random.one_in(5)) c.scale = 0.05f + 0.2f * random.uniform();
}

// A case in four has a window: of a key, near a block's boundary, within the local region, beyond the keys.
void window(Random& random, Case& c) {
  if (!random.one_in(4)) return;
  const int64_t kind = random.below(8);
  if (kind == 0) c.window = random.between(1, 40);
  if (kind == 1) c.window = 32 * random.between(1, 12) + random.between(-1, 1);
  if (kind == 2) c.window = c.local + random.between(-31, 130);
  if (kind >= 3) c.window = random.between(1, c.k_len + 40);
  c.window_sink = random.one_in(2);
}

Data data(Random& random) {
  if (random.below(100) < 55) return Data::real_like;
  if (random.below(100) < 35) return Data::normal;
  return static_cast<Data>(random.between(static_cast<int64_t>(Data::integers), static_cast<int64_t>(Data::inf_v)));
}

}  // namespace

Case random_case(uint64_t seed, const Limits& limits) {
  Random random(seed ^ 0x5a1e);
  Case c;
  shape(random, c, limits);
  estimate(random, c);
  constexpr sale_dtype types[]{SALE_BF16, SALE_BF16, SALE_F16, SALE_F32};
  constexpr int32_t sinks[]{32, 32, 32, 64, 96, 128, 256}, locals[]{32, 64, 128, 128, 128, 96, 256, 512};
  constexpr int64_t dense[]{0, 0, 0, 0, 0, 0, 100, 256};
  c.dtype = pick(random, types);
  c.compute = random.one_in(4) ? SALE_COMPUTE_INT8 : SALE_COMPUTE_EXACT;
  c.sink = pick(random, sinks);
  c.local = pick(random, locals);
  c.dense_below = pick(random, dense);
  c.with_index = random.one_in(3);
  c.layout = static_cast<Layout>(random.below(5));
  c.data = data(random);
  c.threads = static_cast<int32_t>(random.between(1, 3));
  c.seed = seed;
  // By numbers of its own: what else a seed stands for is what it was before there were windows.
  Random more(seed ^ 0x317d0e);
  window(more, c);
  return c;
}

}  // namespace sale_case
