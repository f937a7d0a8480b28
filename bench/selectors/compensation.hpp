// Compensation on top of any selection, as docs/numerics.md section 6 has it but for tiles of 64 rows: every dropped
// block below the local ones adds one pseudo-key, the mean of its keys and of its values with the weight of 32. For
// the pictures: a kernel does it on the fly.
#pragma once

#include <vector>

#include "lm/attention.hpp"
#include "sale/sale.hpp"

namespace sale::bench {

// out: attention over `blocks`; lse: its log-sum-exp, [q_heads, q_len].
void compensate(const lm::AttentionCall& call, const BlockList& blocks, const std::vector<float>& lse, int threads);

}  // namespace sale::bench
