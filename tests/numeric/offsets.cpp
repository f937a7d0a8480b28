// Offsets beyond 2^31 and 2^32 elements: views with huge strides over address space that is never filled. Only the
// pages that hold tokens cost memory. 32-bit arithmetic anywhere gives wrong numbers here, or a fault.
#include <sys/mman.h>

#include <gtest/gtest.h>

#include <cstring>

#include "harness.hpp"

namespace sale_test {
namespace {

struct Sparse {  // bytes of address space
  explicit Sparse(size_t n) : size(n) {
    at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~Sparse() {
    if (at != MAP_FAILED) munmap(at, size);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  void* at;
  size_t size;
};

enum class Axis { token, head, batch };

// Strides under which one axis alone reaches past `reach` elements.
sale_strides far(Axis axis, int64_t reach, const Case& c, int64_t heads, int64_t tokens) {
  const int64_t d = c.head_dim;
  const auto step = [&](int64_t extent) { return (reach / (extent - 1) / 16 + 1) * 16; };
  switch (axis) {
    case Axis::token: return {heads * d, d, step(tokens)};
    case Axis::head: return {tokens * d, step(heads), d};
    case Axis::batch: break;
  }
  return {step(c.batch), tokens * d, d};
}

size_t span(const sale_strides& s, const Case& c, int64_t heads, int64_t tokens) {
  return static_cast<size_t>((c.batch - 1) * s.batch + (heads - 1) * s.head + (tokens - 1) * s.token + c.head_dim) *
         static_cast<size_t>(sale_case::bytes_of(c.dtype));
}

void copy(const sale_case::Tensor& t, void* base, const sale_strides& s, bool out_of) {
  const size_t bytes = static_cast<size_t>(t.head_dim * sale_case::bytes_of(t.dtype));
  for (int64_t b = 0; b < static_cast<int64_t>(t.lengths.size()); ++b)
    for (int64_t h = 0; h < t.heads; ++h)
      for (int64_t i = 0; i < t.lengths[static_cast<size_t>(b)]; ++i) {
        std::byte* far_row =
            static_cast<std::byte*>(base) + (b * s.batch + h * s.head + i * s.token) * sale_case::bytes_of(t.dtype);
        if (out_of) {
          expect(std::memcmp(far_row, t.row(b, h, i), bytes) == 0, "out differs from that of contiguous tensors");
        } else {
          std::memcpy(far_row, t.row(b, h, i), bytes);
        }
      }
}

void check(Axis axis, int64_t reach, const Case& c, const std::string& backend) {
  Instance in(c);
  const Result near = run(in, backend);
  sale_problem p = in.problem;
  p.q = p.out = far(axis, reach, c, c.q_heads, c.q_len);
  p.k = p.v = far(axis, reach, c, c.kv_heads, c.k_len);
  const size_t q_bytes = span(p.q, c, c.q_heads, c.q_len), k_bytes = span(p.k, c, c.kv_heads, c.k_len);
  const Sparse q(q_bytes), k(k_bytes), v(k_bytes), out(q_bytes);
  if (q.at == MAP_FAILED || k.at == MAP_FAILED || v.at == MAP_FAILED || out.at == MAP_FAILED)
    GTEST_SKIP() << "this machine does not give " << 2 * (q_bytes + k_bytes) / 1'000'000'000 << " GB of address space";
  copy(in.q, q.at, p.q, false);
  copy(in.k, k.at, p.k, false);
  copy(in.v, v.at, p.v, false);
  const Step step(p, with_backend(in.layer, backend), in.options);
  sale_call call = in.call();
  call.q = q.at, call.k = k.at, call.v = v.at, call.out = out.at;
  call.lse = nullptr;
  step.run(call);
  std::memcpy(in.out.memory->begin(), near.out.data(), near.out.size());
  copy(in.out, out.at, p.out, true);
  const Index index = make_index(step.layer, c.k_len);
  ok(sale_index_update(index.get(), k.at, p.k, c.k_len, nullptr, nullptr), "sale_index_update");
  const int8_t *codes, *expected;
  ok(sale_index_codes(index.get(), 0, &codes, nullptr, nullptr), "sale_index_codes");
  ok(sale_index_codes(near.indexes[0].get(), 0, &expected, nullptr, nullptr), "sale_index_codes");
  expect(std::memcmp(codes, expected, static_cast<size_t>(c.k_len * row_bytes(c))) == 0, "codes differ");
}

class Offsets : public testing::TestWithParam<std::tuple<Axis, int, sale_dtype, sale_compute>> {};

TEST_P(Offsets, BeyondInt32) {
  const auto [axis, log_reach, type, compute] = GetParam();
  Case c = sale_case::parse("batch=2 qheads=4 kvheads=2 q=200 k=300 d=64 densebelow=0 local=32 tau=0.02 seed=3");
  c.dtype = type;
  c.compute = compute;
  c.format = compute == SALE_COMPUTE_INT8 ? SALE_INT4 : SALE_INT8;
  if (axis == Axis::token) {
    c.batch = 1;
    c.q_heads = c.kv_heads = 2;
  }
  for (const std::string& backend : usable_backends()) {
    try {
      check(axis, (int64_t{1} << log_reach) + 1000, c, backend);
    } catch (const Failed& e) {
      ADD_FAILURE() << backend << ": " << e.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Offsets,
                         testing::Combine(testing::Values(Axis::token, Axis::head, Axis::batch),
                                          testing::Values(31, 32), testing::Values(SALE_BF16, SALE_F32),
                                          testing::Values(SALE_COMPUTE_EXACT, SALE_COMPUTE_INT8)));

}  // namespace
}  // namespace sale_test
