// What must not change a bit: threads, repetition, batch composition, head order; and what changes it exactly.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "case/random.hpp"
#include "harness.hpp"

namespace sale_test {
namespace {

void unchanged(Case&) {}

// One call on any part of the tensors; out and lse as in `in`.
void run_part(const Instance& in, const sale_problem& p, const sale_layer& layer, int64_t b, int64_t h, int64_t kv,
              std::vector<float>& lse) {
  sale_call call = in.call();
  call.q = in.q.row(b, h, 0);
  call.k = in.k.row(b, kv, 0);
  call.v = in.v.row(b, kv, 0);
  call.out = in.out.row(b, h, 0);
  call.lse = lse.data();
  Step(p, layer, in.options).run(call);
}

sale_problem only_sequence(const Instance& in, int64_t b) {
  const sale_case::Sequence& s = in.sequences[static_cast<size_t>(b)];
  sale_problem p = in.problem;
  p.batch = 1;
  p.q_len = s.q_len;
  p.k_len = s.k_len;
  p.q_offset = s.q_offset;
  p.q_lens = p.k_lens = p.q_offsets = p.q_starts = p.k_starts = nullptr;
  return p;
}

void same_rows(const Instance& in, const Result& whole, int64_t b, int64_t first_head, int64_t heads,
               const std::vector<float>& lse) {
  const int64_t q_len = in.sequences[static_cast<size_t>(b)].q_len;
  const size_t row_bytes = static_cast<size_t>(in.c.head_dim * sale_case::bytes_of(in.c.dtype));
  for (int64_t h = first_head; h < first_head + heads; ++h) {
    for (int64_t i = 0; i < q_len; ++i)
      expect(std::memcmp(in.out.row(b, h, i), whole.out.data() + in.out.offset(b, h, i), row_bytes) == 0,
             "out of sequence " + std::to_string(b) + " head " + std::to_string(h) + " row " + std::to_string(i) +
                 " differs");
    const std::byte* expected = whole.lse.data() + (b * in.c.q_heads + h) * in.longest_q() * 4;
    expect(std::memcmp(lse.data() + (h - first_head) * q_len, expected, static_cast<size_t>(q_len) * 4) == 0,
           "lse differs");
  }
}

TEST(Invariance, Threads) {
  on_random_cases(50'000, 60, unchanged, [](Instance& in, const std::string& backend) {
    in.layer.threads = 1;
    const Result one = run(in, backend);
    for (int32_t threads : {2, 3, 7}) {
      in.layer.threads = threads;
      expect(run(in, backend) == one, backend + ": " + std::to_string(threads) + " threads give other bits than one");
    }
  });
}

TEST(Invariance, Repetition) {
  const auto pick = [](Case& c) { c.threads = 3; };
  on_random_cases(60'000, 4, pick, [](Instance& in, const std::string& backend) {
    const Result first = run(in, backend);
    for (int64_t i = 0; i < flags().repeats; ++i)
      expect(run(in, backend) == first, backend + ": bits change from run to run");
  });
}

// Ragged and padded batches are the same as one call per sequence.
TEST(Invariance, BatchComposition) {
  const auto batched = [](Case& c) {
    if (c.batch == 1) c.batch = 3;
    if (c.q_lens.size() == 1) {
      c.q_lens.clear();
      c.k_lens.clear();
      c.q_offsets.clear();
      c.q_offset = 5;
    }
  };
  on_random_cases(70'000, 100, batched, [](Instance& in, const std::string& backend) {
    const Result whole = run(in, backend);
    const sale_layer layer = with_backend(in.layer, backend);
    in.clear_outputs();
    for (int64_t b = 0; b < in.c.batch; ++b) {
      const sale_problem p = only_sequence(in, b);
      std::vector<float> lse(static_cast<size_t>(p.q_heads * p.q_len));
      run_part(in, p, layer, b, 0, 0, lse);
      same_rows(in, whole, b, 0, p.q_heads, lse);
    }
  });
}

