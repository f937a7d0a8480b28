#include "fake_host.hpp"

#include <malloc.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>

using namespace sale::ggml;

namespace sale::ggml {
struct Buffer {};
struct BufferType {};
struct Context {
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<std::unique_ptr<Graph>> graphs;
};
}  // namespace sale::ggml

namespace fake {

int32_t api_version = 2;
size_t failing_allocation = 0;
int64_t plain_rows = 0;

namespace {

Buffer memory;
BufferType host_memory;

void layout(Tensor& t, int32_t type, const int64_t (&ne)[4]) {
  t.type = type;
  std::copy(ne, ne + 4, t.ne);
  t.nb[0] = element_bytes(type);
  t.nb[1] = row_bytes(type, ne[0]);
  t.nb[2] = t.nb[1] * static_cast<size_t>(ne[1]);
  t.nb[3] = t.nb[2] * static_cast<size_t>(ne[2]);
}

float of_half(uint16_t h) {
  const int sign = h >> 15, exponent = h >> 10 & 31, fraction = h & 1023;
  const float magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return sign != 0 ? -magnitude : magnitude;
}

sale::ggml::Status compute(Backend*, Graph* graph) {
  for (const Tensor* t : graph->nodes)
    if (t->op == op_flash) attend_plainly(*t);
  return status_success;
}

Device cpu_device{};
Registry cpu_registry{};
Backend cpu_backend{};

Registry* registry() {
  cpu_registry.api_version = api_version;
  cpu_registry.table.get_function = [](Registry*, const char*) -> void* { return nullptr; };
  return &cpu_registry;
}

}  // namespace

size_t element_bytes(int32_t type) { return type == f32 ? 4 : type == q8_0 ? 34 : type == q4_0 ? 18 : 2; }
int64_t block_elements(int32_t type) { return type == q8_0 || type == q4_0 ? 32 : 1; }
size_t row_bytes(int32_t type, int64_t n) {
  return element_bytes(type) * static_cast<size_t>(n / block_elements(type));
}

uint16_t half(float f) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  if (std::isnan(f)) return 0x7e00;
  const double a = std::fabs(static_cast<double>(f));
  if (a >= 65520) return static_cast<uint16_t>(sign | 0x7c00);
  if (a == 0) return sign;
  const int exponent = std::max(std::ilogb(a), -14);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(a, 10 - exponent)));  // 1024 .. 2048, less below 2^-14
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + steps));
}

void store(int32_t type, const float* from, void* to, int64_t n) {
  if (type == f32) std::memcpy(to, from, static_cast<size_t>(n) * 4);
  auto* h = static_cast<uint16_t*>(to);
  for (int64_t i = 0; i < n && type == f16; ++i) h[i] = half(from[i]);
  for (int64_t i = 0; i < n && type == bf16; ++i) {
    const auto x = std::bit_cast<uint32_t>(from[i]);
    h[i] = static_cast<uint16_t>((x + 0x7fff + (x >> 16 & 1)) >> 16);
  }
  for (int64_t b = 0; b < n / 32 && type == q8_0; ++b) {
    float most = 0;
    for (int i = 0; i < 32; ++i) most = std::max(most, std::fabs(from[b * 32 + i]));
    char* block = static_cast<char*>(to) + b * 34;
    const uint16_t scale = half(most / 127);
    std::memcpy(block, &scale, 2);
    for (int i = 0; i < 32; ++i)
      block[2 + i] = static_cast<char>(most > 0 ? std::lround(from[b * 32 + i] / most * 127) : 0);
  }
}

