#include "calibration/calibrator.hpp"

#include <algorithm>
#include <cmath>

#include "calibration/numbers.hpp"
#include "core/machine.hpp"

namespace sale::calibration {
namespace {

constexpr int64_t fewest_tokens = 512;
constexpr float without_goals = 0.004f;

// What a progress file must have been made with.
Json settings_of(const Request& r) {
  const Setup& s = r.setup;
  Json goals = Json::array();
  for (const sale_goal& g : r.goals) goals.push_back({static_cast<int>(g.kind), g.value});
  const auto mark = [](const std::vector<float>& v) {
    return hex64(fingerprint({reinterpret_cast<const char*>(v.data()), v.size() * sizeof(float)}));
  };
  return {{"library", sale_version()},
          {"command", r.command},
          {"model", hex64(r.fingerprint)},
          {"shape", {s.shape.layers, s.shape.q_heads, s.shape.kv_heads, s.shape.head_dim}},
          {"dtype", static_cast<int>(s.shape.dtype)},
          {"device", s.device},
          {"backend", s.backend},
          {"estimator", {format_name(s.format), s.rank}},
          {"projections", mark(s.k_projections)},
          {"blocks", {s.sink, s.local, s.dense_below}},
          {"goals", goals},
          {"prompts", r.prompts},
          {"rows", r.sampling.rows},
          {"seed", r.sampling.seed},
          {"local_heads", r.local_heads},
          {"smoothing", r.smoothing},
          {"compensate", r.sampling.compensate}};
}

std::string words_of(const sale_goal& g) {
  switch (g.kind) {
    case SALE_GOAL_BUDGET: return text("budget ", g.value, " for the whole model");
    case SALE_GOAL_ERROR: return text("error of every head at most ", g.value);
    case SALE_GOAL_TIME: return text("attention in ", g.value, " of the dense time");
    case SALE_GOAL_PAPER: return text("L1 error per token at most ", g.value, ", as the paper does it");
  }
  return {};
}

// Elements from the first to behind the last.
int64_t extent(const sale_strides& s, int64_t heads, int64_t tokens, int64_t dim) {
  return (heads - 1) * s.head + (tokens - 1) * s.token + dim;
}

constexpr Journal::Words progress_words{"progress", "a calibrator's progress",
                                        [](const std::string& message) { refuse(message); }};

void check_tensor(const char* name, const void* data, const sale_strides& s, int32_t dim) {
  require(data != nullptr, "layer.", name, ": null");
  constexpr int64_t most = int64_t{1} << 40;
  require(s.token >= dim && s.token <= most && s.head >= 0 && s.head <= most, "layer.", name, "_strides: head ", s.head,
          ", token ", s.token, "; a token takes at least ", dim, " elements");
}

}  // namespace

Calibrator::Calibrator(Request request) : request_(std::move(request)) {
  const Setup& s = request_.setup;
  pool_ = shared_pool(s.threads == 0 ? machine().cpus : s.threads);
  if (request_.projects() || request_.smoothing) {
    passes_ = {SALE_PASS_PROJECT};
    moments_ = std::make_unique<Moments>(s.shape);
    Setup all = s;  // whether anything can run it is better known now
    if (request_.projects()) all.rank = s.shape.head_dim;
    const Stage tried(all, std::max(s.dense_below, fewest_tokens));
  } else {
    stage_ = std::make_unique<Stage>(s, std::max(s.dense_below, fewest_tokens));
  }
  for (const sale_goal& g : request_.goals) goals_.push_back({words_of(g), g.value, {}, {}, 0});
  if (!goals_.empty()) passes_.insert(passes_.end(), {SALE_PASS_MEASURE, SALE_PASS_CHECK});
  if (goals_.empty()) goals_.push_back({"projections alone", 0, std::vector<float>(heads(), without_goals), {}, 0});
  if (request_.paper()) halved_.assign(heads(), halving_first);
  if (request_.progress.empty()) return;
  journal_ = Journal(request_.progress, progress_words, settings_of(request_));
  try {
    for (const Json& line : journal_.lines()) absorb(line), ++resumed_;
  } catch (const Json::exception&) {
    refuse("progress: ", request_.progress, " is not a file of a calibrator's progress");
  } catch (const std::logic_error&) {  // digits that are none
    refuse("progress: ", request_.progress, " is not a file of a calibrator's progress");
  }
}

size_t Calibrator::heads() const {
  return static_cast<size_t>(request_.setup.shape.layers) * static_cast<size_t>(request_.setup.shape.q_heads);
}

Tries Calibrator::tries() const {
  if (pass() == SALE_PASS_MEASURE) return ladder(heads(), request_.local_heads);
  Tries tries;
  for (const Goal& g : goals_) tries.push_back(g.thresholds);
  return tries;
}

// ---- prompts -------------------------------------------------------------------------------------------------------

void Calibrator::begin(std::string text, int64_t tokens) {
  require(pass() != SALE_PASS_DONE, "begin: all passes are done");
  require(!prompt_, "begin: the prompt before was neither ended nor cancelled");
  const int64_t least = std::max(fewest_tokens, request_.setup.dense_below);
  require(tokens >= least, "tokens: ", tokens, " are too few rows; at least ", least,
          " are needed, since shorter prompts run dense");
  require(tokens <= int64_t{1} << 31, "tokens: ", tokens, " is not in ", least, " .. 2^31");
  require(text.size() <= 1000, "text: has ", text.size(), " bytes; 1000 are allowed");
  const auto layers = static_cast<size_t>(request_.setup.shape.layers);
  Prompt p;
  p.text = {std::move(text), tokens};
  p.seen.assign(layers, 0), p.rows.assign(layers, 0), p.queries.resize(layers);
  if (pass() == SALE_PASS_PROJECT)
    p.moments = std::make_unique<Moments>(request_.setup.shape);
  else if (pass() == SALE_PASS_MEASURE && request_.paper())
    p.halved = halved_;
  else
    p.measured = Measured(tries().size(), heads());
  p.measured.prompts = 1;
  prompt_ = std::make_unique<Prompt>(std::move(p));
}

void Calibrator::asks(std::span<const int64_t> rows) {
  require(prompt_ != nullptr, "rows: no prompt was begun");
  require(std::all_of(prompt_->rows.begin(), prompt_->rows.end(), [](int64_t fed) { return fed == 0; }),
          "rows: they are said before the prompt is fed");
  require(rows.size() <= static_cast<size_t>(prompt_->text.tokens), "rows: ", rows.size(), " of a prompt of ",
          prompt_->text.tokens, " tokens");
  for (size_t i = 0; i < rows.size(); ++i)
    require(rows[i] >= (i == 0 ? 0 : rows[i - 1] + 1) && rows[i] < prompt_->text.tokens, "rows: element ", i, " is ",
            rows[i], "; they ascend, and the prompt has ", prompt_->text.tokens, " tokens");
  // As many as are sampled of the text, evenly spread.
  const size_t most = static_cast<size_t>(request_.sampling.rows), taken = std::min(most, rows.size());
  prompt_->asking.clear();
  for (size_t i = 0; i < taken; ++i) prompt_->asking.push_back(rows[i * rows.size() / taken]);
}

void Calibrator::check_feed(const sale_calibrator_layer& l) const {
  require(prompt_ != nullptr, "feed: no prompt was begun");
  const Shape& s = request_.setup.shape;
  require(l.layer >= 0 && l.layer < s.layers, "layer.layer: ", l.layer, " is not in 0 .. ", s.layers - 1);
  require(l.device == SALE_HOST || l.device == request_.setup.device, "layer.device: ", l.device,
          " is neither SALE_HOST nor the calibrator's device, ", request_.setup.device);
  const auto number = static_cast<size_t>(l.layer);
  const int64_t rows = prompt_->rows[number], tokens = prompt_->text.tokens;
  require(prompt_->seen[number] == 0, "layer.layer: ", l.layer, " was fed already");
  require(l.q_len >= 1 && l.k_len <= tokens && l.k_len - l.q_len == rows, "layer.q_len, k_len: ", l.q_len, " and ",
          l.k_len, " at layer ", l.layer, " of a prompt of ", tokens, " tokens, of which ", rows,
          " were fed; the next rows, and the keys up to the last of them, are needed");
  check_tensor("q", l.q, l.q_strides, s.head_dim);
  check_tensor("k", l.k, l.k_strides, s.head_dim);
  check_tensor("v", l.v, l.v_strides, s.head_dim);
  require(std::isfinite(l.scale) && l.scale >= 0, "layer.scale: ", l.scale, " is not finite, or below 0");
}

Layer Calibrator::host_view(const sale_calibrator_layer& l) {
  const Shape& s = request_.setup.shape;
  const float scale = l.scale == 0 ? 1 / std::sqrt(static_cast<float>(s.head_dim)) : l.scale;
  Layer host{s, l.layer, l.k_len, scale, {l.q, l.q_strides}, {l.k, l.k_strides}, {l.v, l.v_strides}};
  if (l.device == SALE_HOST) return host;
  if (!stage_) stage_ = std::make_unique<Stage>(request_.setup, l.k_len);
  const struct {
    Tensor& tensor;
    int32_t heads;
    int64_t tokens;
  } tensors[] = {{host.q, s.q_heads, l.q_len}, {host.k, s.kv_heads, l.k_len}, {host.v, s.kv_heads, l.k_len}};
  for (size_t i = 0; i < 3; ++i) {
    const auto& [tensor, n, tokens] = tensors[i];
    fed_[i].resize(static_cast<size_t>(extent(tensor.strides, n, tokens, s.head_dim)) * bytes_of(s.dtype));
    stage_->memory().read(fed_[i].data(), tensor.data, fed_[i].size());
    tensor.data = fed_[i].data();
  }
  return host;
}

// Queries of a part, put beside those before.
void Calibrator::keep_part(const sale_calibrator_layer& l, const Layer& host) {
  const Shape& s = request_.setup.shape;
  const auto number = static_cast<size_t>(l.layer);
  const size_t element = bytes_of(s.dtype), row = static_cast<size_t>(s.head_dim) * element;
  const auto tokens = static_cast<size_t>(prompt_->text.tokens);
  std::vector<std::byte>& to = prompt_->queries[number];
  to.resize(static_cast<size_t>(s.q_heads) * tokens * row);
  for (int64_t h = 0; h < s.q_heads; ++h)
    for (int64_t i = 0; i < l.q_len; ++i)
      std::copy_n(
          static_cast<const std::byte*>(host.q.data) +
              static_cast<size_t>(h * host.q.strides.head + i * host.q.strides.token) * element,
          row,
          to.begin() + static_cast<ptrdiff_t>(
                           (static_cast<size_t>(h) * tokens + static_cast<size_t>(prompt_->rows[number] + i)) * row));
}

void Calibrator::feed(const sale_calibrator_layer& l) {
  check_feed(l);
  const Shape& s = request_.setup.shape;
  const auto number = static_cast<size_t>(l.layer);
  Layer host = host_view(l);
  const bool whole = l.q_len == prompt_->text.tokens;
  if (!whole) keep_part(l, host);
  if (l.k_len == prompt_->text.tokens) {
    if (!whole) host.q = {prompt_->queries[number].data(), {0, l.k_len * s.head_dim, s.head_dim}};
    Layer there = host;
    there.q = {l.q, l.q_strides}, there.k = {l.k, l.k_strides}, there.v = {l.v, l.v_strides};
    look(host, l.device != SALE_HOST && whole ? &there : nullptr);
    prompt_->seen[number] = 1;
    std::vector<std::byte>().swap(prompt_->queries[number]);
  }
  prompt_->rows[number] = l.k_len;
}

void Calibrator::look(const Layer& host, const Layer* at) {
  if (pass() == SALE_PASS_PROJECT) return prompt_->moments->see(host, *pool_);
  if (!stage_) stage_ = std::make_unique<Stage>(request_.setup, host.tokens);
  stage_->place(host, at);
  if (pass() == SALE_PASS_MEASURE && request_.paper())
    return halve(host, *stage_, request_.goals[0].value, *pool_, prompt_->halved);
  Sampling sampling = request_.sampling;
  sampling.cost = pass() == SALE_PASS_MEASURE;
  sampling.asking = prompt_->asking;
  sweep(host, *stage_, tries(), sampling, *pool_, prompt_->measured);
}

void Calibrator::end() {
  require(prompt_ != nullptr, "end: no prompt was begun");
  for (size_t i = 0; i < prompt_->seen.size(); ++i)
    require(prompt_->seen[i] != 0, "end: layer ", i, " was ", prompt_->rows[i] == 0 ? "not fed" : "fed in part",
            "; every layer of the prompt is needed");
  const Json line = line_of(*prompt_);
  journal_.add(line);
  prompt_.reset();
  absorb(line);
}

// ---- passes --------------------------------------------------------------------------------------------------------

Json Calibrator::line_of(const Prompt& p) const {
  Json line{{"pass", static_cast<int>(pass())}, {"text", p.text.text}, {"tokens", p.text.tokens}};
  if (pass() == SALE_PASS_PROJECT)
    line["moments"] = p.moments->json();
  else if (pass() == SALE_PASS_MEASURE && request_.paper())
    line["thresholds"] = p.halved;
  else
    line["measured"] = p.measured.json();
  return line;
}

// One finished prompt, of now or of the progress file.
void Calibrator::absorb(const Json& line) {
  require(pass() != SALE_PASS_DONE && line.at("pass") == static_cast<int>(pass()), "progress: a prompt of pass ",
          line.at("pass").dump(), ", where one of pass ", static_cast<int>(pass()), " is expected");
  if (pass() == SALE_PASS_PROJECT) {
    moments_->add(Moments::of(request_.setup.shape, line.at("moments")));
  } else if (pass() == SALE_PASS_MEASURE && request_.paper()) {
    line.at("thresholds").get_to(halved_);
    require(halved_.size() == heads(), "progress: ", halved_.size(), " thresholds; it is not of this model");
  } else {
    const Measured m = Measured::from(line.at("measured"));
    require(m.of.size() == tries().size() &&
                std::all_of(m.of.begin(), m.of.end(), [&](const Points& p) { return p.size() == heads(); }),
            "progress: figures of ", m.of.size(), " tries; it is not of this model");
    (pass() == SALE_PASS_CHECK ? checked_ : measured_).add(m);
  }
  if (pass() != SALE_PASS_CHECK && (at_ == 0 || pass() == SALE_PASS_MEASURE)) {
    if (finished_ == 0) texts_.clear();  // what thresholds were made from, rather than projections
    texts_.push_back({line.at("text"), line.at("tokens")});
  }
  if (++finished_ < request_.prompts) return;
  finish_pass();
  ++at_, finished_ = 0;
}

void Calibrator::finish_pass() {
  Setup& s = request_.setup;
  if (pass() == SALE_PASS_PROJECT) {
    const bool projects = request_.projects();
    for (int32_t layer = 0; projects && layer < s.shape.layers; ++layer)
      left_out_.push_back(moments_->projections(layer, s.rank, s.q_projections, s.k_projections));
    for (int32_t layer = 0; request_.smoothing && layer < s.shape.layers; ++layer) {
      moments_->smoothing(layer, s.smoothing);
      if (s.format == SALE_FP8) moments_->scales(layer, s.rank, s.k_projections, s.scales);
    }
    stage_.reset();
  } else if (pass() == SALE_PASS_MEASURE) {
    choose();
  } else {
    take_check();
  }
}

void Calibrator::choose() {
  if (request_.paper()) {
    goals_[0].thresholds = halved_;
    return;
  }
  const Allocation allocation(measured_);
  for (size_t i = 0; i < goals_.size(); ++i) {
    const sale_goal& g = request_.goals[i];
    goals_[i].thresholds = g.kind == SALE_GOAL_BUDGET  ? allocation.within_budget(g.value)
                           : g.kind == SALE_GOAL_ERROR ? allocation.each_within(g.value)
                                                       : allocation.within_time(g.value);
  }
}

void Calibrator::take_check() {
  for (size_t i = 0; i < goals_.size(); ++i)
    for (const Point& p : checked_.of[i]) {
      goals_[i].heads.push_back({p.error, p.relative, std::min(1.0, p.mass / checked_.prompts), p.kept, p.visible});
      goals_[i].kept += static_cast<double>(p.kept);
    }
}

// ---- what was found ------------------------------------------------------------------------------------------------

sale_calibrator_state Calibrator::state() const {
  sale_calibrator_state s{};
  const int32_t layers = request_.setup.shape.layers;
  s.pass = pass(), s.prompt = finished_, s.prompts = s.pass == SALE_PASS_DONE ? 0 : request_.prompts;
  s.layers = layers, s.resumed = resumed_;
  if (prompt_) s.layer = static_cast<int32_t>(std::count(prompt_->seen.begin(), prompt_->seen.end(), 1));
  const double prompts =
      static_cast<double>(at_) * request_.prompts + finished_ + static_cast<double>(s.layer) / layers;
  s.done = prompts / (static_cast<double>(passes_.size()) * request_.prompts);
  return s;
}

const Calibrator::Goal& Calibrator::goal_at(int64_t goal) const {
  require(pass() == SALE_PASS_DONE, "result: there is none before all passes are done");
  require(goal >= 0 && goal < static_cast<int64_t>(goals_.size()), "goal: ", goal, " is not in 0 .. ",
          goals_.size() - 1);
  return goals_[static_cast<size_t>(goal)];
}

Contents Calibrator::result(int64_t goal) const {
  const Goal& g = goal_at(goal);
  const Setup& s = request_.setup;
  Contents c;
  c.library = sale_version(), c.name = request_.model;
  c.layers = s.shape.layers, c.q_heads = s.shape.q_heads, c.kv_heads = s.shape.kv_heads, c.head_dim = s.shape.head_dim;
  c.fingerprint = request_.fingerprint, c.format = s.format, c.rank = s.rank, c.sink = s.sink, c.local = s.local;
  c.dense_below = s.dense_below, c.thresholds = g.thresholds;
  c.q_projections = s.q_projections, c.k_projections = s.k_projections;
  c.smoothing = s.smoothing, c.scales = s.scales;
  c.prompts = texts_, c.command = request_.command, c.date = request_.date, c.note = request_.note;
  c.relative_l1_limit = g.limit;
  if (g.heads.empty()) return c;
  c.density = c.relative_l1 = c.retained_mass = 0;
  int64_t kept = 0, visible = 0;
  const auto n = static_cast<double>(g.heads.size());
  for (const sale_calibrator_head& h : g.heads) {
    kept += h.kept_blocks, visible += h.visible_blocks;
    c.relative_l1 += h.relative / n, c.retained_mass += h.mass / n;
  }
  c.retained_mass = std::min(1.0, c.retained_mass);
  c.density = visible > 0 ? static_cast<double>(kept) / static_cast<double>(visible) : 1;
  return c;
}

sale_calibrator_findings Calibrator::findings(int64_t goal) const {
  const Goal& g = goal_at(goal);
  sale_calibrator_findings f{};
  f.goal = g.words.c_str();
  f.heads = g.heads.empty() ? nullptr : g.heads.data();
  f.left_out = left_out_.empty() ? nullptr : left_out_.data();
  if (measured_.of.empty()) return f;
  const Allocation allocation(measured_);
  f.attention_s = allocation.seconds(g.kept), f.dense_attention_s = allocation.dense_seconds();
  f.seconds_per_block = allocation.cost().per_block();
  return f;
}

}  // namespace sale::calibration
