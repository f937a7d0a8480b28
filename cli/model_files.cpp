#include "model_files.hpp"

#include <cmath>
#include <thread>

#include "command.hpp"
#include "lm/gguf.hpp"
#include "lm/safetensors.hpp"
#include "text.hpp"

namespace sale::cli {
int thread_count(int asked) {
  return asked > 0 ? asked : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

ModelIdentity identify(const std::filesystem::path& path) {
  const lm::Config config = lm::read_config(path);
  ModelIdentity m;
  m.name = std::filesystem::weakly_canonical(path).filename().string();
  m.layers = static_cast<int32_t>(config.layers);
  m.q_heads = config.q_heads, m.kv_heads = config.kv_heads, m.head_dim = config.head_dim;
  Fingerprint hash;  // of tensors in the order of their names, as both readers keep them
  if (lm::is_gguf(path)) {
    const lm::Gguf file = lm::Gguf::open(path);
    for (const auto& [name, t] : file.tensors()) hash.tensor(name, t.type->name, t.shape, t.bytes);
  } else {
    const lm::SafeTensors file = lm::SafeTensors::open(path);
    for (const std::string& name : file.names()) {
      const lm::Tensor& t = file.get(name);
      hash.tensor(name, lm::name_of(t.dtype), t.shape, t.bytes);
    }
  }
  m.fingerprint = hash.value();
  return m;
}

LoadedModel load_model(const std::filesystem::path& path, int threads) {
  return {lm::Model::load(path, thread_count(threads)), lm::Tokenizer::load(path), identify(path)};
}

void add_sparse_options(CLI::App& command, SparseArguments& a, const char* calibration_default) {
  command.add_option("--backend", a.backend, "backend to use; see sale info (default: the fastest usable one)");
  command.add_option("--threads", a.threads, "threads; 0 = one per CPU")->check(CLI::Range(0, 1024));
  command.add_option("--tau", a.tau, "threshold for every head, instead of the calibration's; 0 = dense")
      ->check(CLI::Range(0.0, 1e6));
  command.add_option("--estimator", a.estimator,
                     "int8, int4, fp4, fp8, int8:RANK, fp4:RANK or fp8:RANK; a rank must be the calibration's");
  command
      .add_option("--compute", a.compute, "products of attention: exact, int8 (CPUs, sm80), fp8 (GPUs) or f16 (sm80)")
      ->check(CLI::IsMember({"exact", "int8", "fp8", "f16"}))
      ->capture_default_str();
  command.add_flag("--compensate", a.compensate, "mean keys and values stand in for dropped blocks");
  if (calibration_default != nullptr)
    command.add_option("--calibration", a.calibration,
                       fmt::format("calibration file, or none (default: {})", calibration_default));
}

std::string Sparse::estimator_name(int head_dim) const {
  return calibration ? print_estimator(calibration->format, calibration->rank, head_dim)
                     : print_estimator(settings.format, 0, head_dim);
}

namespace {

// Before anything is placed where the backend would read it.
void check_backend(const std::string& name) {
  for (int32_t i = 0; i < sale_backend_count(); ++i) {
    if (name != sale_backend_name(i)) continue;
    const std::string why = sale_backend_why_not(i);
    if (!why.empty()) throw Error(SALE_UNSUPPORTED, fmt::format("{}: {}", name, why));
    return;
  }
  refuse("--backend: '{}' is not a backend; see sale info", name);
}

}  // namespace

void resolve(const SparseArguments& a, const ModelIdentity& model, Sparse& to) {
  if (!a.backend.empty()) check_backend(a.backend);
  AttentionSettings& s = to.settings;
  s.backend = a.backend, s.threads = a.threads, s.sparse_decode = a.sparse_decode, s.compensate = a.compensate;
  s.compute = a.compute == "fp8"    ? SALE_COMPUTE_FP8
              : a.compute == "f16"  ? SALE_COMPUTE_F16
              : a.compute == "int8" ? SALE_COMPUTE_INT8
                                    : SALE_COMPUTE_EXACT;
  std::optional<EstimatorName> estimator;
  if (!a.estimator.empty()) estimator = parse_estimator("--estimator", a.estimator);
  if (estimator) s.format = estimator->format;
  if (a.tau >= 0) s.tau = static_cast<float>(a.tau), s.tau_over_calibration = true;
  if (a.calibration.empty() || a.calibration == "none") {
    if (estimator && estimator->rank != 0 && estimator->rank != model.head_dim)
      refuse("--estimator: {} needs projections; give --calibration a file that has them", a.estimator);
    return;
  }
  Calibration c = read_calibration(a.calibration);
  check_model(c, model);
  if (estimator) {
    const int32_t rank = estimator->rank == 0 ? model.head_dim : estimator->rank;
    const bool all = rank == model.head_dim;
    if (!all && (rank != c.rank || estimator->format != c.format))
      refuse("--estimator: {} is not what {} was made for, {}", a.estimator, a.calibration,
             print_estimator(c.format, c.rank, c.model.head_dim));
    // All coordinates need nothing of the file but its thresholds.
    if (all)
      c.format = estimator->format, c.rank = rank, c.q_projections.clear(), c.k_projections.clear(), c.scales.clear();
  }
  to.calibration = std::move(c);
  s.calibration = &*to.calibration;
}

}  // namespace sale::cli
