#include "cpu/common/select.hpp"
#include "cpu/avx2/kernels.hpp"

namespace sale::avx2 {

size_t select_scratch(const Shape& s, int64_t tiles) { return Select<ScanDot>::scratch(s, tiles); }
void index(const HeadGroup& h, int64_t begin, int64_t end) { index_blocks(h, begin, end); }
void bias(const HeadGroup& h, int64_t begin, int64_t end) { bias_blocks(h, begin, end); }
void select(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) {
  Select<ScanDot>::item(h, begin, end, scratch);
}

}  // namespace sale::avx2
