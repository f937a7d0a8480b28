#include "host.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace sale::ggml {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error(why); }

// Shared objects whose file name says ggml. A program that loaded ggml privately (Python's ctypes does) does not offer
// its symbols to us by name alone.
std::vector<std::string> ggml_objects() {
  std::vector<std::string> paths;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        const std::string path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
        const std::string file = path.substr(path.find_last_of('/') + 1);
        if (file.starts_with("libggml") && !file.starts_with("libggml-sale"))
          static_cast<std::vector<std::string>*>(to)->push_back(path);
        return 0;
      },
      &paths);
  return paths;
}

class Symbols {
public:
  Symbols() {
    for (const std::string& path : ggml_objects())
      if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD)) handles_.push_back(handle);
  }
  // The objects stay loaded by whoever loaded them; what we took are references.
  ~Symbols() {
    for (void* handle : handles_) dlclose(handle);
  }
  Symbols(const Symbols&) = delete;
  Symbols& operator=(const Symbols&) = delete;
  void* find(const std::string& name) const {
    if (void* at = dlsym(RTLD_DEFAULT, name.c_str())) return at;
    for (void* handle : handles_)
      if (void* at = dlsym(handle, name.c_str())) return at;
    return nullptr;
  }
  template <class F>
  void need(F& to, const char* name) const {
    void* at = find(std::string("ggml_") + name);
    if (at == nullptr)
      refuse(std::string("this program does not offer ggml_") + name +
             "; SALE needs a ggml of interface version 2 or 3 built as a shared library (BUILD_SHARED_LIBS=ON)");
    to = reinterpret_cast<F>(at);
  }

private:
  std::vector<void*> handles_;
};

void find_functions(const Symbols& s, Host& h) {
  s.need(h.init, "init");
  s.need(h.free, "free");
  s.need(h.new_tensor_4d, "new_tensor_4d");
  s.need(h.view_4d, "view_4d");
  s.need(h.set_name, "set_name");
  s.need(h.flash_attn_ext, "flash_attn_ext");
  s.need(h.new_graph, "new_graph");
  s.need(h.build_forward_expand, "build_forward_expand");
  s.need(h.graph_n_nodes, "graph_n_nodes");
  s.need(h.graph_node, "graph_node");
  s.need(h.graph_overhead, "graph_overhead");
  s.need(h.tensor_overhead, "tensor_overhead");
  s.need(h.op_name, "op_name");
  s.need(h.type_name, "type_name");
  s.need(h.backend_cpu_buffer_type, "backend_cpu_buffer_type");
  s.need(h.backend_buft_is_host, "backend_buft_is_host");
  s.need(h.backend_buffer_is_host, "backend_buffer_is_host");
  s.need(h.backend_graph_compute, "backend_graph_compute");
  s.need(h.backend_free, "backend_free");
  s.need(h.backend_dev_init, "backend_dev_init");
  s.need(h.backend_dev_backend_reg, "backend_dev_backend_reg");
  s.need(h.backend_reg_get_proc_address, "backend_reg_get_proc_address");
  s.need(h.backend_reg_count, "backend_reg_count");
  s.need(h.backend_reg_get, "backend_reg_get");
  s.need(h.backend_dev_by_type, "backend_dev_by_type");
}

// Backends that the host has accepted already carry its version. Where we come first, what version 3 brought tells.
int32_t version_of(const Symbols& s, const Host& h) {
  int32_t version = s.find("ggml_backend_buft_alloc_buffer_n") != nullptr ? 3 : 2;
  if (h.backend_reg_count() > 0) version = h.backend_reg_get(0)->api_version;
  if (version != 2 && version != 3)
    refuse("this program's ggml has backend interface version " + std::to_string(version) + "; SALE speaks 2 and 3");
  // Early hosts of version 2 have a shorter backend table: the 2D copies came without a new number.
  if (s.find("ggml_backend_tensor_set_2d") == nullptr)
    refuse("this program's ggml has backend interface version " + std::to_string(version) +
           " without 2D copies (before ggml 0.20), whose tables SALE does not know");
  return version;
}

