#include "attend.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "serve.hpp"
#include "workers.hpp"

namespace sale::ggml {
namespace {

constexpr size_t most_layers = 4096, most_masks = 16;
constexpr int64_t sampled_rows = 16;

// Adds the time until the end of the scope.
class Timed {
public:
  explicit Timed(double& to) : to_(to) {}
  ~Timed() { to_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

private:
  double& to_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::string hex(uint64_t n) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(n));
  return text;
}

const void* cache_of(const Tensor& op) {
  const Tensor& k = *op.src[1];
  return k.view_src != nullptr ? k.view_src->data : k.data;
}

}  // namespace

Attention::~Attention() {
  totals_.index_bytes = indexes_.bytes();
  if (totals_.calls > 0) common_.report.write(totals_);
}

Options Attention::dense_options() const {
  return Options().dense().compute(common_.settings.compute).backend(common_.settings.backend).threads(threads_);
}

// ---- options of a layer ----------------------------------------------------------------------------------------

void Attention::choose_options(Layer& layer) {
  const Settings& s = common_.settings;
  layer.sparse = layer.number >= 0;
  const Calibration* c = s.calibration ? &*s.calibration : nullptr;
  std::optional<Calibration> found;
  std::string why;
  if (c == nullptr && !s.calibrations.empty() && layer.fingerprint) {
    const auto path = s.calibrations / (hex(*layer.fingerprint) + ".json");
    std::error_code none;
    if (!std::filesystem::exists(path, none)) {
      why = path.string() + " does not exist";
    } else {
      try {
        found = read_calibration(path);
        c = &*found;
      } catch (const std::exception& e) {
        why = e.what();
      }
    }
  }
  if (c != nullptr) {
    const ModelIdentity& m = c->model;
    if (!layer.fingerprint)
      why = "the model's attention norms were not seen", c = nullptr;
    else if (m.fingerprint != *layer.fingerprint)
      why = "it is of model " + m.name + ", fingerprint " + hex(m.fingerprint) + ", and this model's is " +
            hex(*layer.fingerprint),
      c = nullptr;
    else if (m.q_heads != layer.q_heads || m.kv_heads != layer.kv_heads || m.head_dim != layer.dim ||
             layer.number >= m.layers)
      why = "its heads or layers are not those of layer " + std::to_string(layer.number), c = nullptr;
  }
  Options o;
  if (c != nullptr) {
    o = c->options(layer.number);
    // Quantized caches hold rotated keys, for which projections were not made; thresholds hold for them too.
    if (layer.type == Type::q8_0 && c->projected()) o.estimator(c->format);
    layer.dense_below = c->dense_below;
  } else {
    if (!why.empty()) common_.report.notice("no calibration, tau " + std::to_string(s.tau) + " for every head: " + why);
    o.estimator(s.format);
    layer.dense_below = 1024;  // what SALE_AUTO is on CPUs
  }
  if (c == nullptr || s.tau_over_calibration) {
    o.threshold(s.tau);
    layer.sparse = layer.sparse && s.tau > 0;
  }
  if (s.dense_below) layer.dense_below = *s.dense_below;
  // What is shorter goes by another plan.
  o.dense_below(0).compute(s.compute).backend(s.backend).threads(threads_);
  layer.options = std::make_shared<const Options>(std::move(o));
}

Attention::Layer& Attention::layer_of(const Tensor& op) {
  const Tensor &q = *op.src[0], &k = *op.src[1];
  const void* cache = cache_of(op);
  Layer now;
  now.number = cache_layer(k);
  now.q_heads = static_cast<int32_t>(q.ne[2]), now.kv_heads = static_cast<int32_t>(k.ne[2]), now.dim = k.ne[0];
  now.type = common_.host.type(k.type);
  now.fingerprint = common_.models.fingerprint(cache);
  if (layers_.size() >= most_layers && !layers_.contains(cache)) layers_.clear();
  Layer& layer = layers_[cache];
  // The address may have come to belong to another cache.
  if (!layer.options || layer.number != now.number || layer.q_heads != now.q_heads || layer.kv_heads != now.kv_heads ||
      layer.dim != now.dim || layer.type != now.type || layer.fingerprint != now.fingerprint) {
    layer = now;
    choose_options(layer);
  }
  return layer;
}

// ---- the mask --------------------------------------------------------------------------------------------------

// All layers of a pass share a mask tensor, and a later pass may fill the same one anew. Layers run in ascending order,
// so a layer that does not follow the last one begins another pass; a sample of the rows stands guard over that.
const std::vector<std::vector<Run>>& Attention::runs_of(const Tensor& op, int32_t layer) {
  const Tensor &q = *op.src[0], &k = *op.src[1], *m = op.src[3];
  const Timed timed(totals_.mask_s);
  if (masks_.size() >= most_masks && !masks_.contains(m)) masks_.clear();
  MaskOf now{m, m == nullptr ? nullptr : m->data, q.ne[1], k.ne[1], q.ne[3], layer, 0, {}};
  for (int64_t i = 0; m != nullptr && i < sampled_rows; ++i) {
    const auto row = static_cast<size_t>((q.ne[1] - 1) * i / (sampled_rows - 1));
    for (int64_t s = 0; s < m->ne[3]; ++s)
      now.sample =
          now.sample * 31 +
          digest(static_cast<const char*>(m->data) + static_cast<size_t>(s) * m->nb[3] + row * m->nb[1], m->nb[1]);
  }
  MaskOf& of = masks_[m];
  if (m != nullptr && of.tensor == m && of.data == now.data && of.rows == now.rows && of.keys == now.keys &&
      of.streams == now.streams && of.sample == now.sample && layer > of.last_layer && of.last_layer >= 0) {
    of.last_layer = layer;
    return of.runs;
  }
  of = std::move(now);
  for (int64_t s = 0; s < q.ne[3]; ++s) {
    if (m == nullptr) {
      of.runs.push_back({Run{Run::all, 0, q.ne[1], {{0, k.ne[1]}}, k.ne[1], k.ne[1], false}});
      continue;
    }
    const char* first = static_cast<const char*>(m->data) + static_cast<size_t>(s % m->ne[3]) * m->nb[3];
    of.runs.push_back(read_mask(reinterpret_cast<const uint16_t*>(first), q.ne[1], k.ne[1]));
  }
  return of.runs;
}

// ---- rows ------------------------------------------------------------------------------------------------------

void Attention::run(const Tensor& op) {
  const Tensor& k = *op.src[1];
  ++totals_.calls;
  Layer& layer = layer_of(op);
  const auto& runs = runs_of(op, layer.number);
  for (int64_t s = 0; s < op.src[0]->ne[3]; ++s) {
    // A cache tensor is [dim * heads, cells, streams].
    const int64_t most = k.view_src != nullptr ? std::max(k.view_src->ne[1], k.ne[1]) : k.ne[1];
    run_stream({op, s, layer, Stored::of(common_.host, k, s), Stored::of(common_.host, *op.src[2], s), most},
               runs[static_cast<size_t>(s)]);
  }
}

void Attention::run_stream(const Stream& s, const std::vector<Run>& runs) {
  int64_t waiting = -1;  // first row of those that go to ggml together
  const auto flush = [&](int64_t end) {
    if (waiting >= 0) run_ggml(s, waiting, end);
    waiting = -1;
  };
  for (const Run& run : runs) {
    const bool ours = run.kind == Run::blind ||
                      ((run.kind == Run::causal || run.kind == Run::all) && run.rows() >= common_.settings.min_rows);
    if (!ours) {
      if (waiting < 0) waiting = run.row_begin;
      continue;
    }
    flush(run.row_begin);
    if (run.kind == Run::blind) {
      char* out = static_cast<char*>(s.op.data) + static_cast<size_t>(s.number) * s.op.nb[3];
      std::memset(out + static_cast<size_t>(run.row_begin) * s.op.nb[2], 0,
                  static_cast<size_t>(run.rows()) * s.op.nb[2]);
      totals_.blind_rows += run.rows();
      continue;
    }
    try {
      run_library(s, run);
    } catch (const std::exception& e) {
      common_.report.notice(std::string("attention given back to ggml: ") + e.what());
      run_ggml(s, run.row_begin, run.row_end);
    }
  }
  flush(runs.empty() ? 0 : runs.back().row_end);
}

void Attention::run_ggml(const Stream& s, int64_t begin, int64_t end) {
  const Timed timed(totals_.ggml_s);
  fallback_.run(s.op, s.number, begin, end, threads_);
  totals_.ggml_rows += end - begin;
}

Readable Attention::queries(const Stream& s, const Run& run, sale_dtype type) {
  const Tensor& q = *s.op.src[0];
  const char* first = static_cast<const char*>(q.data) + static_cast<size_t>(s.number) * q.nb[3] +
                      static_cast<size_t>(run.row_begin) * q.nb[1];
  if (type == SALE_F32) return {first, {0, static_cast<int64_t>(q.nb[2] / 4), static_cast<int64_t>(q.nb[1] / 4)}};
  const size_t row = static_cast<size_t>(q.ne[0]) * size_of(type);
  q_room_.resize(static_cast<size_t>(q.ne[2] * run.rows()) * row);
  in_pieces(threads_, q.ne[2] * run.rows(), 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / run.rows(), r = i % run.rows();
      const char* from = first + static_cast<size_t>(head) * q.nb[2] + static_cast<size_t>(r) * q.nb[1];
      round_row(type, reinterpret_cast<const float*>(from), q_room_.data() + static_cast<size_t>(i) * row, q.ne[0]);
    }
  });
  return {q_room_.data(), {0, run.rows() * q.ne[0], q.ne[0]}};
}

