// What the stages of GPU backends share: a call's pointers and the plan's tables put into the kernels' structs.
#pragma once

#include "cuda/common/tables.hpp"

namespace sale::cuda {

inline cudaStream_t stream_of(const Call& call) { return static_cast<cudaStream_t>(call.stream); }

Common common_of(const Architecture& a, const Call& call, const Group& group);
// Keys or values of sequence b.
Tokens tokens_of(const Call& call, const void* base, const sale_strides& strides, int64_t b);
LowBit low_bit_of(const Call& call);

// Stages, or parts of them.
void make_indexes(const Architecture& a, const Call& call);
void make_stand_ins(const Call& call);  // means of blocks and 8-bit keys and values, as far as the plan asks for them
void wait(const Call& call);
void audit(const Architecture& a, const Call& call, sale_head_audit* to);
void count(const Architecture& a, const Call& call, int64_t first, int64_t n, int64_t* kept);

}  // namespace sale::cuda
