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
void refused(const std::string& what, sale_status got, sale_status expected, const std::string& named);
int64_t refusals();  // distinct ones so far

// For calls that are right: a failure ends the program with its message.
void must(sale_status status);

struct Good {
  // batch 2, 4 query heads on 2 kv heads, 100 queries, 150 keys, bf16
  explicit Good(const std::string& more = "");
  std::unique_ptr<sale_case::Instance> in;
  sale_problem problem;
  sale_layer layer;
  sale_options options;
  std::vector<float> taus;
  std::vector<int64_t> lens, offsets, starts;

  // Of problem and layer.
  void heads(int32_t q_heads, int32_t kv_heads, int32_t head_dim);

  // Of what is above as it is now; destroyed with this.
  sale_estimator* estimator() const;
  sale_plan* plan(const sale_estimator* estimator, bool with_index = false) const;
  sale_plan* plan(bool with_index = false) const { return plan(estimator(), with_index); }
  sale_index* index(int64_t b) const;  // of sequence b's keys
  sale_blocks* blocks(const sale_plan* plan) const;
  // For a plan of one estimator; the caller destroys it.
  sale_status make_plan(const sale_estimator* estimator, sale_plan** plan, bool with_index = false) const;
  sale_status make_index(int64_t capacity, sale_index** index, int32_t page_size = 0) const;

private:
  mutable std::vector<std::shared_ptr<void>> owned_;
};

sale_workspace workspace_of(const sale_plan* plan);
sale_index_options index_options(int64_t capacity);
sale_backend_facts facts_of(int32_t backend);
// The last of the list: it runs on any CPU.
const char* last_backend();

inline int64_t huge() { return (int64_t{1} << 31) + 1; }

template <class T>
T* shifted(T* p, std::ptrdiff_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
}

// The arguments of a call, and outputs that show any touch.
struct Arguments {
  explicit Arguments(const Good& good, bool with_index = false);
  const sale_estimator* estimator;
  const sale_plan* plan;
  std::vector<const sale_index*> list;
  std::unique_ptr<sale_case::Memory> space;
  sale_stats stats{};
  sale_call call;

  sale_status run() { return sale_run(plan, estimator, &call); }
  sale_status select() { return sale_select(plan, estimator, &call); }
  sale_status attend() { return sale_attend(plan, estimator, &call); }
  bool untouched(const Good& good) const;
};

}  // namespace sale_contract
