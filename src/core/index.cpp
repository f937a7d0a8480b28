// The key index as an object of its own.
#include <algorithm>

#include "core/objects.hpp"

using namespace sale;

namespace {

// What an index takes of a problem and of options, for the backends to look at.
sale_problem keys_of(const sale_problem& p) {
  sale_problem keys = sale_problem_init(1, p.kv_heads, p.kv_heads, 1, 1, p.head_dim, p.dtype);
  keys.device = p.device;
  keys.page_size = p.page_size;
  return keys;
}
sale_options keys_of(sale_options o) {
  o.compute = SALE_COMPUTE_EXACT;
  o.compensate = 0;
  return o;
}

}  // namespace

sale_status sale_index_create(const sale_problem* problem, const sale_options* options, int64_t capacity,
                              sale_index** index) {
  return guarded([&] {
    require(problem != nullptr, "problem: null");
    require(options != nullptr, "options: null");
    require(index != nullptr, "index: null");
    check_heads(*problem);
    require(capacity >= 1 && capacity <= (int64_t{1} << 31), "capacity: ", capacity, " is not in 1 .. 2^31");
    require(options->threads >= 0 && options->threads <= 1024, "threads: ", options->threads, " is not in 0 .. 1024");
    auto made = std::make_unique<sale_index>();
    made->problem = keys_of(*problem);
    made->estimator = check_estimator(*options, problem->kv_heads, problem->head_dim);
    std::string notes;
    made->backend = &choose_backend(made->problem, keys_of(*options), notes);
    const Stages& stages = *made->backend->stages;
    made->capacity = capacity;
    made->map = stages.index_map(problem->kv_heads, problem->head_dim, made->estimator, capacity);
    stages.open_index(*made, *options);
    made->memory = stages.space.allocate(made->map.total, problem->device);
    made->bytes += made->map.total;
    *index = made.release();
  });
}

void sale_index_destroy(sale_index* index) { delete index; }

sale_status sale_index_set_smoothing(sale_index* index, const float* vectors) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(vectors != nullptr, "vectors: null");
    require(index->length == 0, "index: holds ", index->length, " keys; smoothing vectors are fixed before the first");
    const sale_problem& p = index->problem;
    index->backend->stages->space.write(index->part(index->map.smoothing_at), vectors,
                                        static_cast<size_t>(p.kv_heads) * static_cast<size_t>(p.head_dim) * 4,
                                        p.device);
    index->smoothed = true;
    index->fixed = false;
  });
}

sale_status sale_index_update(sale_index* index, const void* k, sale_strides strides, int64_t k_len,
                              const int32_t* pages, void* stream) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(k != nullptr, "k: null");
    const sale_problem& p = index->problem;
    const int64_t size = element_bytes(p.dtype);
    require(reinterpret_cast<uintptr_t>(k) % static_cast<uintptr_t>(size) == 0, "k: not aligned to its elements of ",
            size, " bytes");
    require(k_len >= index->length, "k_len: ", k_len, " is below the ", index->length,
            " keys already indexed; truncate first");
    require(k_len >= 1 && k_len <= index->capacity, "k_len: ", k_len, " exceeds the capacity ", index->capacity);
    require(p.page_size == 0 || pages != nullptr, "pages: null, but the index was made for pages of ", p.page_size,
            " keys");
    require(p.page_size != 0 || pages == nullptr, "pages: given, but the index was made without a page_size");
    require(p.device != SALE_HOST || stream == nullptr, "stream: given, but the keys are in host memory; pass NULL");
    check_strides("k", strides, p.head_dim, 1, p.kv_heads, p.page_size != 0 ? p.page_size : k_len);
    index->backend->stages->update(*index, {k, strides, k_len, pages, stream});
    index->smoothed = index->fixed = true;
    index->length = k_len;
  });
}

sale_status sale_index_truncate(sale_index* index, int64_t k_len) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(k_len >= 0 && k_len <= index->length, "k_len: ", k_len, " is not in 0 .. ", index->length,
            ", the keys indexed");
    // The partial last block keeps codes made together with the keys that are gone. It is never scanned: a tile's last
    // blocks are local. The next update makes it anew.
    index->length = k_len;
  });
}

int64_t sale_index_length(const sale_index* index) { return index == nullptr ? 0 : index->length; }
size_t sale_index_bytes(const sale_index* index) { return index == nullptr ? 0 : index->bytes; }

sale_status sale_index_codes(const sale_index* index, int32_t head, const int8_t** codes, const float** scales,
                             const float** smoothing) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(head >= 0 && head < index->problem.kv_heads, "head: ", head, " is not in 0 .. ",
            index->problem.kv_heads - 1);
    index->backend->stages->codes(*index, head, codes, scales, smoothing);
  });
}
