// A model folder or GGUF file as the program uses it: the runner, the tokenizer, who it is, and its calibration.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "lab/adapter.hpp"
#include "lm/model.hpp"
#include "lm/tokenizer.hpp"
#include "sale/calibration.hpp"

namespace sale::lab {

constexpr const char* default_model = "models/tiny-llama-128k";
constexpr const char* default_text = "models/text/middlemarch.txt";

// From the tensors' headers and the config; reads hardly anything of the weights.
ModelIdentity identify(const std::filesystem::path& path);

struct LoadedModel {
  lm::Model model;
  lm::Tokenizer tokenizer;
  ModelIdentity identity;
};
// threads: 0 = one per CPU.
LoadedModel load_model(const std::filesystem::path& path, int threads);
int thread_count(int asked);

// The options by which a command line says how SALE is to run.
struct SparseArguments {
  std::string backend, estimator, calibration, compute = "exact";
  bool compensate = false;
  double tau = -1;  // below 0: not given
  bool sparse_decode = false;
  int threads = 0;
};
// Those arguments with the calibration read and checked against the model. Not copyable: settings point into it.
struct Sparse {
  std::optional<Calibration> calibration;
  AttentionSettings settings;
  std::string estimator_name(int head_dim) const;
  Sparse() = default;
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
};
void resolve(const SparseArguments& arguments, const ModelIdentity& model, Sparse& to);

}  // namespace sale::lab
