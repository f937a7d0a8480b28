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
namespace neon {
extern const Kernels kernels;          // every 64-bit Arm CPU
extern const Kernels kernels_dotprod;  // dot products of four
// With 8-bit and bf16 matrix products, beside those above: tensors that are not bf16 are multiplied in f32 there too.
size_t select_scratch_matrix(const Shape& s, int64_t tiles);
void select_matrix(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
size_t attend_scratch_matrix(const Shape& s, int64_t tiles);
void attend_matrix(const HeadGroup& h, int64_t begin, int64_t end, void* scratch);
}  // namespace neon

}  // namespace sale
