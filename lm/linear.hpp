// y = x W^T (+ b) with oneDNN, and what is done to y on the way out.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace sale::lm {

// bf16: weights and activations are bf16, sums f32; for CPUs that multiply bf16 (AVX512_BF16, AMX). f32: everything f32
// except what attention reads and writes. automatic: bf16 where the CPU has it.
enum class Compute { automatic, bf16, f32 };
Compute resolve(Compute wanted);

class Linear {
public:
  enum class Then {
    store_f32,  // dst f32 = y
    add_f32,    // dst f32 += y
    store,      // dst in the activation type = y
    swish,      // dst in the activation type = y * sigmoid(y)
    multiply,   // dst in the activation type = y * other
  };

  // weights [out][in] row by row, converted and packed once; bias empty or [out].
  Linear(Compute compute, int64_t in, int64_t out, const std::vector<float>& weights,
         const std::vector<float>& bias = {});
  ~Linear();
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;

  // src and other: [rows][in] and [rows][out] of activations (bf16 or f32, as the compute type says). May be called
  // from several threads at once; `threads` is how many this call itself uses.
  void run(int64_t rows, const void* src, void* dst, Then then, const void* other = nullptr, int threads = 1) const;

  int64_t in() const;
  int64_t out() const;

private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sale::lm