// The index of a run's keys; null when there is no memory for one, and then the layer is dense from here on.
const sale_index* Attention::index_for(const Stream& s, const Run& run, const Problem& problem, const Readable& k) {
  const Timed timed(totals_.index_s);
  const auto dense_from_here = [&]() -> const sale_index* {
    indexes_.forget(s.k.data);
    s.layer.sparse = false;
    common_.report.notice("no memory for the key index of layer " + std::to_string(s.layer.number) + "; it runs dense");
    return nullptr;
  };
  try {
    const std::vector<uint64_t> digests = digest(s.k, run, threads_);
    int64_t reused = 0;
    const KeyIndex& index = indexes_.update(problem, s.layer.options,
                                            {s.k.data, digests, k.data, k.strides, run.key_count, s.most_keys}, reused);
    totals_.keys_reused += reused, totals_.keys_coded += run.key_count - reused;
    return index.get();
  } catch (const std::bad_alloc&) {
    return dense_from_here();
  } catch (const Error& e) {
    if (e.status() != SALE_OUT_OF_MEMORY) throw;
    return dense_from_here();
  }
}

bool Attention::shown(const Stream& s, const Run& run) {
  return s.layer.number >= 0 && s.layer.fingerprint && run.kind == Run::causal && run.ordered &&
         run.rows() == run.key_count && run.first_sees == 1 && run.window == 0 && s.k.type != Type::q8_0 &&
         common_.models.layers(cache_of(s.op)) > 0 && common_.calibrating.wants(common_.settings, run.rows());
}

