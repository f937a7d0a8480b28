// ggml's own CPU kernel, for rows of a served operation that turn out at run time to be nothing for the library.
#pragma once

#include "host.hpp"

namespace sale::ggml {

class Fallback {
public:
  explicit Fallback(const Host& host) : host_(host) {}
  ~Fallback();
  Fallback(const Fallback&) = delete;
  Fallback& operator=(const Fallback&) = delete;
  // Rows [begin, end) of a stream. Throws std::runtime_error when the host fails.
  void run(const Tensor& op, int64_t stream, int64_t begin, int64_t end, int threads);

private:
  Backend* cpu();
  const Host& host_;
  Backend* cpu_ = nullptr;
  void (*set_threads_)(Backend*, int) = nullptr;
};

}  // namespace sale::ggml
