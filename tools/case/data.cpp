// What the tensors hold. Every head of every sequence has a random stream of its own and is written token by token, so
// data depends neither on the layout nor on the other sequences, and a shorter sequence is a prefix of a longer one.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "case/instance.hpp"
#include "case/random.hpp"

namespace sale_case {
namespace {

using Vector = std::vector<float>;
enum Stream : uint64_t {
  direction_stream = 1,
  query_stream,
  key_stream,
  value_stream,
  poison_stream,
  projection_stream
};

Vector random_vector(Random& random, int64_t d) {
  Vector x(static_cast<size_t>(d));
  for (float& c : x) c = random.normal();
  return x;
}

Vector unit_vector(Random& random, int64_t d) {
  Vector x = random_vector(random, d);
  double sum = 0;
  for (float c : x) sum += double{c} * c;
  const float f = sum > 0 ? static_cast<float>(1.0 / std::sqrt(sum)) : 1.0f;
  for (float& c : x) c *= f;
  return x;
}

void add(float* to, const Vector& x, float weight) {
  for (size_t c = 0; c < x.size(); ++c) to[c] += weight * x[c];
}

// Directions that the keys and the queries of a kv head share, and how strong they are. Attention as real heads have
// it: the first keys attract every query, near tokens attract each other, a few keys far away matter to a few queries,
// all on top of an offset common to all keys (what smoothing removes).
struct Model {
  static constexpr int topics = 6;
  Vector offset, sink, walk[2], topic[topics];
  float sink_pull, local_pull, topic_pull, noise;
  int64_t period;  // tokens between heavy hitters, about

  Model(uint64_t seed, int64_t b, int64_t h, int64_t d) {
    Random random(seed, direction_stream, static_cast<uint64_t>(b), static_cast<uint64_t>(h));
    offset = random_vector(random, d);
    sink = unit_vector(random, d);
    for (Vector& w : walk) w = unit_vector(random, d);
    for (Vector& t : topic) t = unit_vector(random, d);
    const float root = std::sqrt(std::sqrt(static_cast<float>(d)));  // scores are divided by root^2
    sink_pull = root * (1.5f + 1.5f * random.uniform());
    local_pull = root * (1.0f + 1.5f * random.uniform());
    topic_pull = root * (1.5f + 1.5f * random.uniform());
    noise = 0.3f + 0.6f * random.uniform();
    period = random.between(20, 200);
  }

  // Position on a slow circle: tokens nearer than a hundred or so point the same way.
  void local(float* x, int64_t position) const {
    const float angle = static_cast<float>(position % 4096) * (6.2831853f / 512.0f);
    add(x, walk[0], local_pull * std::cos(angle));
    add(x, walk[1], local_pull * std::sin(angle));
  }
};

void noise(float* x, int64_t d, Random& random, float weight) {
  for (int64_t c = 0; c < d; ++c) x[c] = weight * random.normal();
}

Vector real_like_keys(const Model& model, Random& random, int64_t tokens, int64_t d) {
  Vector x(static_cast<size_t>(tokens * d));
  for (int64_t j = 0; j < tokens; ++j) {
    float* row = x.data() + j * d;
    noise(row, d, random, model.noise);
    add(row, model.offset, 1.0f);
    if (j < 4) add(row, model.sink, model.sink_pull);
    model.local(row, j);
    if (random.one_in(model.period)) add(row, model.topic[random.below(Model::topics)], 2 * model.topic_pull);
  }
  return x;
}

Vector real_like_queries(const Model& model, Random& random, int64_t tokens, int64_t d, int64_t position) {
  Vector x(static_cast<size_t>(tokens * d));
  int64_t topic = 0, left = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    float* row = x.data() + i * d;
    noise(row, d, random, model.noise);
    add(row, model.offset, 0.3f);
    add(row, model.sink, model.sink_pull);
    model.local(row, position + i);
    if (left == 0 && random.one_in(40)) {  // a stretch of tokens about one topic
      topic = random.below(Model::topics);
      left = random.between(1, 30);
    }
    if (left > 0) {
      add(row, model.topic[topic], model.topic_pull);
      --left;
    }
  }
  return x;
}

float tiny_number(sale_dtype t) { return t == SALE_F16 ? 0x1p-12f : 0x1p-100f; }
float denormal_unit(sale_dtype t) { return t == SALE_F16 ? 0x1p-24f : t == SALE_BF16 ? 0x1p-133f : 0x1p-149f; }
float huge_number(sale_dtype t) { return t == SALE_F16 ? 2e4f : 1e19f; }

void adjust(Data data, Stream stream, sale_dtype type, int64_t d, Random& random, Vector& x) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / d;
  switch (data) {
    case Data::integers:
      for (float& c : x) c = random.below(5) != 0 ? 0.0f : static_cast<float>(random.between(-2, 2));
      break;
    case Data::constant:
      for (float& c : x) c = stream == query_stream ? 0.75f : stream == key_stream ? 1.25f : -2.0f;
      break;
    case Data::zeros:
      for (float& c : x) c = 0;
      break;
    case Data::zero_rows:
      for (int64_t i = 0; i < tokens; i += 3)
        for (int64_t c = 0; c < d; ++c) x[static_cast<size_t>(i * d + c)] = 0;
      break;
    case Data::outlier:
      for (int64_t i = 0; i < tokens; ++i)
        if (random.one_in(50)) x[static_cast<size_t>(i * d + random.below(d))] *= 100;
      break;
    case Data::large:
      if (stream == query_stream)
        for (float& c : x) c *= 10;
      break;
    case Data::tiny:
      for (float& c : x) c *= tiny_number(type);
      break;
    case Data::denormal:
      for (float& c : x) c = static_cast<float>(random.between(-100, 100)) * denormal_unit(type);
      break;
    case Data::huge:
      if (stream != value_stream)
        for (float& c : x) c *= huge_number(type) * 0.25f;
      break;
    default: break;
  }
}