void load(int32_t type, const void* from, float* to, int64_t n) {
  const auto* h = static_cast<const uint16_t*>(from);
  if (type == f32) std::memcpy(to, from, static_cast<size_t>(n) * 4);
  for (int64_t i = 0; i < n && type == f16; ++i) to[i] = of_half(h[i]);
  for (int64_t i = 0; i < n && type == bf16; ++i) to[i] = std::bit_cast<float>(uint32_t{h[i]} << 16);
  for (int64_t b = 0; b < n / 32 && type == q8_0; ++b) {
    const char* block = static_cast<const char*>(from) + b * 34;
    uint16_t scale;
    std::memcpy(&scale, block, 2);
    for (int i = 0; i < 32; ++i)
      to[b * 32 + i] = of_half(scale) * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

Tensor* operation(int32_t op, int32_t type, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  auto* t = new Tensor{};
  layout(*t, type, {n0, n1, n2, n3});
  t->op = op;
  t->buffer = &memory;
  t->data = std::calloc(1, t->nb[3] * static_cast<size_t>(n3));
  return t;
}

Tensor* make(int32_t type, int64_t n0, int64_t n1, int64_t n2, int64_t n3, const std::string& name) {
  Tensor* t = operation(op_none, type, n0, n1, n2, n3);
  name.copy(t->name, sizeof t->name - 1);
  return t;
}

// Rows see what the mask adds to; -inf hides. A row that sees nothing is zero.
void attend_plainly(const Tensor& op) {
  const Tensor &q = *op.src[0], &k = *op.src[1], &v = *op.src[2], *m = op.src[3];
  const auto at = [](const Tensor& t, int64_t i1, int64_t i2, int64_t i3) {
    return static_cast<char*>(t.data) + static_cast<size_t>(i1) * t.nb[1] + static_cast<size_t>(i2) * t.nb[2] +
           static_cast<size_t>(i3) * t.nb[3];
  };
  float scale;
  std::memcpy(&scale, op.op_params, 4);
  const int64_t dim = q.ne[0], group = q.ne[2] / k.ne[2];
  std::vector<double> scores(static_cast<size_t>(k.ne[1])), sum(static_cast<size_t>(dim));
  std::vector<float> keys(static_cast<size_t>(k.ne[1] * dim)), values(keys.size());
  for (int64_t s = 0; s < q.ne[3]; ++s)
    for (int64_t h = 0; h < q.ne[2]; ++h) {
      for (int64_t j = 0; j < k.ne[1]; ++j) {
        load(k.type, at(k, j, h / group, s), keys.data() + j * dim, dim);
        load(v.type, at(v, j, h / group, s), values.data() + j * dim, dim);
      }
      for (int64_t r = 0; r < q.ne[1]; ++r) {
        const auto* query = reinterpret_cast<const float*>(at(q, r, h, s));
        double most = -INFINITY, norm = 0;
        for (int64_t j = 0; j < k.ne[1]; ++j) {
          double& score = scores[static_cast<size_t>(j)];
          score = m == nullptr
                      ? 0
                      : static_cast<double>(of_half(reinterpret_cast<uint16_t*>(at(*m, r, 0, s % m->ne[3]))[j]));
          if (score == -INFINITY) continue;
          const float* key = keys.data() + j * dim;
          double dot = 0;
          for (int64_t c = 0; c < dim; ++c) dot += static_cast<double>(query[c]) * static_cast<double>(key[c]);
          most = std::max(most, score += static_cast<double>(scale) * dot);
        }
        std::fill(sum.begin(), sum.end(), 0);
        for (int64_t j = 0; j < k.ne[1]; ++j) {
          if (scores[static_cast<size_t>(j)] == -INFINITY) continue;
          const double weight = std::exp(scores[static_cast<size_t>(j)] - most);
          norm += weight;
          const float* value = values.data() + j * dim;
          for (int64_t c = 0; c < dim; ++c) sum[static_cast<size_t>(c)] += weight * static_cast<double>(value[c]);
        }
        auto* out = reinterpret_cast<float*>(at(op, h, r, s));
        for (size_t c = 0; c < sum.size(); ++c) out[c] = norm > 0 ? static_cast<float>(sum[c] / norm) : 0;
      }
    }
  plain_rows += q.ne[1] * q.ne[3];
}

}  // namespace fake

// ---- what the backend looks up ---------------------------------------------------------------------------------

using fake::operation;

extern "C" {

__attribute__((visibility("default"))) void* aligned_alloc(size_t alignment, size_t bytes) {
  if (fake::failing_allocation != 0 && bytes >= fake::failing_allocation) return fake::failing_allocation = 0, nullptr;
  return memalign(alignment, bytes);
}

#define HOST __attribute__((visibility("default")))

HOST Context* ggml_init(ContextParameters) { return new Context; }
HOST void ggml_free(Context* c) { delete c; }
HOST size_t ggml_tensor_overhead() { return sizeof(Tensor) + 32; }
HOST size_t ggml_graph_overhead() { return 4096; }
HOST Tensor* ggml_new_tensor_4d(Context* c, int32_t type, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  c->tensors.push_back(std::make_unique<Tensor>());
  fake::layout(*c->tensors.back(), type, {n0, n1, n2, n3});
  return c->tensors.back().get();
}
HOST Tensor* ggml_view_4d(Context* c, Tensor* of, int64_t n0, int64_t n1, int64_t n2, int64_t n3, size_t b1, size_t b2,
                          size_t b3, size_t offset) {
  Tensor* t = ggml_new_tensor_4d(c, of->type, n0, n1, n2, n3);
  t->nb[1] = b1, t->nb[2] = b2, t->nb[3] = b3;
  t->view_src = of, t->view_offs = offset, t->op = fake::op_view;
  return t;
}
HOST Tensor* ggml_set_name(Tensor* t, const char* name) { return std::strncpy(t->name, name, 63), t; }
HOST Tensor* ggml_flash_attn_ext(Context* c, Tensor* q, Tensor* k, Tensor* v, Tensor* mask, float scale, float bias,
                                 float cap) {
  Tensor* t = ggml_new_tensor_4d(c, fake::f32, v->ne[0], q->ne[2], q->ne[1], q->ne[3]);
  const float parameters[] = {scale, bias, cap};
  std::memcpy(t->op_params, parameters, sizeof parameters);
  t->op = fake::op_flash;
  t->src[0] = q, t->src[1] = k, t->src[2] = v, t->src[3] = mask;
  return t;
}
HOST Graph* ggml_new_graph(Context* c) { return c->graphs.emplace_back(std::make_unique<Graph>()).get(); }
HOST void ggml_build_forward_expand(Graph* g, Tensor* t) {
  t->flags |= flag_compute;
  g->nodes.push_back(t);
}
HOST int ggml_graph_n_nodes(Graph* g) { return static_cast<int>(g->nodes.size()); }
HOST Tensor* ggml_graph_node(Graph* g, int i) { return g->nodes[static_cast<size_t>(i)]; }
HOST const char* ggml_op_name(int32_t op) {
  constexpr const char* names[] = {"NONE", "DUP",     "ADD",  "SUB",     "MUL",
                                   "DIV",  "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"};
  if (op == fake::op_flash) return "FLASH_ATTN_EXT";
  return op < 10 ? names[op] : "OTHER";
}
HOST const char* ggml_type_name(int32_t type) {
  return type == fake::f32    ? "f32"
         : type == fake::f16  ? "f16"
         : type == fake::bf16 ? "bf16"
         : type == fake::q8_0 ? "q8_0"
         : type == fake::q4_0 ? "q4_0"
                              : nullptr;
}
HOST BufferType* ggml_backend_cpu_buffer_type() { return &fake::host_memory; }
HOST bool ggml_backend_buft_is_host(BufferType* t) { return t == &fake::host_memory; }
HOST bool ggml_backend_buffer_is_host(Buffer*) { return true; }
HOST Status ggml_backend_graph_compute(Backend* b, Graph* g) {
  return b == &fake::cpu_backend ? fake::compute(b, g) : b->table.graph_compute(b, g);
}
HOST void ggml_backend_free(Backend*) {}
HOST Backend* ggml_backend_dev_init(Device*, const char*) { return &fake::cpu_backend; }
HOST Registry* ggml_backend_dev_backend_reg(Device*) { return fake::registry(); }
HOST void* ggml_backend_reg_get_proc_address(Registry* r, const char* name) { return r->table.get_function(r, name); }
HOST size_t ggml_backend_reg_count() { return 1; }
HOST Registry* ggml_backend_reg_get(size_t) { return fake::registry(); }
HOST Device* ggml_backend_dev_by_type(int32_t) { return &fake::cpu_device; }
HOST void ggml_backend_tensor_set_2d() {}
}
