// What every instruction set brings: a table of kernels, or the functions that take the place of some in another's.
#pragma once

#include "core/kernel.hpp"

namespace sale {

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
// On machines with AVX512-BF16: bf16 tensors by its products, others as above.
size_t attend_scratch_bf16(const Shape& s, int64_t tiles);
void attend_bf16(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
}  // namespace avx512
namespace amx {
size_t select_scratch(const Shape& s, int64_t tiles);
size_t attend_scratch(const Shape& s, int64_t tiles);
void select(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
void attend(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
}  // namespace amx

}  // namespace sale
