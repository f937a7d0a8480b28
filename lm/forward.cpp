// The forward pass, step by step.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>

#include "lm/bf16.hpp"
#include "lm/error.hpp"
#include "lm/model_state.hpp"
#include "lm/workers.hpp"

namespace sale::lm {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kLogitFloats = int64_t{16} << 20;  // a tile of logits holds at most about this many

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Sums in sixteen lanes, so that the loop is vector code without reassociating anything.
float mean_square(const float* x, int64_t n) {
  float lane[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int64_t j = 0; j < 16; ++j) lane[j] += x[i + j] * x[i + j];
  for (; i < n; ++i) lane[0] += x[i] * x[i];
  return std::accumulate(std::begin(lane), std::end(lane), 0.0f) / static_cast<float>(n);
}

float log_prob(const float* logits, int64_t n, int32_t target) {
  const float top = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(std::exp(logits[i] - top));
  return logits[target] - top - static_cast<float>(std::log(sum));
}

}  // namespace

// Row tiles over the threads; a single tile gets all the threads for its matrix products instead.
void Model::State::tiles(int64_t from, int64_t to, int64_t tile,
                         const std::function<void(int64_t, int64_t, Workspace&, int)>& work) {
  const int64_t count = (to - from + tile - 1) / tile;
  for_each_index(threads, count, [&](int64_t index, int worker) {
    const int64_t begin = from + index * tile;
    work(begin, std::min(tile, to - begin), workspaces[at(worker)], count == 1 ? threads : 1);
  });
}

void Model::State::embed(Pass& pass) {
  const int64_t hidden = config.hidden_size;
  tiles(0, pass.rows(), kTileRows, [&](int64_t begin, int64_t rows, Workspace&, int) {
    for (int64_t row = begin; row < begin + rows; ++row) {
      float* x = pass.x.data() + row * hidden;
      const int64_t source = int64_t{pass.tokens[at(row)]} * hidden;
      if (compute == Compute::f32)
        std::memcpy(x, embedding_f32.data() + source, at(hidden) * sizeof(float));
      else
        std::transform(embedding_bf16.data() + source, embedding_bf16.data() + source + hidden, x, from_bf16);
    }
  });
}

void Model::State::norm_row(const float* x, const std::vector<float>& weight, std::byte* out) const {
  const int64_t hidden = config.hidden_size;
  const float scale = 1.0f / std::sqrt(mean_square(x, hidden) + static_cast<float>(config.rms_norm_eps));
  const float* w = weight.data();
  if (compute == Compute::bf16) {
    auto* to = reinterpret_cast<uint16_t*>(out);
    for (int64_t i = 0; i < hidden; ++i) to[i] = to_bf16(x[i] * scale * w[i]);
  } else {
    auto* to = reinterpret_cast<float*>(out);
    for (int64_t i = 0; i < hidden; ++i) to[i] = x[i] * scale * w[i];
  }
}

const std::byte* Model::State::norm_tile(const Pass& pass, int64_t begin, int64_t rows,
                                         const std::vector<float>& weight, Workspace& space) const {
  const int64_t hidden = config.hidden_size, stride = hidden * activation_size();
  space.normed.need(rows * stride);
  for (int64_t r = 0; r < rows; ++r)
    norm_row(pass.x.data() + (begin + r) * hidden, weight, space.normed.data() + r * stride);
  return space.normed.data();
}

// RMSNorm of every head by itself; nothing where there is no weight.
void Model::State::norm_heads(float* x, int64_t heads, const std::vector<float>& weight) const {
  if (weight.empty()) return;
  const int64_t dim = config.head_dim;
  for (float* at_head = x; at_head < x + heads * dim; at_head += dim) {
    const float scale = 1.0f / std::sqrt(mean_square(at_head, dim) + static_cast<float>(config.rms_norm_eps));
    for (int64_t i = 0; i < dim; ++i) at_head[i] *= scale * weight[at(i)];
  }
}