// One call per kv head is the same as one call.
TEST(Invariance, SplitHeads) {
  on_random_cases(80'000, 80, unchanged, [](Instance& in, const std::string& backend) {
    const Result whole = run(in, backend);
    in.clear_outputs();
    const int64_t group = in.c.q_heads / in.c.kv_heads;
    for (int64_t b = 0; b < in.c.batch; ++b)
      for (int64_t kv = 0; kv < in.c.kv_heads; ++kv) {
        sale_problem p = only_sequence(in, b);
        p.q_heads = static_cast<int32_t>(group);
        p.kv_heads = 1;
        sale_layer layer = with_backend(in.layer, backend);
        layer.q_heads = p.q_heads;
        layer.kv_heads = p.kv_heads;
        std::vector<float> taus;
        for (int64_t g = 0; g < group; ++g) taus.push_back(in.tau(kv * group + g));
        layer.thresholds = taus.data();
        layer.n_thresholds = group;
        const auto e = estimator_of(in, kv * group);
        layer.q_projection = e.q_projection;
        layer.k_projection = e.k_projection;
        std::vector<float> lse(static_cast<size_t>(group * p.q_len));
        run_part(in, p, layer, b, kv * group, kv, lse);
        same_rows(in, whole, b, kv * group, group, lse);
      }
  });
}

// One key-value head, one query head, one sequence for all, by a stride of 0: as when it lies there as often.
TEST(Invariance, StrideZeroRepeats) {
  const auto repeated = [](Case& c) {
    c.layout = sale_case::Layout::bhld;
    c.kv_heads = 3;
    c.q_heads = 6;
    c.taus = {0.01f};
    c.q_lens.clear(), c.k_lens.clear(), c.q_offsets.clear();
    c.batch = 2;
    c.q_offset = 7;
  };
  on_random_cases(95'000, 12, repeated, [](Instance& in, const std::string& backend) {
    for (const sale_case::Tensor* t : {&in.q, &in.k, &in.v})
      for (int64_t b = 0; b < in.c.batch; ++b)
        for (int64_t h = 0; h < t->heads; ++h) const_cast<sale_case::Tensor*>(t)->set_head(b, h, t->head(0, 0));
    const Result lying = run(in, backend);
    in.problem.q.head = in.problem.k.head = in.problem.v.head = 0;
    expect(run(in, backend) == lying, backend + ": a head repeated by its stride gives other bits than its copies");
    in.problem.q.batch = in.problem.k.batch = in.problem.v.batch = 0;
    expect(run(in, backend) == lying, backend + ": a sequence repeated by its stride gives other bits than its copies");
  });
}

// Heads in another order give the same heads in that order.
TEST(Invariance, HeadOrder) {
  const auto plain = [](Case& c) {
    c.layout = sale_case::Layout::blhd;
    c.kv_heads = 3;
    c.q_heads = 6;
    c.taus = {0.01f};
    c.rank = 0;
  };
  on_random_cases(90'000, 30, plain, [](Instance& in, const std::string& backend) {
    const Result first = run(in, backend);
    Instance turned(in.c);
    const int64_t group = in.c.q_heads / in.c.kv_heads;
    for (int64_t b = 0; b < in.c.batch; ++b)
      for (int64_t h = 0; h < in.c.q_heads; ++h) {
        const int64_t to = (h + group) % in.c.q_heads;
        turned.q.set_head(b, to, in.q.head(b, h));
        turned.k.set_head(b, to / group, in.k.head(b, h / group));
        turned.v.set_head(b, to / group, in.v.head(b, h / group));
      }
    const Result second = run(turned, backend);
    for (int64_t b = 0; b < in.c.batch; ++b)
      for (int64_t h = 0; h < in.c.q_heads; ++h) {
        const int64_t to = (h + group) % in.c.q_heads;
        const size_t s = static_cast<size_t>(b);
        expect(first.lists[s][static_cast<size_t>(h)] == second.lists[s][static_cast<size_t>(to)],
               "lists move with heads");
        for (int64_t i = 0; i < in.sequences[s].q_len; ++i)
          expect(std::memcmp(first.out.data() + in.out.offset(b, h, i), second.out.data() + in.out.offset(b, to, i),
                             static_cast<size_t>(in.c.head_dim * sale_case::bytes_of(in.c.dtype))) == 0,
                 "outputs move with heads");
      }
  });
}

