// The key index as an object of its own.
#include <algorithm>

#include "core/objects.hpp"
#include "core/sized.hpp"

using namespace sale;

namespace {

constexpr int64_t most_keys = int64_t{1} << 31;

IndexMap map_of(const Layer& l, int64_t capacity) {
  return l.stages().index_map(l.kv_heads, l.head_dim, l.form, capacity);
}
size_t memory_of(const Layer& l, const IndexMap& map) {
  return map.total + l.stages().index_scratch(l.kv_heads, l.head_dim);
}

}  // namespace

size_t sale_index_memory(const sale_estimator* estimator, int64_t capacity) {
  if (estimator == nullptr || capacity < 1 || capacity > most_keys) return 0;
  return memory_of(*estimator->layer, map_of(*estimator->layer, capacity));
}

size_t sale_index_page_bytes(const sale_estimator* estimator, int32_t page_size) {
  if (estimator == nullptr || page_size < 1 || page_size % k_block != 0) return 0;
  const Layer& l = *estimator->layer;
  return l.codes_by_key() ? map_of(l, page_size).page() : 0;
}

sale_status sale_index_forget(const sale_estimator* estimator, const sale_index_slots* slots) {
  return guarded([&] {
    require(estimator != nullptr, "estimator: null");
    const sale_index_slots s = sized(slots, "slots");
    const Layer& l = *estimator->layer;
    require(s.pages >= 1 && s.pages <= INT32_MAX, "pages: ", s.pages, " is not in 1 .. 2^31 - 1");
    require(s.layers >= 1 && s.layers <= 65535, "layers: ", s.layers, " is not in 1 .. 65535");
    require(s.layers == 1 || (s.layer_stride >= s.pages && s.layer_stride <= most_keys),
            "layer_stride: ", s.layer_stride, " is not in pages ", s.pages, " .. 2^31");
    require(s.page_size >= k_block && s.page_size % k_block == 0, "page_size: ", s.page_size, " is not a multiple of ",
            k_block);
    require(s.n_slots >= 0 && s.n_slots <= INT32_MAX, "n_slots: ", s.n_slots, " is not in 0 .. 2^31 - 1");
    require(l.device != SALE_HOST || s.stream == nullptr,
            "stream: given, but the numbers are in host memory; pass NULL");
    require(s.coded != nullptr && reinterpret_cast<uintptr_t>(s.coded) % 4 == 0,
            "coded: null, or not aligned to its elements of 4 bytes");
    l.stages().space.check("coded", s.coded, l.device);
    if (s.n_slots == 0) return;
    require(s.slots != nullptr && reinterpret_cast<uintptr_t>(s.slots) % 8 == 0,
            "slots: null, or not aligned to its elements of 8 bytes");
    l.stages().space.check("slots", s.slots, l.device);
    l.stages().forget(l, s);
  });
}

sale_status sale_index_create(const sale_estimator* estimator, const sale_index_options* options, sale_index** index) {
  return guarded([&] {
    require(estimator != nullptr, "estimator: null");
    const sale_index_options o = sized(options, "options");
    require(index != nullptr, "index: null");
    require(o.capacity >= 1 && o.capacity <= most_keys, "capacity: ", o.capacity, " is not in 1 .. 2^31");
    require(o.page_size >= 0 && o.page_size % 16 == 0, "page_size: ", o.page_size,
            " is neither 0 nor a multiple of 16");
    const Layer& l = *estimator->layer;
    auto made = std::make_unique<sale_index>();
    made->layer = estimator->layer;
    made->page_size = o.page_size;
    made->capacity = o.capacity;
    made->map = map_of(l, o.capacity);
    made->smoothed = !l.smoothing.empty();
    made->fixed = l.codes_by_key();
    made->bytes = memory_of(l, made->map);
    l.stages().open_index(*made);
    if (o.memory != nullptr) {
      require(reinterpret_cast<uintptr_t>(o.memory) % 64 == 0, "memory: not aligned to 64 bytes");
      require(o.memory_bytes >= made->bytes, "memory_bytes: ", o.memory_bytes, " is below the ", made->bytes, " that ",
              o.capacity, " keys take");
      l.stages().space.check("memory", o.memory, l.device);
      made->memory = {o.memory, [](void*) {}};
    } else {
      require(o.memory_bytes == 0, "memory: null, but memory_bytes is ", o.memory_bytes);
      made->memory = l.stages().space.allocate(made->bytes, l.device);
    }
    *index = made.release();
  });
}

void sale_index_destroy(sale_index* index) { delete index; }

sale_status sale_index_update(sale_index* index, const void* k, sale_strides strides, int64_t k_len,
                              const int32_t* pages, void* stream) {
  return guarded([&] {
    require(index != nullptr, "index: null");
    require(k != nullptr, "k: null");
    const Layer& l = *index->layer;
    const int64_t size = element_bytes(l.dtype);
    require(reinterpret_cast<uintptr_t>(k) % static_cast<uintptr_t>(size) == 0, "k: not aligned to its elements of ",
            size, " bytes");
    require(k_len >= index->length, "k_len: ", k_len, " is below the ", index->length,
            " keys already indexed; truncate first");
    require(k_len >= 1 && k_len <= index->capacity, "k_len: ", k_len, " exceeds the capacity ", index->capacity);
    require(index->page_size == 0 || pages != nullptr, "pages: null, but the index was made for pages of ",
            index->page_size, " keys");
    require(index->page_size != 0 || pages == nullptr, "pages: given, but the index was made without a page_size");
    require(l.device != SALE_HOST || stream == nullptr, "stream: given, but the keys are in host memory; pass NULL");
    check_strides("k", strides, l.head_dim, 1, l.kv_heads, index->page_size != 0 ? index->page_size : k_len);
    l.stages().update(*index, {k, strides, k_len, pages, stream});
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
    require(head >= 0 && head < index->layer->kv_heads, "head: ", head, " is not in 0 .. ", index->layer->kv_heads - 1);
    index->layer->stages().codes(*index, head, codes, scales, smoothing);
  });
}