// The host's lookups do not check their argument: a search ends at the name, and every name has long been there.
int32_t numbered(const char* (*name)(int32_t), const char* wanted, int32_t most, const char* what) {
  for (int32_t i = 0; i < most; ++i) {
    const char* n = name(i);
    if (n != nullptr && std::strcmp(n, wanted) == 0) return i;
  }
  refuse(std::string("this program's ggml has no ") + what + " named " + wanted);
}

// A tensor made by the host must read as Tensor says, member by member.
void prove_layout(Host& h) {
  const auto check = [](bool good, const char* member) {
    if (!good)
      refuse(std::string("this program's ggml lays tensors out differently (") + member + "); SALE is too old");
  };
  // The overhead is that of an object header, 32 bytes, and the tensor.
  check(h.tensor_overhead() == sizeof(Tensor) + 32, "size");
  Context* context = h.init({h.graph_overhead() + 16 * h.tensor_overhead(), nullptr, true});
  check(context != nullptr, "context");
  struct Free {
    Host& h;
    Context* context;
    ~Free() { h.free(context); }
  } free{h, context};
  Tensor* cache = h.new_tensor_4d(context, h.f16, 64, 96, 5, 2);
  h.set_name(cache, "cache_k_l7");
  Tensor* k = h.view_4d(context, cache, 64, 32, 5, 2, cache->nb[1], cache->nb[2], cache->nb[3], 256);
  Tensor* v = h.new_tensor_4d(context, h.f16, 64, 32, 5, 2);
  Tensor* q = h.new_tensor_4d(context, h.f32, 64, 7, 15, 2);
  Tensor* mask = h.new_tensor_4d(context, h.f16, 32, 7, 1, 2);
  Tensor* out = h.flash_attn_ext(context, q, k, v, mask, 0.25f, 0.5f, 0.75f);
  float parameters[3];
  std::memcpy(parameters, out->op_params, sizeof parameters);
  check(q->type == h.f32 && k->type == h.f16 && out->type == h.f32, "type");
  check(q->ne[0] == 64 && q->ne[1] == 7 && q->ne[2] == 15 && q->ne[3] == 2, "ne");
  check(k->nb[0] == 2 && k->nb[1] == 128 && k->nb[2] == 128 * 96 && k->nb[3] == 128 * 96 * 5, "nb");
  check(out->op == h.op_flash_attention, "op");
  check(parameters[0] == 0.25f && parameters[1] == 0.5f && parameters[2] == 0.75f, "op_params");
  check(out->src[0] == q && out->src[1] == k && out->src[2] == v && out->src[3] == mask, "src");
  check(out->src[4] == nullptr && out->src[9] == nullptr, "src");
  check(k->view_src == cache && k->view_offs == 256, "view_src");
  check(std::strcmp(cache->name, "cache_k_l7") == 0, "name");
  check(out->data == nullptr && out->buffer == nullptr, "data");
  Graph* graph = h.new_graph(context);
  h.build_forward_expand(graph, out);
  const int n = h.graph_n_nodes(graph);
  check(n >= 1 && h.graph_node(graph, n - 1) == out, "graph");
  h.flags_computed = (out->flags & flag_compute) != 0;
}

}  // namespace

bool Host::without_work(int32_t op) const { return std::ranges::find(ops_without_work, op) != ops_without_work.end(); }

Host find_host() {
  const Symbols symbols;
  Host h{};
  find_functions(symbols, h);
  h.api_version = version_of(symbols, h);
  // GGML_OP_COUNT and GGML_TYPE_COUNT are not to be had at run time; these are below any version's.
  constexpr int32_t ops = 90, types = 31;
  h.op_flash_attention = numbered(h.op_name, "FLASH_ATTN_EXT", ops, "operation");
  h.op_multiply = numbered(h.op_name, "MUL", ops, "operation");
  for (const char* name : {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})
    h.ops_without_work.push_back(numbered(h.op_name, name, ops, "operation"));
  h.f32 = numbered(h.type_name, "f32", types, "type");
  h.f16 = numbered(h.type_name, "f16", types, "type");
  h.bf16 = numbered(h.type_name, "bf16", types, "type");
  h.q8_0 = numbered(h.type_name, "q8_0", types, "type");
  prove_layout(h);
  return h;
}

}  // namespace sale::ggml
