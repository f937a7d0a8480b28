// One small problem that is right, and what it takes to see that a refusal leaves everything as it was.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "case/instance.hpp"

namespace sale_contract {

// Every refusal goes through here: status, a message that names the argument, and the number of them.
void refused(const char* what, sale_status got, sale_status expected, const std::string& named);
int64_t refusals();  // distinct ones so far

// For calls that are right: a failure ends the program with its message.
void must(sale_status status);

struct Good {
  // batch 2, 4 query heads on 2 kv heads, 100 queries, 150 keys, bf16
  explicit Good(const std::string& more = "");
  std::unique_ptr<sale_case::Instance> in;
  sale_problem problem;
  sale_options options;
  std::vector<float> taus;
  std::vector<int64_t> lens, offsets, starts;

  sale_plan* plan(bool with_index = false) const;  // destroyed with this
  sale_index* index(int64_t b) const;              // of sequence b's keys
  sale_blocks* blocks(const sale_plan* plan) const;

private:
  mutable std::vector<std::shared_ptr<void>> owned_;
};

inline int64_t huge() { return (int64_t{1} << 31) + 1; }

// The arguments of a run, and outputs that show any touch.
struct Arguments {
  explicit Arguments(const Good& good, bool with_index = false);
  const sale_plan* plan;
  const void *q, *k, *v;
  void* out;
  float* lse;
  std::vector<const sale_index*> list;
  const sale_index* const* indexes = nullptr;
  sale_blocks* blocks;
  std::unique_ptr<sale_case::Memory> space;
  void* workspace;
  size_t bytes;
  sale_stats stats{};
  void* stream = nullptr;

  sale_status run();
  sale_status select();
  sale_status attend();
  bool untouched(const Good& good) const;
};

}  // namespace sale_contract
