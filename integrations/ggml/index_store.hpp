// Key indexes kept beside the host's KV cache, so that a prompt that comes in pieces is not coded again with each
// piece.
//
// The host says nothing when cells are rewritten, shifted, freed and given to another sequence, or restored from a
// file. So nothing it could say is relied on: an index remembers a digest of the bytes of every block of keys it has
// coded, and each call compares them with the keys as they are now. What differs is forgotten from there on. Reading
// the keys once per call is little beside attention, which reads them once per query row.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "sale/sale.hpp"

namespace sale::ggml {

class IndexStore {
public:
  struct Keys {
    const void* owner;                     // the cache tensor's stream: its first byte
    const std::vector<uint64_t>& digests;  // of whole blocks
    const void* data;
    sale_strides strides;
    int64_t count, most;  // keys now, and how many the cache can hold
  };
  // An index of these keys. `options`: of the owner; another object means that what was made before is of no use.
  // reused: keys that were not coded again.
  const KeyIndex& update(const Problem& problem, const std::shared_ptr<const Options>& options, const Keys& keys,
                         int64_t& reused);
  void forget(const void* owner) { owners_.erase(owner); }
  size_t bytes() const;

private:
  struct Entry {
    std::unique_ptr<KeyIndex> index;
    std::vector<uint64_t> digests;  // of the whole blocks it holds
    int64_t smoothed_over = 0;      // keys there were when the smoothing vector was made
    int64_t most = 0;
    uint64_t used = 0;
  };
  struct Owner {
    std::shared_ptr<const Options> options;
    std::vector<Entry> entries;  // one per sequence that shares the cache's cells
  };
  Entry& choose(Owner& owner, const std::vector<uint64_t>& digests);

  std::map<const void*, Owner> owners_;
  uint64_t clock_ = 0;
};

}  // namespace sale::ggml
