#include "cpu/common/attend.hpp"
#include "cpu/avx2/kernels.hpp"

namespace sale::avx2 {

using F32 = AttendPair<Attend<ScoreF32, MixF32>, Attend<ScoreI8, MixF32>>;

size_t attend_scratch(const Shape& s, int64_t tiles) { return F32::scratch(s, tiles); }
void attend(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) { F32::item(h, begin, end, scratch); }

}  // namespace sale::avx2
