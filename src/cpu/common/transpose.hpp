// Key blocks are packed by turning 32-bit words: element type and width do not matter to it.
#pragma once

#include "cpu/common/simd.hpp"

namespace sale {
namespace {

// Panels of sixteen rows: to[panel][word][row], `words` a multiple of 4.
SALE_INLINE void pack_panels(const uint32_t* const* rows, int panels, int64_t words, uint32_t* to) {
  for (int p = 0; p < panels; ++p, to += words * 16) {
    const uint32_t* const* panel = rows + 16 * p;
    int64_t w = 0;
    for (; w + 16 <= words; w += 16) transpose_16x16(panel, w, to + w * 16);
    for (; w < words; ++w)
      for (int r = 0; r < 16; ++r) to[w * 16 + r] = panel[r][w];
  }
}

}  // namespace
}  // namespace sale
