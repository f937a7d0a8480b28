#include "plugin.hpp"

#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

using namespace sale::ggml;

namespace fake {
namespace {

std::string stats_file() { return SALE_GGML_SCRATCH "/stats.jsonl"; }

Device* device() {
  Registry* r = load_plugin();
  return r->table.get_device(r, 0);
}

}  // namespace

Registry* load_plugin() {
  static Registry* registry = [] {
    ::setenv("SALE_GGML_STATS", stats_file().c_str(), 1);
    void* handle = dlopen(SALE_GGML_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) std::fprintf(stderr, "%s\n", dlerror());
    return handle == nullptr ? nullptr : reinterpret_cast<Registry* (*)()>(dlsym(handle, "ggml_backend_init"))();
  }();
  return registry;
}

Session::Session(int threads) : backend_(device()->table.init_backend(device(), nullptr)) {
  Registry* r = load_plugin();
  reinterpret_cast<void (*)(Backend*, int)>(r->table.get_function(r, "ggml_backend_set_n_threads"))(backend_, threads);
}
Session::~Session() {
  if (backend_ != nullptr) backend_->table.free(backend_);
}
bool Session::claims(const Tensor* op) const { return device()->table.supports_op(device(), op); }

std::vector<float> Session::compute(Tensor* op) {
  std::memset(op->data, 0xff, op->nb[3] * static_cast<size_t>(op->ne[3]));  // NaN
  EXPECT_TRUE(claims(op));
  Graph graph{{op->src[1], op}};  // views come along in the host's graphs
  EXPECT_EQ(backend_->table.graph_compute(backend_, &graph), status_success);
  const auto* out = static_cast<const float*>(op->data);
  return {out, out + op->nb[3] / 4 * static_cast<size_t>(op->ne[3])};
}

nlohmann::json Session::end() {
  std::filesystem::remove(stats_file());
  backend_->table.free(backend_);
  backend_ = nullptr;
  std::ifstream file(stats_file());
  return nlohmann::json::parse(file, nullptr, false);
}

double relative_l1(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    norm += std::fabs(static_cast<double>(b[i]));
  }
  return difference / norm;
}

std::vector<float> plainly(Tensor* op) {
  attend_plainly(*op);
  const auto* out = static_cast<const float*>(op->data);
  return {out, out + op->nb[3] / 4 * static_cast<size_t>(op->ne[3])};
}

}  // namespace fake
