#include "layers.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>
#include <string_view>

#include "sale/calibration.hpp"

namespace sale::ggml {
namespace {

// Pointers come and go with contexts; what is remembered of those gone is forgotten at this many.
constexpr size_t most_caches = 4096, most_threads = 64;

// The N of PREFIX N SUFFIX, or -1.
int32_t number_in(std::string_view name, std::string_view prefix, std::string_view suffix) {
  if (!name.starts_with(prefix) || !name.ends_with(suffix) || name.size() <= prefix.size() + suffix.size()) return -1;
  name = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
  int32_t n = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), n);
  return error == std::errc() && end == name.data() + name.size() && n >= 0 ? n : -1;
}

std::string_view name_of(const Tensor& t) { return {t.name, strnlen(t.name, sizeof t.name)}; }

std::vector<std::byte> as_hashed(const Tensor& norm) {
  const std::string head = std::string(name_of(norm)) + '\0' + "F32" + '\0' + std::to_string(norm.ne[0]) + ",";
  const size_t data = std::min<size_t>(64, static_cast<size_t>(norm.ne[0]) * 4);
  std::vector<std::byte> bytes(head.size() + data);
  std::memcpy(bytes.data(), head.data(), head.size());
  std::memcpy(bytes.data() + head.size(), norm.data, data);
  return bytes;
}

}  // namespace

int32_t cache_layer(const Tensor& k) {
  return k.view_src == nullptr ? -1 : number_in(name_of(*k.view_src), "cache_k_l", "");
}

void Models::saw(const Host& host, const Tensor& op) {
  if (op.op == host.op_multiply) {
    for (int i = 0; i < 2; ++i) {
      const Tensor* t = op.src[i];
      if (t == nullptr || t->type != host.f32 || t->ne[0] < 1 || t->ne[1] != 1 || t->data == nullptr) continue;
      const int32_t layer = number_in(name_of(*t), "blk.", ".attn_norm.weight");
      if (layer < 0 || t->buffer == nullptr || !host.backend_buffer_is_host(t->buffer)) continue;
      const std::lock_guard lock(mutex_);
      if (planned_.size() >= most_threads) planned_.clear();
      auto& norms = planned_[std::this_thread::get_id()];
      // The first layer again: another graph.
      if (!norms || (!norms->empty() && layer <= norms->begin()->first)) norms = std::make_shared<Norms>();
      (*norms)[layer] = as_hashed(*t);
    }
  } else if (op.op == host.op_flash_attention && op.src[1] != nullptr && cache_layer(*op.src[1]) >= 0) {
    const std::lock_guard lock(mutex_);
    const auto norms = planned_.find(std::this_thread::get_id());
    if (norms == planned_.end()) return;
    if (by_cache_.size() >= most_caches) by_cache_.clear();
    by_cache_[op.src[1]->view_src->data] = norms->second;
  }
}

std::optional<uint64_t> Models::fingerprint(const void* cache) const {
  const std::lock_guard lock(mutex_);
  const auto norms = by_cache_.find(cache);
  if (norms == by_cache_.end() || norms->second->empty()) return std::nullopt;
  Fingerprint hash;
  for (const auto& [layer, bytes] : *norms->second) hash.add(bytes);
  return hash.value();
}

int32_t Models::layers(const void* cache) const {
  const std::lock_guard lock(mutex_);
  const auto norms = by_cache_.find(cache);
  // Numbered from 0 without a gap, or not those of a whole model.
  if (norms == by_cache_.end() || norms->second->empty()) return 0;
  const auto count = static_cast<int32_t>(norms->second->size());
  return norms->second->rbegin()->first == count - 1 ? count : 0;
}

}  // namespace sale::ggml
