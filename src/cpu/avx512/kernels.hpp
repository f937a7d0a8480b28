// Compiled for AVX-512.
#pragma once

#include "core/kernel.hpp"

namespace sale::avx512 {

size_t select_scratch(const Shape& s, int64_t tiles);
size_t attend_scratch(const Shape& s, int64_t tiles);
void index(const HeadGroup& h, int64_t begin, int64_t end);
void bias(const HeadGroup& h, int64_t begin, int64_t end);
void select(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
void attend(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
size_t audit_scratch(const Shape& s);
void audit(const HeadGroup& h, const int64_t* rows, int64_t begin, int64_t end, AuditedRow* to, void* scratch);

// bf16 tensors on machines with AVX512-BF16; other types go to the functions above.
size_t attend_scratch_bf16(const Shape& s, int64_t tiles);
void attend_bf16(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);

}  // namespace sale::avx512
