// Tensor maps: what the copy engine is told about q, k and v.
#include <initializer_list>

#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {

const char* why_not_map(const MapSpec& s, int32_t dtype) {
  if (dtype != SALE_BF16 && dtype != SALE_F16) return "its elements are not 16 bits wide";
  if (reinterpret_cast<uintptr_t>(s.base) % 16 != 0) return "it is not aligned to 16 bytes";
  for (const int64_t stride : {s.token_stride, s.head_stride, s.outer_stride})
    if (stride % 8 != 0) return "a stride is not a multiple of 8 elements (16 bytes)";
  for (const int64_t stride : {s.token_stride, s.head_stride, s.outer_stride})
    if (stride >= int64_t{1} << 39) return "a stride exceeds 2^39 elements";
  return "";
}

CUresult make_map(EncodeTiled encode, const MapSpec& s, int32_t dtype, CUtensorMap* map) {
  // An axis of one element is never stepped along, so its stride may be anything the encoder accepts.
  const auto bytes = [](int64_t stride, int64_t extent) {
    return static_cast<cuuint64_t>(extent == 1 ? 16 : stride * 2);
  };
  const cuuint64_t extents[4] = {static_cast<cuuint64_t>(s.head_dim), static_cast<cuuint64_t>(s.tokens),
                                 static_cast<cuuint64_t>(s.heads), static_cast<cuuint64_t>(s.outer)};
  const cuuint64_t strides[3] = {bytes(s.token_stride, s.tokens), bytes(s.head_stride, s.heads),
                                 bytes(s.outer_stride, s.outer)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(s.rows), 1, 1}, step[4] = {1, 1, 1, 1};
  return encode(map, dtype == SALE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
                const_cast<void*>(s.base), extents, strides, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace sale::sm90
