// Which keys each query row sees, read from ggml's mask: F16 [rows, keys], 0 where a row sees a key and -inf where not.
// The mask is the only source of causality, so nothing about it is assumed: padding, cells of other sequences, empty
// cells, cells out of order and rows that see nothing are all read from it.
//
// Rows are cut into runs. In a causal run every row sees what the row before it sees and one key more, so with its keys
// listed in the order in which rows came to see them it is an ordinary causal problem:
//
//      cells 0 .......... 9                      keys of the list
//   r0 [xx..xxx...]   sees 0 1 4 5 6             r0 [xxxxx..]
//   r1 [xx..xxxx..]   ... and 7           =>     r1 [xxxxxx.]
//   r2 [xx..xxxxx.]   ... and 8                  r2 [xxxxxxx]
//
// In a run with a window every row loses, once there are so many keys, the oldest of the list for each that it gains.
//
// By blocks of the list and tiles of rows: all seen before the first row's end, none after the last row's, mixed
// between.
#pragma once

#include <cstdint>
#include <vector>

namespace sale::ggml {

// Neighbouring cells [begin, end).
struct Cells {
  int64_t begin, end;
};

struct Run {
  enum Kind {
    causal,
    all,    // every row sees the same keys
    blind,  // sees nothing
    other   // anything else: rows that lose other keys than their oldest, finite biases; ggml's own kernel takes these
  };
  Kind kind = other;
  int64_t row_begin = 0, row_end = 0;
  // Causal and all: the keys in list order, and how many of them the run's first row sees.
  std::vector<Cells> keys;
  int64_t key_count = 0, first_sees = 0;
  int64_t window = 0;  // causal: how many keys of the list, up to its own, a row sees at most; 0: all
  // The rows' own keys come after all older ones, so that the order of the list is the order of the tokens: what is
  // near in the list is near in the text. Where it is not, nothing may be left out.
  bool ordered = false;

  int64_t rows() const { return row_end - row_begin; }
  bool contiguous() const { return keys.size() == 1; }
};

// mask: the first row; `keys` per row, rows one after another.
std::vector<Run> read_mask(const uint16_t* mask, int64_t rows, int64_t keys);

}  // namespace sale::ggml
