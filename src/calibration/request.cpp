// What a calibrator is asked for, checked.
#include <chrono>
#include <cmath>

#include "calibration/calibrator.hpp"
#include "calibration/structs.hpp"

namespace sale::calibration {
namespace {

void check_range(const char* name, int64_t n, int64_t least, int64_t most) {
  require(n >= least && n <= most, "options.", name, ": ", n, " is not in ", least, " .. ", most);
}

Shape shape_of(const sale_model& m, sale_dtype dtype) {
  check_range("model.layers", m.layers, 1, 4096);
  check_range("model.q_heads", m.q_heads, 1, 65536);
  check_range("model.kv_heads", m.kv_heads, 1, m.q_heads);
  check_range("model.head_dim", m.head_dim, 16, 256);
  require(m.q_heads % m.kv_heads == 0, "options.model.kv_heads: ", m.kv_heads, " is no divisor of q_heads, ",
          m.q_heads);
  require(m.head_dim % 16 == 0, "options.model.head_dim: ", m.head_dim, " is not a multiple of 16");
  require(dtype == SALE_F32 || dtype == SALE_F16 || dtype == SALE_BF16, "options.dtype: ", static_cast<int>(dtype),
          " is not SALE_F32, SALE_F16 or SALE_BF16");
  return {m.layers, m.q_heads, m.kv_heads, m.head_dim, dtype};
}

void check_goal(const sale_goal& g, int64_t i, int64_t n) {
  const std::string name = text("options.goals[", i, "]");
  require(g.kind >= SALE_GOAL_BUDGET && g.kind <= SALE_GOAL_PAPER, name, ".kind: ", static_cast<int>(g.kind),
          " is not one of sale_goal_kind");
  if (g.kind == SALE_GOAL_PAPER) {
    require(n == 1, name, ": the paper's procedure is a goal on its own; there are ", n);
    require(std::isfinite(g.value) && g.value > 0, name, ".value: ", g.value, " is not above 0");
  } else {
    require(g.value >= 0 && g.value <= 1, name, ".value: ", g.value, " is not in 0 .. 1");
  }
}

void take_projections(const sale_calibrator_options& o, Setup& s) {
  require((o.q_projections == nullptr) == (o.k_projections == nullptr),
          "options.q_projections, k_projections: one is given without the other");
  if (o.q_projections == nullptr) return;
  require(s.rank < s.shape.head_dim, "options.q_projections: given, but rank ", s.rank, " is all coordinates");
  const size_t n = static_cast<size_t>(s.shape.layers) * static_cast<size_t>(s.shape.kv_heads) *
                   static_cast<size_t>(s.shape.head_dim) * static_cast<size_t>(s.rank);
  s.q_projections.assign(o.q_projections, o.q_projections + n);
  s.k_projections.assign(o.k_projections, o.k_projections + n);
  for (size_t i = 0; i < n; ++i)
    require(std::fabs(s.q_projections[i]) <= 1e6f && std::fabs(s.k_projections[i]) <= 1e6f,
            "options.q_projections, k_projections: a number at ", i, " is not in -1e6 .. 1e6");
}

std::string words(const char* given) { return given == nullptr ? "" : given; }

// Of the file that is to be written: better refused now than then.
std::string short_words(const char* name, const char* given, size_t longest) {
  std::string text_given = words(given);
  require(text_given.size() <= longest, "options.", name, ": has ", text_given.size(), " bytes; ", longest,
          " are allowed");
  return text_given;
}

std::string today() {
  const std::chrono::year_month_day d(std::chrono::floor<std::chrono::days>(std::chrono::system_clock::now()));
  char name[40];
  std::snprintf(name, sizeof name, "%04d-%02u-%02u", static_cast<int>(d.year()), static_cast<unsigned>(d.month()),
                static_cast<unsigned>(d.day()));
  return name;
}

}  // namespace

Request request_of(const sale_calibrator_options& o) {
  const sale_model model = taken(o.model, "options.model");
  Request r;
  Setup& s = r.setup;
  s.shape = shape_of(model, o.dtype);
  r.model = short_words("model.name", model.name, 200), r.fingerprint = model.fingerprint;
  check_range("device", o.device, SALE_HOST, 1023);
  check_range("threads", o.threads, 0, 1024);
  s.device = o.device, s.backend = words(o.backend), s.threads = o.threads;
  require(*format_name(o.format) != 0, "options.format: ", static_cast<int>(o.format),
          " is not SALE_INT4, SALE_FP4, SALE_INT8 or SALE_FP8");
  s.format = o.format, s.rank = o.rank == 0 ? s.shape.head_dim : o.rank;
  check_rank(s.format, s.rank, s.shape.head_dim, "options.rank");
  take_projections(o, s);
  if (o.sink != 0) check_range("sink", o.sink, 32, 256), s.sink = o.sink;
  if (o.local != 0) check_range("local", o.local, 32, 1024), s.local = o.local;
  require(s.sink % 32 == 0 && s.local % 32 == 0, "options.sink, local: ", s.sink, " and ", s.local,
          "; multiples of 32 are needed");
  if (o.dense_below != 0) check_range("dense_below", o.dense_below, 1, int64_t{1} << 40), s.dense_below = o.dense_below;
  check_range("n_goals", o.n_goals, 0, 64);
  require(o.n_goals == 0 || o.goals != nullptr, "options.goals: null, but n_goals is ", o.n_goals);
  for (int64_t i = 0; i < o.n_goals; ++i) check_goal(o.goals[i], i, o.n_goals), r.goals.push_back(o.goals[i]);
  check_range("smoothing", o.smoothing, 0, 1);
  check_range("compensate", o.compensate, 0, 1);
  r.smoothing = o.smoothing != 0, r.sampling.compensate = o.compensate != 0;
  require(!r.sampling.compensate || !r.paper(), "options.compensate: the paper's procedure does not know it");
  require(o.n_goals > 0 || r.projects(), "options.goals: none, and no projections to make either");
  if (o.prompts != 0) check_range("prompts", o.prompts, 1, 1000), r.prompts = o.prompts;
  if (o.rows != 0) check_range("rows", o.rows, 4, 4096), r.sampling.rows = o.rows;
  check_range("local_heads", o.local_heads, 0, 1);
  r.sampling.seed = o.seed, r.local_heads = o.local_heads != 0;
  r.progress = words(o.progress);
  r.command = short_words("command", o.command, 4000), r.note = short_words("note", o.note, 4000);
  r.date = o.date == nullptr ? today() : short_words("date", o.date, 40);
  return r;
}

}  // namespace sale::calibration
