// The key index as an object of its own.
#include <algorithm>

#include "core/checked.hpp"
#include "core/objects.hpp"

using namespace sale;

IndexView sale_index::view(int32_t kv_head) const {
  char* base = static_cast<char*>(memory->data);
  const size_t h = static_cast<size_t>(kv_head);
  IndexView view{};
  view.codes = reinterpret_cast<int8_t*>(base + map.codes_at + map.head_codes * h);
  view.scales = reinterpret_cast<float*>(base + map.scales_at + map.head_scales * h);
  view.smoothing = reinterpret_cast<float*>(base + map.smoothing_at) + int64_t{kv_head} * problem.head_dim;
  if (estimator.projected)
    view.projection = estimator.k_projection.data() + int64_t{kv_head} * problem.head_dim * estimator.rank;
  return view;
}

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
    made->problem = *problem;
    made->estimator = check_estimator(*options, problem->kv_heads, problem->head_dim);
    std::string notes;
    made->backend = &choose_backend(*problem, *options, notes);
    made->kernels = &made->backend->kernels(machine());
    made->pool = shared_pool(options->threads != 0 ? options->threads : machine().cpus);
    made->capacity = capacity;
    made->map = index_map(problem->kv_heads, problem->head_dim, made->estimator, capacity);
    made->memory = std::make_unique<Buffer>(made->map.total);
    *index = made.release();
  });
}

void sale_index_destroy(sale_index* index) { delete index; }

sale_status sale_index_set_smoothing(sale_index* index, const float* vectors) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(vectors != nullptr, "vectors: null");
    require(index->length == 0, "index: holds ", index->length, " keys; smoothing vectors are fixed before the first");
    float* to = const_cast<float*>(index->view(0).smoothing);
    std::copy(vectors, vectors + int64_t{index->problem.kv_heads} * index->problem.head_dim, to);
    index->smoothed = true;
  });
}

sale_status sale_index_update(sale_index* index, const void* k, sale_strides strides, int64_t k_len) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(k != nullptr, "k: null");
    const sale_problem& p = index->problem;
    const size_t size = p.dtype == SALE_F32 ? 4 : 2;
    require(reinterpret_cast<uintptr_t>(k) % size == 0, "k: not aligned to its elements of ", size, " bytes");
    require(k_len >= index->length, "k_len: ", k_len, " is below the ", index->length,
            " keys already indexed; truncate first");
    require(k_len >= 1 && k_len <= index->capacity, "k_len: ", k_len, " exceeds the capacity ", index->capacity);
    check_strides("k", strides, p.head_dim, 1, p.kv_heads, k_len);
    HeadGroup h{};
    h.shape.dtype = p.dtype;
    h.shape.head_dim = p.head_dim;
    h.shape.group = 1;
    h.shape.rank = index->estimator.rank;
    h.shape.format = index->estimator.format;
    h.k_token = strides.token;
    h.k_len = k_len;
    const auto head = [&](int64_t i) {
      HeadGroup one = h;
      one.k = static_cast<const char*>(k) + i * strides.head * static_cast<int64_t>(size);
      one.index = index->view(static_cast<int32_t>(i));
      return one;
    };
    if (!index->smoothed) {
      index->pool->run(p.kv_heads, [&](int64_t i, int) {
        mean_rows(k, p.dtype, strides.head, strides.token, static_cast<int32_t>(i), k_len, p.head_dim,
                  const_cast<float*>(head(i).index.smoothing));
      });
      index->smoothed = true;
    }
    constexpr int64_t step = 64;
    const int64_t first = index->length / k_block, blocks = ceil_div(k_len, k_block);
    const int64_t ranges = ceil_div(blocks - first, step);
    index->pool->run(ranges * p.kv_heads, [&](int64_t i, int) {
      const int64_t begin = first + i % ranges * step;
      index->kernels->index(head(i / ranges), begin, std::min(begin + step, blocks));
    });
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
size_t sale_index_bytes(const sale_index* index) { return index == nullptr ? 0 : index->memory->size; }

sale_status sale_index_codes(const sale_index* index, int32_t head, const int8_t** codes, const float** scales,
                             const float** smoothing) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(head >= 0 && head < index->problem.kv_heads, "head: ", head, " is not in 0 .. ",
            index->problem.kv_heads - 1);
    const IndexView view = index->view(head);
    if (codes != nullptr) *codes = view.codes;
    if (scales != nullptr) *scales = view.scales;
    if (smoothing != nullptr) *smoothing = view.smoothing;
  });
}
