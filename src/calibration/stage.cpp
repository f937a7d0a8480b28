#include "calibration/stage.hpp"

#include <cstring>

#include "calibration/numbers.hpp"

namespace sale::calibration {
namespace {

Problem problem_of(const Setup& s, int64_t tokens) {
  Problem p(1, s.shape.q_heads, s.shape.kv_heads, tokens, tokens, s.shape.head_dim, s.shape.dtype);
  if (s.device != SALE_HOST) p.device(s.device);
  return p;
}

}  // namespace

Stage::Stage(const Setup& setup, int64_t tokens)
    : setup_(setup), memory_(options(0).layer(problem_of(setup, tokens))) {}

Options Stage::options(int32_t layer) const {
  const Shape& s = setup_.shape;
  Options o;
  o.sink(setup_.sink).local(setup_.local).dense_below(setup_.dense_below).backend(setup_.backend);
  o.threads(setup_.threads);
  const auto of_layer = [&](const std::vector<float>& all) {
    const size_t each = all.size() / static_cast<size_t>(s.layers);
    return std::span(all).subspan(static_cast<size_t>(layer) * each, each);
  };
  if (!setup_.smoothing.empty()) o.smoothing(of_layer(setup_.smoothing), of_layer(setup_.scales));
  if (setup_.q_projections.empty()) return o.estimator(setup_.format);
  return o.estimator(setup_.format, setup_.rank, of_layer(setup_.q_projections), of_layer(setup_.k_projections));
}

Tensor Stage::bring(const Tensor& from, int32_t heads, int64_t tokens, Memory::Block& to) {
  if (setup_.device == SALE_HOST) return from;
  const size_t element = bytes_of(setup_.shape.dtype), row = static_cast<size_t>(setup_.shape.head_dim) * element;
  const size_t bytes = static_cast<size_t>(heads) * static_cast<size_t>(tokens) * row;
  packed_.resize(bytes);
  std::byte* at = packed_.data();
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < tokens; ++t, at += row)
      std::memcpy(at,
                  static_cast<const std::byte*>(from.data) +
                      static_cast<size_t>(h * from.strides.head + t * from.strides.token) * element,
                  row);
  memory_.need(to, bytes);
  memory_.write(to.data(), packed_.data(), bytes);
  return {to.data(), {0, tokens * setup_.shape.head_dim, setup_.shape.head_dim}};
}

void Stage::place(const Layer& layer, const Layer* at) {
  const Shape& s = setup_.shape;
  const Tensor q = at != nullptr ? at->q : bring(layer.q, s.q_heads, layer.tokens, q_);
  const Tensor k = at != nullptr ? at->k : bring(layer.k, s.kv_heads, layer.tokens, k_);
  const Tensor v = at != nullptr ? at->v : bring(layer.v, s.kv_heads, layer.tokens, v_);
  const int64_t row = int64_t{s.q_heads} * s.head_dim;
  memory_.need(out_, static_cast<size_t>(layer.tokens * row) * bytes_of(s.dtype));
  tensors_ = {q.data, k.data, v.data, out_.data(), nullptr};
  problem_ = std::make_unique<Problem>(problem_of(setup_, layer.tokens));
  problem_->scale(layer.scale).strides(q.strides, k.strides, v.strides, {0, s.head_dim, row});
  layer_ = layer.number;
  index_ = std::make_unique<KeyIndex>(*problem_, options(layer_), layer.tokens);
  index_->update(k.data, k.strides, layer.tokens);
}

Bytes Stage::workspace(const Plan& plan) {
  const size_t bytes = plan.workspace().total;
  return {memory_.need(workspace_, bytes), workspace_.size()};
}

Stage::Selected Stage::select(std::span<const float> thresholds) {
  Plan plan(*problem_, options(layer_).thresholds(thresholds), Plan::Keys::have_an_index);
  BlockList blocks(plan);
  Stats stats;
  stats.per_head = true;
  const sale_index* index = index_->get();
  plan.select(tensors_, blocks, workspace(plan), {&index, 1}, &stats);
  return {std::move(plan), std::move(blocks), std::move(stats)};
}

Stage::Kept Stage::kept(const Selected& selected) const {
  uint64_t* words = nullptr;
  int64_t rows = 0;
  const sale_blocks* blocks = selected.blocks.get();
  check(sale_blocks_words(blocks, &words, nullptr, 0, &rows));
  Kept k;
  k.starts.resize(static_cast<size_t>(rows) + 1), k.tiles = rows / setup_.shape.q_heads;
  check(sale_blocks_words(blocks, &words, k.starts.data(), rows, &rows));
  k.words.resize(static_cast<size_t>(k.starts.back()));
  memory_.read(k.words.data(), words, k.words.size() * sizeof(uint64_t));
  return k;
}

Stats Stage::attend(const Selected& selected) {
  Stats stats;
  selected.plan.attend(tensors_, selected.blocks, workspace(selected.plan), &stats);
  return stats;
}

Stats Stage::run(std::span<const float> thresholds, std::vector<std::byte>& out) {
  Options o = options(layer_);
  if (thresholds.empty())
    o.dense();
  else
    o.thresholds(thresholds);
  const Plan plan(*problem_, o, Plan::Keys::have_an_index);
  Stats stats;
  const sale_index* index = index_->get();
  plan.run(tensors_, workspace(plan), {&index, 1}, &stats);
  const Shape& s = setup_.shape;
  out.resize(static_cast<size_t>(problem_->c().q_len) * static_cast<size_t>(s.q_heads) *
             static_cast<size_t>(s.head_dim) * bytes_of(s.dtype));
  memory_.read(out.data(), out_.data(), out.size());
  return stats;
}

}  // namespace sale::calibration