void Attention::run_library(const Stream& s, const Run& run) {
  const Tensor &op = s.op, &q = *op.src[0];
  const sale_dtype type = computed_as(s.k.type);
  const int32_t q_heads = static_cast<int32_t>(q.ne[2]), dim = static_cast<int32_t>(q.ne[0]);
  float* out = reinterpret_cast<float*>(static_cast<char*>(op.data) + static_cast<size_t>(s.number) * op.nb[3] +
                                        static_cast<size_t>(run.row_begin) * op.nb[2]);
  Readable rq, rk, rv;
  {
    const Timed timed(totals_.pack_s);
    rq = queries(s, run, type);
    rk = readable(s.k, run, k_room_, threads_);
    rv = readable(s.v, run, v_room_, threads_);
    if (type != SALE_F32) out_room_.resize(static_cast<size_t>(run.rows() * q_heads * dim) * size_of(type));
  }
  Problem problem(1, q_heads, s.k.heads, run.rows(), run.key_count, dim, type);
  problem.scale(parameter(op, flash_scale))
      .strides(rq.strides, rk.strides, rv.strides, {0, dim, int64_t{dim} * q_heads});
  problem.q_offset(run.kind == Run::all ? run.key_count : run.first_sees - 1).window(run.window);

  const sale_index* index = nullptr;
  const bool watched = shown(s, run);
  if (watched)
    common_.calibrating.saw(
        common_.settings, common_.report, this,
        {s.layer.number, common_.models.layers(cache_of(op)), q_heads, s.k.heads, dim, *s.layer.fingerprint, type,
         run.rows(), parameter(op, flash_scale), rq.data, rk.data, rv.data, rq.strides, rk.strides, rv.strides});
  if (!watched && s.layer.sparse && run.kind == Run::causal && run.ordered && run.key_count >= s.layer.dense_below)
    index = index_for(s, run, problem, rk);
  // The host changes the number of threads between prompts and decoding; the index does not mind.
  auto plan = index != nullptr ? std::make_unique<Plan>(problem, Options(*s.layer.options).threads(threads_),
                                                        Plan::Keys::have_an_index)
                               : std::make_unique<Plan>(problem, dense_options());
  workspace_.need(plan->workspace().total);
  std::vector<float> lse(common_.settings.audit > 0 ? static_cast<size_t>(q_heads * run.rows()) : 0);
  Stats stats;
  plan->run({rq.data, rk.data, rv.data, type == SALE_F32 ? static_cast<void*>(out) : out_room_.data(),
             lse.empty() ? nullptr : lse.data()},
            workspace_, index != nullptr ? sale::Indexes(&index, 1) : sale::Indexes{}, &stats);
  last_plan_ = std::move(plan);
  totals_.select_s += stats.select_s, totals_.attend_s += stats.attend_s;
  (index != nullptr ? totals_.sparse_rows : totals_.dense_rows) += run.rows();
  if (index != nullptr) totals_.kept_blocks += stats.kept_blocks, totals_.visible_blocks += stats.visible_blocks;
  if (type != SALE_F32) {
    const Timed timed(totals_.pack_s);
    const int64_t row = int64_t{dim} * q_heads;
    in_pieces(threads_, run.rows(), 64, [&](int64_t begin, int64_t end) {
      widen_row(type, out_room_.data() + static_cast<size_t>(begin * row) * size_of(type), out + begin * row,
                (end - begin) * row);
    });
  }
  if (!lse.empty()) audit(s, run, lse);
}

}  // namespace sale::ggml
