#include "cuda/sm90/device.hpp"

#include "cuda/sm90/host.hpp"
#include "cuda/sm90/tables.hpp"

namespace sale::sm90 {
namespace {

bool serves(int32_t major, int32_t minor) { return major == 9 && minor == 0; }

int32_t scales_of(const sale::Estimator& e) { return e.format == SALE_FP8 ? 0 : 1; }

void decode(const uint8_t* codes, int64_t key, const sale::Estimator& e, int8_t* to) {
  for (int32_t c = 0; c < e.rank; ++c) to[c] = static_cast<int8_t>(codes[code_offset(key, c, width_of(e))]);
}

}  // namespace

const cuda::Architecture architecture{{"9.0", serves, "9.0", serves, prepare_device},
                                      tile_rows,
                                      width_of,
                                      scales_of,
                                      index_scratch_bytes,
                                      launch_index,
                                      decode,
                                      launch_audit};

EncodeTiled tensor_map_encoder() {
  static const EncodeTiled encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    cuda::must(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found),
               "looking for cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) fail(SALE_UNSUPPORTED, "cuda: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<EncodeTiled>(f);
  }();
  return encode;
}

std::string why_no_device() {
  static const std::string why = cuda::why_no_device(architecture.generation);
  return why;
}

std::string why_not_unasked(const sale_problem& p) { return cuda::why_not_unasked(architecture.generation, p.device); }

}  // namespace sale::sm90
