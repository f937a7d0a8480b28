// Rows of tensors as ggml stores them, converted to what the library computes with and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host.hpp"
#include "sale/sale.h"

namespace sale::ggml {

constexpr size_t size_of(sale_dtype t) { return t == SALE_F32 ? 4 : 2; }

// The type in which rows of a stored type are computed: Q8_0 is unpacked to F16, others are as they are.
sale_dtype computed_as(Type stored);
// Bytes of a row of n numbers, n a multiple of 32 for Q8_0.
size_t row_bytes(Type stored, int64_t n);

// n numbers each. Rounded to nearest even; F16 beyond its range becomes infinite.
void round_row(sale_dtype to, const float* from, void* out, int64_t n);
void widen_row(sale_dtype from, const void* in, float* out, int64_t n);
// A stored row in the type it is computed in.
void unpack_row(Type stored, const void* in, void* out, int64_t n);

}  // namespace sale::ggml
