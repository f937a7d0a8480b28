// A problem line on a GPU: its tensors copied there, run through the C ABI, its outputs copied back into the Instance.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "numeric/harness.hpp"

namespace sale_device {

using namespace sale_test;

// The backend that is tested, and what it asks of the suite.
struct Tested {
  const char* name = "sm90";
  int64_t tile = 128;                       // rows of its query tiles
  bool int4() const { return tile == 64; }  // sm80: its estimators are INT4 and INT8
};
const Tested& tested();
// The case as the backend that is tested can run it: cases are written for sm90. Low-bit ones take one of its forms.
Case served(Case c);
std::vector<sale_compute> low_bit_forms();  // of the backend on this device
Case served_line(const std::string& line);

void cuda(cudaError_t e, const char* what);  // throws Failed

// Device memory with a filled margin behind it.
class Buffer {
public:
  Buffer() = default;
  explicit Buffer(size_t bytes, unsigned char fill = 0xcb);
  Buffer(const void* host, size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  void put(const void* host);
  void get(void* host) const;
  bool margin_intact() const;

private:
  static constexpr size_t margin = 4096;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

class Stream {
public:
  Stream();
  ~Stream();
  cudaStream_t get() const { return stream_; }
  void wait() const;

private:
  cudaStream_t stream_ = nullptr;
};

// Device 0's copy of an Instance; keys and values in shuffled pages when the case says so.
class Copy {
public:
  explicit Copy(Instance& instance);
  Instance& in;
  sale_problem problem;
  sale_layer layer;
  sale_options options;
  // Its tensors, page table and reference.
  sale_call call() const;

  const void* q() const { return at(q_, in.q); }
  const void* k() const { return paged() ? k_pages_.data() : at(fused_ ? q_ : k_, in.k); }
  const void* v() const { return paged() ? v_pages_.data() : at(fused_ ? q_ : v_, in.v); }
  void* out() const { return at(out_, in.out); }
  float* lse() const { return reinterpret_cast<float*>(lse_.data()); }
  // A token of a sequence and head.
  std::byte* row(const sale_case::Tensor& tensor, const void* base, int64_t b, int64_t h, int64_t token) const;

  bool paged() const { return in.c.page_size != 0; }
  const int32_t* pages(int64_t b) const {
    return paged() ? reinterpret_cast<const int32_t*>(table_.data()) + b * problem.pages : nullptr;
  }
  std::vector<int32_t> table() const;  // of pages, on the host
  const void* keys(int64_t b) const;   // what an index of sequence b is given

  void send();           // inputs
  void clear_outputs();  // there
  void fetch();          // outputs, into the Instance
  bool margins_intact() const;

  Index index(int64_t b, int64_t capacity = 0) const;  // not updated
  void update(const Index& index, int64_t b, int64_t keys, cudaStream_t stream = nullptr) const;

private:
  static std::byte* at(const Buffer& b, const sale_case::Tensor& t) { return b.data() + t.first; }
  void make_pages();
  bool fused_;
  Buffer q_, k_, v_, out_, lse_, k_pages_, v_pages_, table_, reference_;
};

// A plan for one layer, and what its calls work in. Calls throw Failed, but for try_run.
struct Work {
  Work(const sale_problem& p, const sale_layer& l, const sale_options& o, int32_t with_index = SALE_INDEX_OF_CALL);
  Work(const Copy& copy, int32_t with_index = SALE_INDEX_OF_CALL)
      : Work(copy.problem, copy.layer, copy.options, with_index) {}
  sale_call in(sale_call c) const;  // this workspace
  sale_status try_run(const sale_call& c) const;
  void run(const sale_call& c) const;
  void select(const sale_call& c, const Blocks& blocks) const;
  void attend(const sale_call& c, const Blocks& blocks) const;

  Estimator layer;
  Plan plan;
  Buffer workspace;
};

// sale_run, then select and attend on their own with the other kind of plan (with and without key indexes): all must
// agree to the bit. Lists are of the backend's tiles.
Result run(Copy& copy);
Lists read_wide_lists(const Instance& in, const Blocks& blocks);
// The same lists, for each tile of 64 rows.
Lists narrow(const Lists& wide, const Instance& in);

// Everything against the oracle. Throws Failed.
Tally check_device_instance(Instance& in);
Tally check_device_case(const Case& c);
void check_device_codes(const Instance& in, int64_t b, int64_t kv, const sale_index* index, int64_t first);

// exact, exact compensated, low-bit, low-bit compensated
inline void set_form(Case& c, int64_t i) {
  c.compute = i / 2 % 2 == 0 ? SALE_COMPUTE_EXACT : SALE_COMPUTE_FP8;
  c.compensate = i % 2 != 0;
}
constexpr int64_t forms = 4;

// A problem of this backend out of the whole space.
Case device_case(uint64_t seed, const sale_case::Limits& limits = {});

std::vector<std::byte> bytes_of(const sale_case::Memory& m);
int64_t allocations();  // of host memory, by this program, so far

}  // namespace sale_device