bool poisons(Data data, Stream stream, float& value) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const bool q = stream == query_stream, k = stream == key_stream, v = stream == value_stream;
  const bool is_nan = (data == Data::nan_q && q) || (data == Data::nan_k && k) || (data == Data::nan_v && v);
  const bool is_inf = (data == Data::inf_q && q) || (data == Data::inf_k && k) || (data == Data::inf_v && v);
  value = is_nan ? nan : inf;
  return is_nan || is_inf;
}

Vector make_head(const Case& c, Stream stream, int64_t b, int64_t h, const Model& model, const Sequence& s) {
  const int64_t d = c.head_dim, tokens = stream == query_stream ? s.q_len : s.k_len;
  Random random(c.seed, stream, static_cast<uint64_t>(b), static_cast<uint64_t>(h));
  Vector x;
  if (c.data == Data::normal || stream == value_stream) {
    x.resize(static_cast<size_t>(tokens * d));
    for (float& e : x) e = random.normal();
  } else if (stream == query_stream) {
    x = real_like_queries(model, random, tokens, d, s.q_offset % 4096);
  } else {
    x = real_like_keys(model, random, tokens, d);
  }
  adjust(c.data, stream, c.dtype, d, random, x);
  float value;
  if (poisons(c.data, stream, value)) {
    Random where(c.seed, poison_stream + 16 * stream, static_cast<uint64_t>(b), static_cast<uint64_t>(h));
    for (int64_t n = where.between(1, 3); n > 0; --n)
      x[static_cast<size_t>(where.below(tokens) * d + where.below(d))] = where.one_in(2) ? -value : value;
  }
  return x;
}

}  // namespace

void fill(Instance& instance) {
  const Case& c = instance.c;
  const int64_t group = c.kv_heads > 0 && c.q_heads >= c.kv_heads ? c.q_heads / c.kv_heads : 1;
  const int64_t heads = c.kv_heads + c.q_heads, jobs = c.batch * heads;
  const auto fill_head = [&](int64_t job) {
    const int64_t b = job / heads, h = job % heads, q = h - c.kv_heads;
    const Sequence& s = instance.sequences[static_cast<size_t>(b)];
    const Model model(c.seed, b, q < 0 ? h : q / group, c.head_dim);
    if (q >= 0) return instance.q.set_head(b, q, make_head(c, query_stream, b, q, model, s));
    instance.k.set_head(b, h, make_head(c, key_stream, b, h, model, s));
    instance.v.set_head(b, h, make_head(c, value_stream, b, h, model, s));
  };
  // Threads only where there is much to fill: most cases are small, and many.
  const bool much = instance.q.memory->size() > (size_t{64} << 20);
  std::vector<std::thread> threads(much ? std::max(1u, std::thread::hardware_concurrency()) - 1 : 0);
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t job = next++; job < jobs; job = next++) fill_head(job);
  };
  for (std::thread& t : threads) t = std::thread(work);
  work();
  for (std::thread& t : threads) t.join();
}

// Columns orthonormal per kv head, by Gram-Schmidt on random vectors.
std::vector<float> random_projections(uint64_t seed, int32_t kv_heads, int32_t head_dim, int32_t rank) {
  Vector all;
  all.reserve(static_cast<size_t>(int64_t{kv_heads} * head_dim * rank));
  for (int32_t h = 0; h < kv_heads; ++h) {
    Random random(seed, projection_stream, 0, static_cast<uint64_t>(h));
    std::vector<Vector> columns;
    while (columns.size() < static_cast<size_t>(rank)) {
      Vector x = unit_vector(random, head_dim);
      for (const Vector& y : columns) {
        float dot = 0;
        for (size_t c = 0; c < x.size(); ++c) dot += x[c] * y[c];
        add(x.data(), y, -dot);
      }
      float sum = 0;
      for (float e : x) sum += e * e;
      if (sum < 1e-6f) continue;
      for (float& e : x) e /= std::sqrt(sum);
      columns.push_back(std::move(x));
    }
    for (int32_t a = 0; a < head_dim; ++a)
      for (const Vector& y : columns) all.push_back(y[static_cast<size_t>(a)]);
  }
  return all;
}

}  // namespace sale_case
