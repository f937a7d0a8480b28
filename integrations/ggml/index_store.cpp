#include "index_store.hpp"

#include <algorithm>

namespace sale::ggml {
namespace {

// Sequences in one unified cache whose indexes are kept; the longest unused makes room.
constexpr size_t most_sequences = 8;
constexpr size_t most_owners = 4096;
// docs/method.md: a smoothing vector of 4096 keys is as good as one of all of them, one of 1024 is not quite.
constexpr int64_t enough_to_smooth = 4096;

size_t common(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  const size_t n = std::min(a.size(), b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), b.begin()).first -
                             a.begin());
}

}  // namespace

// The entry that shares the longest beginning. One that shares little with it belongs to another sequence with the same
// opening (a system prompt) and is left alone while there is room.
IndexStore::Entry& IndexStore::choose(Owner& owner, const std::vector<uint64_t>& digests) {
  Entry* best = nullptr;
  size_t shared = 0;
  for (Entry& e : owner.entries)
    if (const size_t n = common(e.digests, digests); n > shared) best = &e, shared = n;
  if (best != nullptr && (2 * shared >= best->digests.size() || owner.entries.size() >= most_sequences)) return *best;
  if (owner.entries.size() < most_sequences) return owner.entries.emplace_back();
  Entry& oldest = *std::ranges::min_element(owner.entries, {}, &Entry::used);
  oldest = {};
  return oldest;
}

const KeyIndex& IndexStore::update(const Problem& problem, const std::shared_ptr<const Options>& options,
                                   const Keys& keys, int64_t& reused) {
  if (owners_.size() >= most_owners && !owners_.contains(keys.owner)) owners_.clear();
  Owner& owner = owners_[keys.owner];
  if (owner.options != options) owner = {options, {}};
  Entry& e = choose(owner, keys.digests);
  e.used = ++clock_;
  const auto blocks = static_cast<int64_t>(common(e.digests, keys.digests));
  const bool better = e.smoothed_over < enough_to_smooth && keys.count > e.smoothed_over;
  if (!e.index || blocks == 0 || e.most < keys.count || better) {
    const uint64_t used = e.used;
    e = {};  // its memory first
    e.used = used;
    e.most = std::max(keys.most, keys.count);
    e.index = std::make_unique<KeyIndex>(problem, *options, e.most);
    e.smoothed_over = keys.count;
    reused = 0;
  } else {
    // The last, partial block is always read again.
    reused = blocks * SALE_K_BLOCK;
    e.index->truncate(reused);
    e.digests.resize(static_cast<size_t>(blocks));
  }
  e.index->update(keys.data, keys.strides, keys.count);
  e.digests = keys.digests;
  return *e.index;
}

size_t IndexStore::bytes() const {
  size_t sum = 0;
  for (const auto& [key, owner] : owners_)
    for (const Entry& e : owner.entries) sum += e.index ? e.index->bytes() : 0;
  return sum;
}

}  // namespace sale::ggml
