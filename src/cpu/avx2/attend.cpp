#include "cpu/avx2/kernels.hpp"
#include "cpu/common/audit.hpp"

namespace sale::avx2 {

using F32 = AttendPair<Attend<ScoreF32, MixF32>, Attend<ScoreI8, MixF32>>;

size_t attend_scratch(const Shape& s, int64_t tiles) { return F32::scratch(s, tiles); }
void attend(const HeadGroup& h, int64_t begin, int64_t end, void* scratch) { F32::item(h, begin, end, scratch); }
size_t audit_scratch(const Shape& s) { return Audit::scratch(s); }
void audit(const HeadGroup& h, const int64_t* rows, int64_t begin, int64_t end, AuditedRow* to, void* scratch) {
  Audit::item(h, rows, begin, end, to, scratch);
}

}  // namespace sale::avx2
