// What a sale_calibrator* points to: prompts, passes, and what was found. The measuring itself is elsewhere: moments,
// sweep, allocation.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "calibration/allocation.hpp"
#include "calibration/contents.hpp"
#include "calibration/journal.hpp"
#include "calibration/moments.hpp"
#include "calibration/stage.hpp"
#include "calibration/sweep.hpp"

namespace sale::calibration {

struct Request {
  Setup setup;
  std::string model;
  uint64_t fingerprint = 0;
  std::vector<sale_goal> goals;
  int32_t prompts = 1;
  Sampling sampling;
  bool local_heads = false;
  bool smoothing = false;  // the layers' own
  std::string progress, command, date, note;

  bool projects() const { return setup.rank < setup.shape.head_dim && setup.q_projections.empty(); }
  bool paper() const { return goals.size() == 1 && goals[0].kind == SALE_GOAL_PAPER; }
};
// Refuses, by the option's name, what cannot be done.
Request request_of(const sale_calibrator_options& options);

class Calibrator {
public:
  explicit Calibrator(Request request);
  Calibrator(const Calibrator&) = delete;
  Calibrator& operator=(const Calibrator&) = delete;

  void begin(std::string text, int64_t tokens);
  void asks(std::span<const int64_t> rows);
  void feed(const sale_calibrator_layer& layer);
  void end();
  void cancel() { prompt_.reset(); }
  sale_calibrator_state state() const;
  Contents result(int64_t goal) const;
  sale_calibrator_findings findings(int64_t goal) const;
  void forget() { journal_.remove(); }

private:
  // A prompt that was begun.
  struct Prompt {
    Contents::Text text;
    std::vector<char> seen;                       // by layer
    std::vector<std::vector<std::byte>> queries;  // by layer, of parts: [q_heads, tokens, head_dim]
    std::vector<int64_t> rows;                    // by layer, of parts
    std::vector<int64_t> asking;                  // rows from which answers are read
    // What the pass is making of it.
    std::unique_ptr<Moments> moments;
    Measured measured;
    std::vector<float> halved;
  };
  struct Goal {
    std::string words;
    double limit = 0;  // for the file
    std::vector<float> thresholds;
    std::vector<sale_calibrator_head> heads;  // as checked
    double kept = 0;
  };

  sale_pass pass() const { return at_ < passes_.size() ? passes_[at_] : SALE_PASS_DONE; }
  size_t heads() const;
  Tries tries() const;
  void check_feed(const sale_calibrator_layer& l) const;
  // The layer in host memory, and where it was fed; copies live in fed_.
  Layer host_view(const sale_calibrator_layer& l);
  void keep_part(const sale_calibrator_layer& l, const Layer& host);
  void look(const Layer& host, const Layer* at);
  Json line_of(const Prompt& prompt) const;
  void absorb(const Json& line);
  void finish_pass();
  void choose();
  void take_check();
  const Goal& goal_at(int64_t goal) const;

  Request request_;
  std::shared_ptr<ThreadPool> pool_;
  std::vector<sale_pass> passes_;
  size_t at_ = 0;         // in passes_
  int32_t finished_ = 0;  // prompts of the pass
  int32_t resumed_ = 0;
  Journal journal_;
  std::unique_ptr<Stage> stage_;
  std::unique_ptr<Prompt> prompt_;
  std::vector<std::byte> fed_[3];

  std::vector<Contents::Text> texts_;  // of the first pass that measures
  std::unique_ptr<Moments> moments_;
  std::vector<double> left_out_;
  Measured measured_, checked_;
  std::vector<float> halved_;
  std::vector<Goal> goals_;
};

}  // namespace sale::calibration
