// One layer of one prompt, measured while the model runs densely, so that every layer sees what it would see.
#pragma once

#include "calibration/layer.hpp"
#include "calibration/measured.hpp"
#include "calibration/stage.hpp"
#include "cpu/thread_pool.hpp"

namespace sale::calibration {

struct Sampling {
  int32_t rows = 48;  // of every head
  uint64_t seed = 1;
  bool compensate = false;
  bool cost = false;                 // attention itself is run too, at every fourth try
  std::vector<int64_t> asking = {};  // rows whose error is taken by itself; the larger one counts
};

// Each try at the layer that the stage holds; the figures go into `to` once all are there.
void sweep(const Layer& layer, Stage& stage, const Tries& tries, const Sampling& sampling, ThreadPool& pool,
           Measured& to);

// The paper's procedure: a head whose L1 error per token passes theta has its threshold halved until it does not; below
// 0.0001 it becomes 0. thresholds: [layers * q_heads]; they go from prompt to prompt, so the worst of them counts.
constexpr float halving_first = 0.008f, halving_least = 0.0001f;
void halve(const Layer& layer, Stage& stage, double theta, ThreadPool& pool, std::vector<float>& thresholds);

}  // namespace sale::calibration
