// Compiled for AMX (INT8 and BF16 tiles) and AVX-512.
#pragma once

#include "core/kernel.hpp"

namespace sale::amx {

size_t select_scratch(const Shape& s, int64_t tiles);
size_t attend_scratch(const Shape& s, int64_t tiles);
void select(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
void attend(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);

}  // namespace sale::amx
