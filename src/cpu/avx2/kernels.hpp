// Compiled for AVX2 and FMA.
#pragma once

#include "core/kernel.hpp"

namespace sale::avx2 {

size_t select_scratch(const Shape& s, int64_t tiles);
size_t attend_scratch(const Shape& s, int64_t tiles);
void index(const HeadGroup& h, int64_t begin, int64_t end);
void bias(const HeadGroup& h, int64_t begin, int64_t end);
void select(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
void attend(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
size_t audit_scratch(const Shape& s);
void audit(const HeadGroup& h, const int64_t* rows, int64_t begin, int64_t end, AuditedRow* to, void* scratch);

}  // namespace sale::avx2
