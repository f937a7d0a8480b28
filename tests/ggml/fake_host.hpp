// A ggml made for tests: the functions that the backend looks up, exported by this program, a registry, tensors, and a
// CPU backend that computes flash attention plainly in double precision. It follows the public description of the
// operation and shares no code with the backend but the tables of integrations/ggml/ggml_abi.hpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "integrations/ggml/ggml_abi.hpp"

namespace sale::ggml {
struct Graph {
  std::vector<Tensor*> nodes;
};
}  // namespace sale::ggml

namespace fake {

using sale::ggml::Tensor;

constexpr int32_t f32 = 0, f16 = 1, q4_0 = 2, q8_0 = 8, bf16 = 30;
constexpr int32_t op_none = 0, op_multiply = 4, op_view = 7, op_flash = 20;

// What the registered CPU backend says it is; set before the library is loaded.
extern int32_t api_version;
// The next aligned allocation of at least this many bytes fails, once; 0: none does.
extern size_t failing_allocation;
// Rows that the CPU backend computed.
extern int64_t plain_rows;

size_t element_bytes(int32_t type);  // of a block for quantized types
int64_t block_elements(int32_t type);
size_t row_bytes(int32_t type, int64_t n);
// Rounded as the types say; Q8_0 by the largest element of 32.
void store(int32_t type, const float* from, void* to, int64_t n);
void load(int32_t type, const void* from, float* to, int64_t n);
uint16_t half(float f);

// A tensor without gaps and its memory, which lives until the program ends.
Tensor* make(int32_t type, int64_t n0, int64_t n1, int64_t n2, int64_t n3, const std::string& name);
Tensor* operation(int32_t op, int32_t type, int64_t n0, int64_t n1, int64_t n2, int64_t n3);
void attend_plainly(const Tensor& op);

}  // namespace fake
