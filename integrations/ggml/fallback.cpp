#include "fallback.hpp"

#include <cstring>
#include <stdexcept>

namespace sale::ggml {
namespace {

// A tensor of the host's that is part of another: some rows of one stream.
Tensor* part(const Host& h, Context* context, const Tensor& of, int64_t rows, size_t offset) {
  Tensor* t = h.new_tensor_4d(context, of.type, of.ne[0], rows, of.ne[2], 1);
  // Axes of one element keep the strides of a tensor without gaps: ggml asks that of a mask.
  for (int i = 1; i < max_dims; ++i)
    if (t->ne[i] > 1) t->nb[i] = of.nb[i];
  t->data = static_cast<char*>(of.data) + offset;
  t->buffer = of.buffer;
  return t;
}

}  // namespace

Fallback::~Fallback() {
  if (cpu_ != nullptr) host_.backend_free(cpu_);
}

Backend* Fallback::cpu() {
  if (cpu_ != nullptr) return cpu_;
  Device* device = host_.backend_dev_by_type(device_cpu);
  if (device != nullptr) cpu_ = host_.backend_dev_init(device, nullptr);
  if (cpu_ == nullptr) throw std::runtime_error("this program has no CPU backend");
  Registry* registry = host_.backend_dev_backend_reg(device);
  set_threads_ = reinterpret_cast<void (*)(Backend*, int)>(
      host_.backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
  return cpu_;
}

void Fallback::run(const Tensor& op, int64_t stream, int64_t begin, int64_t end, int threads) {
  Backend* backend = cpu();
  if (set_threads_ != nullptr) set_threads_(backend, threads);
  Context* context = host_.init({host_.graph_overhead() + 16 * host_.tensor_overhead(), nullptr, true});
  if (context == nullptr) throw std::bad_alloc();
  struct Free {
    const Host& host;
    Context* context;
    ~Free() { host.free(context); }
  } free{host_, context};
  const auto at = [](int64_t i, size_t stride) { return static_cast<size_t>(i) * stride; };
  const Tensor &q = *op.src[0], &k = *op.src[1], &v = *op.src[2], *m = op.src[3];
  Tensor* out = host_.flash_attn_ext(
      context, part(host_, context, q, end - begin, at(stream, q.nb[3]) + at(begin, q.nb[1])),
      part(host_, context, k, k.ne[1], at(stream, k.nb[3])), part(host_, context, v, v.ne[1], at(stream, v.nb[3])),
      m == nullptr ? nullptr
                   : part(host_, context, *m, end - begin, at(stream % m->ne[3], m->nb[3]) + at(begin, m->nb[1])),
      0, 0, 0);
  std::memcpy(out->op_params, op.op_params, sizeof out->op_params);
  out->data = static_cast<char*>(op.data) + at(stream, op.nb[3]) + at(begin, op.nb[2]);
  out->buffer = op.buffer;
  Graph* graph = host_.new_graph(context);
  host_.build_forward_expand(graph, out);
  if (host_.backend_graph_compute(backend, graph) != status_success)
    throw std::runtime_error("ggml's CPU backend failed");
}

}  // namespace sale::ggml