// One token's q, k and v: q and k normed where the model does, rotated, rounded to bf16, put where attention reads
// them.
void Model::State::scatter_row(Pass& pass, int64_t layer, int64_t row, float* qkv) {
  norm_heads(qkv, config.q_heads, layers[at(layer)].q_norm);
  norm_heads(qkv + q_width(), config.kv_heads, layers[at(layer)].k_norm);
  const int64_t dim = config.head_dim, half = dim / 2, position = pass.first_position + row;
  const float* cosines = pass.table.cosines.data() + row * half;
  const float* sines = pass.table.sines.data() + row * half;
  for (int64_t h = 0; h < config.q_heads; ++h)
    rotate_head(qkv + h * dim, cosines, sines, half, pass.q.data() + row * q_width() + h * dim);
  for (int64_t h = 0; h < config.kv_heads; ++h) {
    const int64_t to = (h * pass.cache.capacity() + position) * dim;
    rotate_head(qkv + q_width() + h * dim, cosines, sines, half, pass.cache.keys(layer) + to);
    const float* v = qkv + q_width() + kv_width() + h * dim;
    std::transform(v, v + dim, pass.cache.values(layer) + to, to_bf16);
  }
}

void Model::State::before_attention(Pass& pass, int64_t layer) {
  const Layer& weights = layers[at(layer)];
  tiles(0, pass.rows(), kTileRows, [&](int64_t begin, int64_t rows, Workspace& space, int inner) {
    const std::byte* normed = norm_tile(pass, begin, rows, weights.attention_norm, space);
    const int64_t width = weights.qkv.out();
    space.wide.need(rows * width);
    weights.qkv.run(rows, normed, space.wide.data(), Linear::Then::store_f32, nullptr, inner);
    for (int64_t r = 0; r < rows; ++r) scatter_row(pass, layer, begin + r, space.wide.data() + r * width);
  });
}

double Model::State::attend(Pass& pass, int64_t layer, Attention& attention, bool decode) const {
  const double start = now();
  const int64_t dim = config.head_dim;
  AttentionCall call{};
  call.layer = static_cast<int>(layer);
  call.q_len = pass.rows();
  call.k_len = pass.first_position + pass.rows();
  call.q_heads = config.q_heads;
  call.kv_heads = config.kv_heads;
  call.head_dim = config.head_dim;
  call.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  call.q = pass.q.data();
  call.k = pass.cache.keys(layer);
  call.v = pass.cache.values(layer);
  call.q_token_stride = call.out_token_stride = q_width();
  call.q_head_stride = call.out_head_stride = call.kv_token_stride = dim;
  call.kv_head_stride = pass.cache.capacity() * dim;
  call.out = pass.a.data();
  call.decode = decode;
  attention.run(call);
  return now() - start;
}

// Rows below `from` are not needed by anyone (last layer, when only the last token's logits are wanted).
void Model::State::after_attention(Pass& pass, int64_t layer, int64_t from) {
  const Layer& weights = layers[at(layer)];
  using Then = Linear::Then;
  tiles(from, pass.rows(), kTileRows, [&](int64_t begin, int64_t rows, Workspace& space, int inner) {
    const int64_t width = q_width(), size = activation_size(), middle = config.intermediate_size;
    float* x = pass.x.data() + begin * config.hidden_size;
    const void* attended = pass.a.data() + begin * width;
    if (compute == Compute::f32) {
      space.wide.need(rows * width);
      std::transform(pass.a.data() + begin * width, pass.a.data() + (begin + rows) * width, space.wide.data(),
                     from_bf16);
      attended = space.wide.data();
    }
    weights.out.run(rows, attended, x, Then::add_f32, nullptr, inner);
    const std::byte* normed = norm_tile(pass, begin, rows, weights.mlp_norm, space);
    space.gate.need(rows * middle * size);
    space.inner.need(rows * middle * size);
    weights.gate.run(rows, normed, space.gate.data(), Then::swish, nullptr, inner);
    weights.up.run(rows, normed, space.inner.data(), Then::multiply, space.gate.data(), inner);
    weights.down.run(rows, space.inner.data(), x, Then::add_f32, nullptr, inner);
  });
}

