// What a plan and a key index keep on their device, and where their scratch is.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/common/architecture.hpp"

namespace sale::cuda {

// Sequences of one launch, and their tiles.
struct Group {
  int32_t first_sequence, sequences;
  int64_t first_item;
  int32_t items;
  int64_t first_chunk = 0;
  int32_t chunks = 0;
};

struct Tables {
  Device device;
  std::shared_ptr<void> memory;  // all of the following
  const Item* items;             // of every group, longest first
  const int64_t* row_word;
  const float* thresholds;
  const float* k_projection;  // or null
  const void* q_projection;   // or null; as the backend keeps it
  const Item* chunks;         // sm80: what is selected at a time, of every group
  std::vector<Group> groups;
  std::vector<int64_t> row_word_at;  // per sequence
  int64_t slice;                     // items selected at a time
  const int64_t* audited;            // rows, sequence-major
  std::vector<int64_t> audited_at;   // per sequence
  int64_t audit_slice;               // rows audited at a time
  // In the workspace, bytes.
  size_t q_codes_at, row_limits_at;          // selection
  size_t q_means_at, bias_at, q_scratch_at;  // sm80
  std::vector<int64_t> bias_tokens;          // sm80: first of each sequence
  int64_t bias_keys;                         // of all
  size_t counter_at, counts_at, index_scratch_at, audit_rows_at, audit_partials_at, audits_at;
  // What stands for keys and values, [kv_heads, blocks, ...]: first blocks of each sequence, then where the arrays are.
  std::vector<int64_t> mean_at, block_at, mean_block_at;
  int64_t means, blocks, coded_blocks;
  size_t k_means_at, v_means_at;                                        // compensation
  size_t k_codes_at, v_codes_at, k_scales_at, v_most_at, smoothing_at;  // low-bit
};
// How the keys of a sequence are shared out among the thread blocks of an audit.
struct AuditRanges {
  int32_t ranges;
  int64_t steps;  // of each
};
AuditRanges audit_ranges(int64_t k_len);

// Several arrays in one piece of device memory.
class Upload {
public:
  template <class T>
  size_t add(const std::vector<T>& from) {
    const size_t at = (bytes_.size() + 255) / 256 * 256, n = from.size() * sizeof(T);
    bytes_.resize(at + n);
    if (n != 0) std::memcpy(bytes_.data() + at, from.data(), n);
    return at;
  }
  std::shared_ptr<void> send(int32_t device, size_t room = 0) const;
  size_t size() const { return (bytes_.size() + 255) / 256 * 256; }

private:
  std::vector<char> bytes_;
};
template <class T>
const T* part(const std::shared_ptr<void>& memory, size_t at) {
  return reinterpret_cast<const T*>(static_cast<const char*>(memory.get()) + at);
}

constexpr int64_t slice_bytes = int64_t{256} << 20;  // of coded queries, or of partial audits, at a time

// All tables but those of selection. upload: what the backend has put there goes to the device with the rest.
std::shared_ptr<Tables> make_tables(const Architecture& a, const Plan& plan, Areas& areas, Upload& upload);
bool all_dense(const Plan& plan);  // nothing to select
inline const Tables& tables_of(const Plan& plan) { return *static_cast<const Tables*>(plan.state.get()); }

struct IndexState {
  Device device;
  std::shared_ptr<void> memory;
  const float* k_projection;  // or null
  void* scratch;
  std::vector<uint8_t> raw;  // what `codes` read last
  std::vector<int8_t> codes;
  std::vector<float> scales, smoothing;
};

IndexMap index_map(const Architecture& a, int32_t kv_heads, int32_t head_dim, const sale::Estimator& e, int64_t keys);
Estimator estimator_of(const Architecture& a, const sale::Estimator& e, const float* k_projection,
                       const void* q_projection);
void open_index(const Architecture& a, sale_index& index);
void update_index(const Architecture& a, sale_index& index, const IndexUpdate& update);
void read_codes(const Architecture& a, const sale_index& index, int32_t head, const int8_t** codes,
                const float** scales, const float** smoothing);

}  // namespace sale::cuda
