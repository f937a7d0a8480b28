// The method once, in the notation of docs/numerics.md, in plain loops. Shares no code with src/.
//
// Whatever the page defines to the bit (codes, scales, the thresholds' fixed-point form) is done here in the same f32
// steps; compile with -ffp-contract=off. Everything else is double. One query head of one sequence at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "sale/sale.h"

namespace sale_oracle {

using Floats = std::vector<float>;

constexpr int64_t tile_rows = 64, block_keys = 32;
constexpr int64_t mean_blocks = 8, mean_keys = mean_blocks * block_keys;  // what a pseudo-key is the mean of

// One query head and its kv head: values as f32, [tokens, d].
struct Head {
  int64_t d = 0, q_len = 0, k_len = 0, q_offset = 0;
  Floats q, k, v;
  float scale = 0;
  Floats reference = {};   // of every row, when the keys are a part of a sequence's; else empty
  int64_t window = 0;      // keys that a row sees, its own the last; 0: all
  int64_t kept_sink = 0;   // with a window: first keys that are seen besides
  int64_t rule_rows = 64;  // rows of the tile by which sink and candidates are told, 128 where lists are of such tiles

  int64_t tiles() const { return (q_len + tile_rows - 1) / tile_rows; }
  int64_t last_row(int64_t tile) const;     // of the tile, within q_len
  int64_t visible_keys(int64_t row) const;  // no key from this one on is seen
  int64_t first_key(int64_t row) const;     // and none before this one that is not of the kept sink
  bool sees(int64_t row, int64_t key) const;
  // Whether some row of a tile of so many rows sees something of a block.
  bool sees_block(int64_t tile, int64_t block, int64_t rows = tile_rows) const;
  int64_t visible_blocks(int64_t tile) const;  // no block from this one on is seen
  // First block of the local region of a tile that begins at `row`; of a part of a sequence maybe beyond its keys.
  int64_t first_local(int64_t row, int64_t local) const;
};

struct Estimator {
  sale_format format = SALE_INT8;
  int64_t rank = 0;                                              // coordinates scanned
  const float *q_projection = nullptr, *k_projection = nullptr;  // [d, rank] of this kv head, or null
};

struct Regions {
  int64_t sink = 32, local = 128;
};
// Blocks of a tile that everyone keeps are, of those it sees, the ones outside [first, last); those before `sink` and
// from `last` on are its reference.
struct Span {
  int64_t sink, first, last;
};
Span candidates_of(const Head& h, int64_t tile, int64_t rows, const Regions& r);
// Whether a key that the row sees is one of its reference.
bool is_reference(const Head& h, int64_t row, int64_t key, const Regions& r);

// ---- 1, 2: codes ---------------------------------------------------------------------------------------------------

// Mean of rows [0, rows) in double, ascending, rounded to f32.
Floats mean(const Floats& x, int64_t rows, int64_t d);

// Rows less `shift` (or null), projected by [d, r] (or null), in the order the page gives: [rows, r].
Floats transform(const Floats& x, int64_t rows, int64_t d, const float* shift, const float* projection, int64_t r);

// The same with fused multiply-adds: FP8's keys.
Floats transform_fused(const Floats& x, int64_t rows, int64_t d, const float* shift, const float* projection,
                       int64_t r);

struct Codes {
  std::vector<int8_t> codes;  // [tokens, rank]; FP4: its numbers, in units of the scale
  Floats scales;  // keys: [blocks, 4 or 1]; queries: per tile, or per pair of rows [(tokens / 16) * 8 + r % 8]
};
// FP4's numbers as an index holds them: rows of rank / 2 bytes of codes and a byte of exponent for every 32
// coordinates.
std::vector<int8_t> fp4_rows(const Floats& k, int64_t k_len, int64_t d, const Floats& smoothing, const Estimator& e);
Codes key_codes(const Floats& k, int64_t k_len, int64_t d, const Floats& smoothing, const Estimator& e);
// smoothing: the mean of q for INT4; not used for INT8.
Codes query_codes(const Floats& q, int64_t q_len, int64_t d, const Floats& smoothing, const Estimator& e);

// ---- 3: thresholds -------------------------------------------------------------------------------------------------

// Per row: T_i = m_i + ln(tau l_i) over the reference keys. `exact` from exact scores in double, `defined` the page's
// fixed-point form to the bit.
struct Thresholds {
  std::vector<double> m, l, exact;
  Floats defined;
};
// smoothing: what the smoothed keys lack, for a given reference.
Thresholds thresholds(const Head& h, const Floats& smoothed_keys, const Floats& smoothing, float tau, const Regions& r,
                      bool fixed_point);

// ---- 4: the vote ---------------------------------------------------------------------------------------------------

struct Candidate {
  int32_t block;
  double margin;  // max over pairs of (estimate - T_i), T_i exact; kept when not below 0; +inf when undefined
  double near;    // how far from 0 the definition lets an implementation's decision differ, 2^-10 max(1, |T|)
  bool kept;      // by the definition to the bit
};
struct Tile {
  int64_t visible = 0, first_candidate = 0, last_candidate = 0;  // candidates [first, last); the others are kept
  std::vector<Candidate> candidates;                             // empty for dense heads
  std::vector<int32_t> kept;                                     // by the definition to the bit, ascending
};
// smoothing: of the keys, whoever fixed it.
std::vector<Tile> select(const Head& h, const Floats& smoothing, const Estimator& e, const Regions& r, float tau,
                         bool dense);

// ---- 5: FP8 --------------------------------------------------------------------------------------------------------

uint8_t to_e4m3(float x);  // to nearest even, saturating; NaN is 0x7f
double from_e4m3(uint8_t code);

struct Fp8Keys {
  std::vector<uint8_t> codes;  // [keys, rank]
  float scale = 0;
};
// first: keys of the update that fixed smoothing and scale.
Fp8Keys fp8_keys(const Floats& k, int64_t k_len, int64_t d, const Floats& smoothing, const Estimator& e, int64_t first);

// One candidate: how far the pair that decides stands above the threshold, in units of scores, and the same with
// everything that rounding of the sums can do against it (low) and for it (high). Kept for certain when low > 0,
// dropped for certain when high < 0.
struct Fp8Candidate {
  int32_t block;
  double margin, low, high;
};
// Candidates of the tile of 64 rows, [first, last) of its half or of the half that leads its tile of 128.
using Fp8Tile = std::vector<Fp8Candidate>;
std::vector<Fp8Tile> fp8_select(const Head& h, const Floats& smoothing, const Fp8Keys& keys, const Estimator& e,
                                const Regions& r, float tau, sale_dtype dtype);

// ---- tiles of 128 rows ---------------------------------------------------------------------------------------------

// Candidates of tile T of 128 rows: [first, last), of visible blocks; everything else is kept.
struct Range {
  int64_t first, last, visible;
};
Range wide_range(const Head& h, int64_t tile, const Regions& r);

// Its list: all of `must`, and besides only what is in `may`, where rounding decides (FP8). Ascending.
struct WideTile {
  std::vector<int32_t> must, may;
  bool allows(const std::vector<int32_t>& list) const;
};
// Smoothing and scales by all keys of the head. undefined: anything may come of estimates, as of scores beyond f32.
std::vector<WideTile> select_wide(const Head& h, const Estimator& e, const Regions& r, float tau, bool dense,
                                  bool undefined, sale_dtype dtype);

// ---- 6: attention --------------------------------------------------------------------------------------------------

using BlockLists = std::vector<std::vector<int32_t>>;  // kept blocks per tile
BlockLists all_blocks(const Head& h);

struct Attention {
  std::vector<double> out, weighed;  // [q_len, d]; weighed: sum of p |v|
  std::vector<double> lse;           // [q_len]
  std::vector<double> reach;         // [q_len] largest sum |q||k| scale of a seen key: what f32 scores lose digits on
  std::vector<double> doubt;  // [q_len, d] FP8, F16: what coding probabilities and adding few bits can do; else 0
};
struct Form {
  sale_compute compute = SALE_COMPUTE_EXACT;  // others: scores and values from codes, in double from there on
  // Compensation: of tiles of so many rows, with the local region and the tensors' type.
  bool compensate = false;
  int64_t local = 0;
  sale_dtype dtype = SALE_BF16;
  int64_t tile = 2 * tile_rows;
};
Attention attend(const Head& h, const BlockLists& blocks, const Form& form);

// ---- 8: audit ------------------------------------------------------------------------------------------------------

std::vector<int64_t> audited_rows(int64_t q_len, int64_t count, uint64_t seed);
struct Audit {
  double error = 0, size = 0, mass = 0, least_mass = 1;
};
// out: what was computed over the kept blocks, [q_len, d].
Audit audit(const Head& h, const BlockLists& kept, const Floats& out, const std::vector<int64_t>& rows);

// ---- parts of 6 ----------------------------------------------------------------------------------------------------

// What products are made of: exact numbers, or codes times their scales. [tokens, d], of means [runs of blocks, d].
struct Operands {
  std::vector<double> q, k, v, k_means, v_means;
  Floats smoothing;  // of keys, not finite ones 0; empty when scores hold all of q k
  Floats most;       // FP8, F16: the largest |v| of every column
};
Operands operands(const Head& h, const Form& form);
// Of every 256 rows (the last ones: as many as there are) the f32 mean of each column, rounded; 0 where it is not
// finite.
Floats means(const Floats& x, int64_t rows, int64_t d, sale_dtype dtype);
double rounded(double x, sale_dtype dtype);  // to what the type can hold, to nearest even
// The same in f32 throughout, one sum after the other: what a plain implementation gets.
Floats attend_plainly(const Head& h, const BlockLists& blocks);

}  // namespace sale_oracle