void Model::State::logits(const Pass& pass, int64_t done, const ForwardOptions& options, ForwardResult& result) {
  if (options.logits == Logits::none) return;
  const int64_t vocab = config.vocab_size, from = options.logits == Logits::last ? pass.rows() - 1 : 0;
  const int64_t tile = std::clamp<int64_t>(kLogitFloats / vocab, 1, kTileRows);
  tiles(from, pass.rows(), tile, [&](int64_t begin, int64_t rows, Workspace& space, int inner) {
    const std::byte* normed = norm_tile(pass, begin, rows, final_norm, space);
    space.wide.need(rows * vocab);
    float* to = space.wide.data();
    if (options.logits == Logits::last) to = result.logits.data();
    if (options.logits == Logits::all) to = result.logits.data() + (done + begin) * vocab;
    head->run(rows, normed, to, Linear::Then::store_f32, nullptr, inner);
    if (options.logits != Logits::targets) return;
    for (int64_t r = 0; r < rows; ++r)
      if (const int32_t target = options.targets[at(done + begin + r)]; target >= 0)
        result.log_probs[at(done + begin + r)] = log_prob(to + r * vocab, vocab, target);
  });
}

void Model::State::check(std::span<const int32_t> tokens, const KVCache& cache, const ForwardOptions& options) const {
  if (tokens.empty()) fail("forward: no tokens");
  if (options.chunk < 0) fail("forward: chunk is ", options.chunk, "; 0 (all) or more is allowed");
  const int64_t end = checked_add(cache.length(), ssize_of(tokens), "forward");
  if (end > config.max_positions)
    fail("forward: positions up to ", end, "; the model has ", config.max_positions, " (max_position_embeddings)");
  if (end > cache.capacity()) fail("forward: ", end, " tokens; the KV cache has room for ", cache.capacity());
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= config.vocab_size)
      fail("forward: token ", i, " is ", tokens[i], "; 0 to ", config.vocab_size - 1, " are allowed");
  if (options.logits != Logits::targets) return;
  if (options.targets.size() != tokens.size())
    fail("forward: ", options.targets.size(), " targets for ", tokens.size(), " tokens");
  for (int32_t target : options.targets)
    if (target < -1 || target >= config.vocab_size)
      fail("forward: target ", target, "; -1 to ", config.vocab_size - 1, " are allowed");
}

void Model::State::chunk(std::span<const int32_t> tokens, int64_t done, KVCache& cache, Attention& attention,
                         const ForwardOptions& options, ForwardResult& result) {
  const int64_t chunk = options.chunk ? options.chunk : ssize_of(tokens),
                count = (ssize_of(tokens) + chunk - 1) / chunk;
  const auto part = tokens.subspan(at(done), at(std::min(chunk, ssize_of(tokens) - done)));
  const int64_t rows = ssize_of(part), position = cache.length() + done;
  Pass pass{part,
            cache,
            position,
            rope_table(rope, position, rows, threads),
            Buffer<float>(rows * config.hidden_size),
            Buffer<uint16_t>(rows * q_width()),
            Buffer<uint16_t>(rows * q_width())};
  embed(pass);
  const bool last_chunk = done + rows == ssize_of(tokens);
  const bool few = options.logits == Logits::none || options.logits == Logits::last;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    before_attention(pass, layer);
    result.attention_seconds += attend(pass, layer, attention, options.decode);
    const int64_t needed_from = options.logits == Logits::last && last_chunk ? rows - 1 : rows;
    after_attention(pass, layer, few && layer + 1 == config.layers ? needed_from : 0);
    if (options.progress) options.progress(done / chunk * config.layers + layer + 1, count * config.layers);
  }
  if (options.logits != Logits::last || last_chunk) logits(pass, done, options, result);
}

ForwardResult Model::forward(std::span<const int32_t> tokens, KVCache& cache, Attention& attention,
                             const ForwardOptions& options) {
  const double start = now();
  State& s = *state_;
  s.check(tokens, cache, options);
  const int64_t n = ssize_of(tokens), step = options.chunk ? options.chunk : n;
  ForwardResult result;
  if (options.logits == Logits::last) result.logits.resize(at(s.config.vocab_size));
  if (options.logits == Logits::all) result.logits.resize(at(checked_mul(n, s.config.vocab_size, "logits")));
  if (options.logits == Logits::targets) result.log_probs.resize(tokens.size());
  try {
    for (int64_t done = 0; done < n; done += step) s.chunk(tokens, done, cache, attention, options, result);
  } catch (...) {
    attention.truncate(cache.length());  // the cache's own length moves only when all went well
    throw;
  }
  cache.length_ += n;
  result.seconds = now() - start;
  return result;
}

}  // namespace sale::lm