TEST(Invariance, DoublingVDoublesOut) {
  const auto normal = [](Case& c) { c.data = sale_case::Data::normal; };
  on_random_cases(100'000, 40, normal, [](Instance& in, const std::string& backend) {
    const auto outs = [&] {
      run(in, backend);
      std::vector<std::vector<float>> heads;
      for (int64_t b = 0; b < in.c.batch; ++b)
        for (int64_t h = 0; h < in.c.q_heads; ++h) heads.push_back(in.out.head(b, h));
      return heads;
    };
    const auto once = outs();
    for (int64_t b = 0; b < in.c.batch; ++b)
      for (int64_t h = 0; h < in.c.kv_heads; ++h) {
        auto v = in.v.head(b, h);
        for (float& x : v) x *= 2;
        in.v.set_head(b, h, v);
      }
    const auto twice = outs();
    for (int64_t b = 0; b < in.c.batch; ++b)  // in is used again by the next backend
      for (int64_t h = 0; h < in.c.kv_heads; ++h) {
        auto v = in.v.head(b, h);
        for (float& x : v) x /= 2;
        in.v.set_head(b, h, v);
      }
    for (size_t h = 0; h < once.size(); ++h)
      for (size_t i = 0; i < once[h].size(); ++i) {
        const float smallest = in.c.dtype == SALE_F16 ? 0x1p-13f : 0x1p-120f;  // denormals round
        if (std::fabs(once[h][i]) < smallest) continue;
        expect(twice[h][i] == 2 * once[h][i], backend + ": doubling v does not double out");
      }
  });
}

// All blocks kept is dense attention, however it came about.
TEST(Invariance, FullListIsDense) {
  on_random_cases(110'000, 40, unchanged, [](Instance& in, const std::string& backend) {
    const Step sparse(in.problem, with_backend(in.layer, backend), in.options);
    in.clear_outputs();
    sparse.attend(in.call(), make_blocks(sparse.plan));
    const std::vector<std::byte> out(in.out.memory->begin(), in.out.memory->begin() + in.out.memory->size());
    const float zero = 0;
    const sale_layer kept = in.layer;
    in.layer.thresholds = &zero;
    in.layer.n_thresholds = 1;
    const Result dense = run(in, backend);
    in.layer = kept;
    expect(dense.kept == dense.visible, "tau 0 drops blocks");
    expect(out == dense.out, backend + ": a full block list is not dense attention");
  });
}

// Lists of the caller's own: rows that see none of their keys give 0 and minus infinity.
TEST(Invariance, OwnBlockLists) {
  on_random_cases(120'000, 120, unchanged, [](Instance& in, const std::string& backend) {
    const Step step(in.problem, with_backend(in.layer, backend), in.options);
    const Blocks blocks = make_blocks(step.plan);
    sale_case::Random random(in.c.seed);
    for (int32_t b = 0; b < in.c.batch; ++b)
      for (int32_t h = 0; h < in.c.q_heads; ++h)
        for (int64_t t = 0; t * 64 < in.sequences[static_cast<size_t>(b)].q_len; ++t) {
          const std::vector<int32_t> visible = read_row(blocks.get(), {b, h, t});  // what a new list holds
          if (visible.empty()) continue;
          std::vector<int32_t> list;
          const int64_t one_in = random.between(1, 6);
          for (const int32_t block : visible)
            if (random.one_in(one_in)) list.push_back(block);
          if (list.empty())
            list.push_back(visible[static_cast<size_t>(random.below(static_cast<int64_t>(visible.size())))]);
          ok(sale_blocks_set_row(blocks.get(), {b, h, t}, list.data(), static_cast<int64_t>(list.size())),
             "sale_blocks_set_row");
        }
    const Lists lists = read_lists(in, blocks.get());
    in.clear_outputs();
    step.attend(in.call(), blocks);
    for (int64_t b = 0; b < in.c.batch; ++b)
      for (int64_t h = 0; h < in.c.q_heads; ++h)
        check_attention(in, b, h, expected_attention(in, b, h, lists[static_cast<size_t>(b)][static_cast<size_t>(h)]),
                        backend);
  });
}

}  // namespace
}  // namespace sale_test
