// Loading, the KV cache, and greedy generation; the forward pass is in forward.cpp.
#include "lm/model.hpp"

#include <algorithm>
#include <chrono>

#include "lm/bf16.hpp"
#include "lm/error.hpp"
#include "lm/gguf_model.hpp"
#include "lm/model_state.hpp"
#include "lm/safetensors.hpp"

namespace sale::lm {

KVCache::KVCache(const Config& config, int64_t capacity) : capacity_(capacity) {
  if (capacity < 1 || capacity > config.max_positions)
    fail("KV cache of ", capacity, " tokens; 1 to ", config.max_positions, " (max_position_embeddings) are allowed");
  const int64_t count = checked_mul(checked_mul(capacity, config.kv_heads, "KV cache"), config.head_dim, "KV cache");
  for (int64_t i = 0; i < 2 * config.layers; ++i) layers_.emplace_back(count);
}

void KVCache::truncate(int64_t n) {
  if (n < 0 || n > length_) fail("KV cache: truncating to ", n, " tokens; 0 to ", length_, " are allowed");
  length_ = n;
}

namespace {

std::unique_ptr<Weights> open_weights(const std::filesystem::path& path, const Config& config) {
  if (is_gguf(path)) return std::make_unique<GgufWeights>(Gguf::open(path), config);
  return std::make_unique<SafeTensors>(SafeTensors::open(path));
}

}  // namespace

Model Model::load(const std::filesystem::path& path, int threads, Compute compute) {
  if (threads < 1 || threads > 1024) fail("threads is ", threads, "; 1 to 1024 are allowed");
  auto state = std::make_unique<State>();
  State& s = *state;
  s.config = read_config(path);
  s.compute = resolve(compute);
  s.threads = threads;
  s.rope = make_rope(s.config.rope, s.config.head_dim);
  s.workspaces.resize(at(threads));
  const std::unique_ptr<Weights> file = open_weights(path, s.config);
  const int64_t hidden = s.config.hidden_size, middle = s.config.intermediate_size, q = s.q_width(), kv = s.kv_width();
  // Checkpoints of the bare model leave "model." out.
  const std::string base =
      !file->contains("model.embed_tokens.weight") && file->contains("embed_tokens.weight") ? "" : "model.";

  const auto linear = [&](const std::string& name, int64_t in, int64_t out, bool bias) {
    return Linear(s.compute, in, out, file->floats(name + ".weight", {out, in}),
                  bias ? file->floats(name + ".bias", {out}) : std::vector<float>());
  };
  const auto joined_qkv = [&](const std::string& prefix) {
    std::vector<float> weights, bias;
    for (const auto& [name, out] : {std::pair("q_proj", q), std::pair("k_proj", kv), std::pair("v_proj", kv)}) {
      const auto part = file->floats(prefix + name + ".weight", {out, hidden});
      weights.insert(weights.end(), part.begin(), part.end());
      if (!s.config.qkv_bias) continue;
      const auto add = file->floats(prefix + name + ".bias", {out});
      bias.insert(bias.end(), add.begin(), add.end());
    }
    return Linear(s.compute, hidden, q + 2 * kv, weights, bias);
  };
  for (int64_t i = 0; i < s.config.layers; ++i) {
    const std::string prefix = base + "layers." + std::to_string(i) + ".";
    const auto head_norm = [&](const char* name) {
      return s.config.qk_norm ? file->floats(prefix + name, {s.config.head_dim}) : std::vector<float>();
    };
    s.layers.push_back(
        {file->floats(prefix + "input_layernorm.weight", {hidden}),
         file->floats(prefix + "post_attention_layernorm.weight", {hidden}), head_norm("self_attn.q_norm.weight"),
         head_norm("self_attn.k_norm.weight"), joined_qkv(prefix + "self_attn."),
         linear(prefix + "self_attn.o_proj", q, hidden, s.config.out_bias),
         linear(prefix + "mlp.gate_proj", hidden, middle, false), linear(prefix + "mlp.up_proj", hidden, middle, false),
         linear(prefix + "mlp.down_proj", middle, hidden, false)});
  }
  s.final_norm = file->floats(base + "norm.weight", {hidden});
  s.embedding_f32 = file->floats(base + "embed_tokens.weight", {s.config.vocab_size, hidden});
  // A head of its own counts even where the config says that it is tied, as with transformers.
  s.head = std::make_unique<Linear>(s.config.tied_embeddings && !file->contains("lm_head.weight")
                                        ? Linear(s.compute, hidden, s.config.vocab_size, s.embedding_f32)
                                        : linear("lm_head", hidden, s.config.vocab_size, false));
  if (s.compute == Compute::bf16) {
    s.embedding_bf16.resize(s.embedding_f32.size());
    std::transform(s.embedding_f32.begin(), s.embedding_f32.end(), s.embedding_bf16.begin(), to_bf16);
    s.embedding_f32 = {};
  }
  return Model(std::move(state));
}

Model::Model(std::unique_ptr<State> state) : state_(std::move(state)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;
const Config& Model::config() const { return state_->config; }
Compute Model::compute() const { return state_->compute; }
int Model::threads() const { return state_->threads; }

Generated generate_greedy(Model& model, std::span<const int32_t> prompt, KVCache& cache, Attention& attention,
                          const GenerateOptions& options) {
  const std::vector<int32_t>& stop = options.stop.empty() ? model.config().eos : options.stop;
  Generated made;
  made.prompt = model.forward(prompt, cache, attention, {.chunk = options.chunk, .progress = options.progress});
  const auto start = std::chrono::steady_clock::now();
  const auto best = [](const std::vector<float>& logits) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  };
  int32_t id = best(made.prompt.logits);
  while (ssize_of(made.ids) < options.max_tokens && std::find(stop.begin(), stop.end(), id) == stop.end()) {
    made.ids.push_back(id);
    if (options.on_token && !options.on_token(id)) break;
    if (ssize_of(made.ids) == options.max_tokens) break;
    id = best(model.forward(std::span(&id, 1), cache, attention, {.decode = true}).logits);
  }
  made.decode_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return made;
}

}  // namespace sale::lm
