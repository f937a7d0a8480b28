// The backend as ggml sees it: a registry with one accelerator device on the CPU's own buffers, so that nothing is
// copied, and the CPU backend keeps everything that the device does not claim.
#include <cstdio>
#include <cstring>
#include <memory>

#include "attend.hpp"
#include "serve.hpp"

namespace sale::ggml {
namespace {

// Made once by ggml_backend_init, never destroyed: the host may call us until the process ends.
Common* common = nullptr;
Registry* registry = nullptr;
Device* device = nullptr;

const uint8_t guid[16] = {0x53, 0x41, 0x4c, 0x45, 0x9d, 0x1b, 0x4e, 0x07,
                          0xa2, 0x6c, 0x31, 0xf8, 0x75, 0x0e, 0xd4, 0x42};

Attention& attention(Backend* backend) { return *static_cast<Attention*>(backend->context); }

// ---- backend ---------------------------------------------------------------------------------------------------

Status compute(Backend* backend, Graph* graph) {
  const Host& h = common->host;
  try {
    for (int i = 0; i < h.graph_n_nodes(graph); ++i) {
      const Tensor& op = *h.graph_node(graph, i);
      if (h.flags_computed && (op.flags & flag_compute) == 0) continue;
      if (op.op == h.op_flash_attention)
        attention(backend).run(op);
      else if (!h.without_work(op.op))
        throw std::runtime_error(std::string("asked for ") + h.op_name(op.op) + ", which was never claimed");
    }
    return status_success;
  } catch (const std::exception& e) {
    common->report.notice(std::string("failed: ") + e.what());
    return status_failed;
  }
}

void set_threads(Backend* backend, int n) { attention(backend).set_threads(n < 1 ? 1 : n); }

Backend* make_backend(Device* of, const char*) {
  try {
    auto backend = std::make_unique<Backend>();
    auto made = std::make_unique<Attention>(*common);
    backend->guid = guid;
    backend->table.get_name = [](Backend*) { return "SALE"; };
    backend->table.free = [](Backend* b) {
      delete &attention(b);
      delete b;
    };
    backend->table.graph_compute = compute;
    backend->device = of;
    backend->context = made.release();
    return backend.release();
  } catch (const std::exception& e) {
    common->report.notice(std::string("no backend: ") + e.what());
    return nullptr;
  }
}

// ---- device ----------------------------------------------------------------------------------------------------

bool supports(Device*, const Tensor* op) {
  const Host& h = common->host;
  try {
    common->models.saw(h, *op);
    if (op->op != h.op_flash_attention) return h.without_work(op->op);
    const Refusal refusal = why_not(h, common->settings, *op);
    if (!refusal.why.empty()) common->report.declined(refusal.why, refusal.common);
    return refusal.why.empty();
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void fill_device(Device& d) {
  DeviceTable& t = d.table;
  t.get_name = [](Device*) { return "SALE"; };
  t.get_description = [](Device*) { return "sparse attention for long prompts, on the CPU"; };
  t.get_memory = [](Device*, size_t* free, size_t* total) { *free = *total = 0; };
  t.get_type = [](Device*) { return int32_t{device_accelerator}; };
  t.get_properties = [](Device* of, DeviceProperties* p) {
    p->name = of->table.get_name(of);
    p->description = of->table.get_description(of);
    p->memory_free = p->memory_total = 0;
    p->type = device_accelerator;
  };
  t.init_backend = make_backend;
  t.get_buffer_type = [](Device*) { return common->host.backend_cpu_buffer_type(); };
  t.supports_op = supports;
  t.supports_buffer_type = [](Device*, BufferType* type) { return common->host.backend_buft_is_host(type); };
}

void fill_registry(Registry& r) {
  r.api_version = common->host.api_version;
  r.table.get_name = [](Registry*) { return "SALE"; };
  r.table.get_device_count = [](Registry*) { return size_t{1}; };
  r.table.get_device = [](Registry*, size_t) { return device; };
  r.table.get_function = [](Registry*, const char* name) -> void* {
    return std::strcmp(name, "ggml_backend_set_n_threads") == 0 ? reinterpret_cast<void*>(set_threads) : nullptr;
  };
}

// What would otherwise only be refused in the middle of a prompt: an unknown or unusable backend of the library.
void try_library(const Settings& s) {
  const Problem problem(1, 1, 1, 64, 64, 64, SALE_F16);
  const Plan plan(problem, Options().threshold(s.tau).estimator(s.format).compute(s.compute).backend(s.backend));
}

}  // namespace
}  // namespace sale::ggml

// The one name that ggml looks for. Null: the host says that the backend was not loaded and goes on without it.
extern "C" __attribute__((visibility("default"))) sale::ggml::Registry* ggml_backend_init() {
  using namespace sale::ggml;
  if (registry != nullptr) return registry;
  try {
    auto made = std::make_unique<Common>();
    made->settings = read_settings();
    made->report.open(made->settings.stats);
    try_library(made->settings);
    made->host = find_host();
    auto d = std::make_unique<Device>();
    auto r = std::make_unique<Registry>();
    common = made.release();
    fill_device(*d);
    fill_registry(*r);
    d->registry = r.get();
    device = d.release();
    return registry = r.release();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "sale: not loaded: %s\n", e.what());
    return nullptr;
  }
}
