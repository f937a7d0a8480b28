// A backend is a value: a name, reasons, and the stages. One ordered list, fastest first.
//
// Core checks and splits the work; a backend gets plain structs and does one item at a time. Nothing here allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/machine.hpp"
#include "sale/sale.h"

namespace sale {

struct Plan;

// The low-bit side of one kv head: codes [keys rounded up to 32, rank], scales [blocks, groups], smoothing [head_dim].
struct IndexView {
  int8_t* codes;
  float* scales;
  const float* smoothing;
};

// One kv head of one sequence and the query heads that share it. Pointers are at the sequence's first token and the
// group's first head; strides in elements, head_dim contiguous.
struct HeadGroup {
  const void *q, *k, *v;
  void* out;
  float* lse;  // or null; row r of head g at lse[g * lse_head + r]
  int64_t q_token, q_head, k_token, v_token, out_token, out_head, lse_head;
  int64_t q_len, k_len, q_offset;
  const float* thresholds;  // [group]; 0: dense head
  bool dense;               // every head dense
  uint64_t* bits;           // head g at bits + g * head_words
  int64_t head_words;
  const int64_t* row_word;  // [tiles]
  IndexView index;
  const float *q_projection, *k_projection;  // [head_dim, rank] or null
  const float* q_mean;                       // [group, head_dim]: smoothing of the queries, or null
  const float* k_mean;                       // [head_dim]: smoothing of K for 8-bit products, or null
};

struct Backend {
  const char* name;
  const char* summary;
  std::string (*why_not_machine)(const Machine&);
  // Beyond the machine: shapes and types. Called with a problem that core has already checked.
  std::string (*why_not)(const sale_problem&, const sale_options&);
  size_t (*scratch_bytes)(const Plan&);
  // Query tiles worked on together; more of them share the repacking of keys and values.
  int64_t (*tiles_per_item)(const Plan&);
  // Codes of the key blocks [block_begin, block_end) of one head; keys from k_len on are absent.
  void (*index)(const Plan*, const HeadGroup&, sale_dtype, int32_t head_dim, int32_t rank, sale_format,
                int64_t block_begin, int64_t block_end);
  void (*select)(const Plan&, const HeadGroup&, int64_t tile_begin, int64_t tile_end, void* scratch);
  void (*attend)(const Plan&, const HeadGroup&, int64_t tile_begin, int64_t tile_end, void* scratch);
};

extern const Backend portable_backend, avx2_backend, avx512_backend, amx_backend;

int backend_count();
const Backend& backend(int i);

// The backend for this problem: the one asked for by option or SALE_BACKEND, else the first of the list that can.
// Appends to `notes` why those before it could not. Throws Failure with all names and reasons.
const Backend& choose_backend(const sale_problem& p, const sale_options& o, std::string& notes);

}  // namespace sale
