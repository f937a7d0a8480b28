// What a step costs an engine on the host: one plan for all layers of a model, other lengths at every step, nothing
// allocated and nothing waited for.
//   steps [layers] [steps]
// Prints a table; exit status 1 when a call into the library allocated, waited or copied. The runtime's functions that
// do so are wrapped at link time and counted while the library is being timed.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "sale/sale.hpp"

namespace {

int64_t forbidden = 0;
bool watching = false;

template <class T>
T counted(T result) {
  forbidden += watching;
  return result;
}

void must(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "steps: %s: %s\n", what, cudaGetErrorString(e));
  std::exit(2);
}

void* device_bytes(size_t n) {
  void* p = nullptr;
  must(cudaMalloc(&p, n), "cudaMalloc");
  return p;
}

double microseconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - since).count();
}

void print(const char* what, std::vector<double> t) {
  std::sort(t.begin(), t.end());
  double sum = 0;
  for (const double x : t) sum += x;
  std::printf("| %s | %.1f | %.1f | %.1f |\n", what, t[t.size() / 2], sum / static_cast<double>(t.size()),
              t[t.size() * 99 / 100]);
}

}  // namespace

extern "C" {
#define WRAP(name, parameters, arguments) \
  cudaError_t __real_##name parameters;   \
  cudaError_t __wrap_##name parameters { return counted(__real_##name arguments); }
WRAP(cudaMalloc, (void** p, size_t n), (p, n))
WRAP(cudaFree, (void* p), (p))
WRAP(cudaDeviceSynchronize, (), ())
WRAP(cudaStreamSynchronize, (cudaStream_t s), (s))
WRAP(cudaMemcpy, (void* to, const void* from, size_t n, cudaMemcpyKind k), (to, from, n, k))
}

int main(int argc, char** argv) {
  const int layers = argc > 1 ? std::atoi(argv[1]) : 32, steps = argc > 2 ? std::atoi(argv[2]) : 1000;
  const int32_t q_heads = 32, kv_heads = 8, dim = 128, rank = 28;
  const int64_t most_q = 512, most_k = 8192;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> projection(static_cast<size_t>(kv_heads * dim * rank));
  for (float& x : projection) x = normal(random) / 12;

  const auto problem_of = [&](int64_t q, int64_t k) {
    sale::Problem p(1, q_heads, kv_heads, q, k, dim, SALE_BF16);
    p.device(0).strides({q_heads * most_q * dim, most_q * dim, dim}, {kv_heads * most_k * dim, most_k * dim, dim},
                        {kv_heads * most_k * dim, most_k * dim, dim}, {q_heads * most_q * dim, most_q * dim, dim});
    return p;
  };
  // A calibration may give smoothing vectors and scales; without them every call begins with those of its own keys.
  const std::vector<float> vectors(static_cast<size_t>(kv_heads * dim)), scales(static_cast<size_t>(kv_heads), 0.02f);
  const auto model_of = [&](bool smoothed) {
    std::vector<sale::Estimator> model;
    for (int i = 0; i < layers; ++i) {
      sale::Options options;
      options.threshold(0.02f + 0.001f * static_cast<float>(i)).estimator(SALE_FP8, rank, projection, projection);
      if (smoothed) options.smoothing(vectors, scales);
      model.emplace_back(problem_of(1, 1), options);
    }
    return model;
  };
  // Any bytes will do but NaN: small numbers.
  const size_t q_bytes = static_cast<size_t>(q_heads * most_q * dim) * 2,
               k_bytes = static_cast<size_t>(kv_heads * most_k * dim) * 2;
  void *q = device_bytes(q_bytes), *k = device_bytes(k_bytes), *v = device_bytes(k_bytes), *out = device_bytes(q_bytes);
  for (const auto& [at, n] : {std::pair(q, q_bytes), {k, k_bytes}, {v, k_bytes}}) {
    std::vector<uint16_t> x(n / 2);
    for (uint16_t& y : x) y = static_cast<uint16_t>((random() & 0x8000u) | 0x3e00u | (random() & 0x1ffu));
    must(cudaMemcpy(at, x.data(), n, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  const size_t room = sale::Plan(problem_of(most_q, most_k), sale::Options(), model_of(false)).workspace().total;
  const sale::Bytes workspace(device_bytes(room), room);
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");

  cudaDeviceProp device;
  must(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("%s; %d layers, %d steps of 1 to %lld rows over 2048 to %lld keys, one plan each\n\n", device.name,
              layers, steps, static_cast<long long>(most_q), static_cast<long long>(most_k));
  std::printf("| host time, us | median | mean | 99 %% |\n|---|---|---|---|\n");
  for (const bool smoothed : {false, true}) {
    const std::vector<sale::Estimator> model = model_of(smoothed);
    std::vector<double> plans, calls;
    for (int s = -20; s < steps; ++s) {  // the first ones to warm up
      const int64_t keys = 2048 + static_cast<int64_t>(random() % (most_k - 2048)),
                    rows = 1 + static_cast<int64_t>(random() % most_q);
      const sale::Problem problem = problem_of(rows, keys);
      watching = true;
      const auto begin = std::chrono::steady_clock::now();
      const sale::Plan plan(problem, sale::Options(), model);
      const sale::Bytes prepared = plan.prepare(workspace, stream);
      if (s >= 0) plans.push_back(microseconds(begin));
      for (const sale::Estimator& layer : model) {
        const auto from = std::chrono::steady_clock::now();
        plan.run(layer, {.q = q, .k = k, .v = v, .out = out}, prepared, {}, nullptr, stream);
        if (s >= 0) calls.push_back(microseconds(from));
      }
      watching = false;
      must(cudaStreamSynchronize(stream), "running");  // else the launch queue fills, and that is what would be timed
    }
    print("a step: plan and its tables", plans);
    print(smoothed ? "a call: index, select, attend; smoothing given" : "a call: index, select, attend", calls);
  }
  std::printf("\nallocations, copies and waits inside them: %lld\n", static_cast<long long>(forbidden));
  return forbidden == 0 ? 0 : 1;
}
