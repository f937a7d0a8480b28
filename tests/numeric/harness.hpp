// A problem line, run through the C ABI on one backend; everything that came out, ready to be compared.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "case/instance.hpp"
#include "oracle/oracle.hpp"

namespace sale_test {

using sale_case::Case;
using sale_case::Instance;

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};
void expect(bool condition, const std::string& what);
// Throws Failed with the library's message.
void ok(sale_status status, const char* call);

struct EstimatorDeleter {
  void operator()(sale_estimator* e) const { sale_estimator_destroy(e); }
};
struct PlanDeleter {
  void operator()(sale_plan* p) const { sale_plan_destroy(p); }
};
struct IndexDeleter {
  void operator()(sale_index* p) const { sale_index_destroy(p); }
};
struct BlocksDeleter {
  void operator()(sale_blocks* p) const { sale_blocks_destroy(p); }
};
using Estimator = std::unique_ptr<sale_estimator, EstimatorDeleter>;
using Plan = std::unique_ptr<sale_plan, PlanDeleter>;
using Index = std::unique_ptr<sale_index, IndexDeleter>;
using Blocks = std::unique_ptr<sale_blocks, BlocksDeleter>;

// All throw Failed.
Estimator make_estimator(const sale_layer& l);
Plan make_plan(const sale_problem& p, const sale_options& o, const Estimator& e, int32_t with_index);
Index make_index(const Estimator& e, int64_t capacity, int32_t page_size = 0);
Blocks make_blocks(const Plan& plan);
sale_workspace workspace_of(const Plan& plan);
sale_case::Memory make_workspace(const Plan& plan);  // to the byte, before an unreadable page
sale_layer with_backend(sale_layer l, const std::string& backend);

// A plan for one layer, and what its calls work in. Calls throw Failed.
struct Step {
  Step(const sale_problem& p, const sale_layer& l, const sale_options& o, int32_t with_index = SALE_INDEX_OF_CALL);
  void run(sale_call c) const;
  void select(sale_call c, const Blocks& blocks) const;
  void attend(sale_call c, const Blocks& blocks) const;

  Estimator layer;
  Plan plan;
  sale_case::Memory workspace;
};

// Names of the CPU backends this machine can run, and of the list those it cannot, with the reason.
const std::vector<std::string>& usable_backends();
std::string unusable_backends();
// The backend of this name runs on a device.
bool on_device(const std::string& backend);
// The last of the list: it runs everywhere.
std::string last_backend();
// Those of them that can run this problem.
std::vector<std::string> backends_for(const Instance& in);

// What an index on the CPUs has of a key in bytes, and of a block in scales.
int64_t row_bytes(const Case& c);
int64_t block_scales(const Case& c);

// [sequence][head][tile] -> kept blocks
using Lists = std::vector<std::vector<sale_oracle::BlockLists>>;
Lists read_lists(const Instance& in, const sale_blocks* blocks);
std::vector<int32_t> read_row(const sale_blocks* blocks, sale_tile at);
// All at once, as sale_blocks_csr and, in host memory, sale_blocks_words have it: the same. Throws Failed.
void check_bulk(const Lists& lists, const sale_blocks* blocks);

struct Result {
  Lists lists;
  std::vector<std::byte> out, lse;  // whole memories, gaps included
  int64_t kept = 0, visible = 0;
  std::vector<Index> indexes;  // one per sequence, made of the whole keys
  bool operator==(const Result& r) const { return lists == r.lists && out == r.out && lse == r.lse; }
};
// sale_run, then select and attend on their own with the other kind of plan (with and without key indexes): all must
// agree to the bit, and nothing outside the rows may be written.
Result run(Instance& in, const std::string& backend);

// One head as the oracle wants it.
sale_oracle::Head head_of(const Instance& in, int64_t b, int64_t h);
sale_oracle::Estimator estimator_of(const Instance& in, int64_t h);
// tile: rows that share a list.
sale_oracle::Form form_of(const Instance& in, int64_t tile = sale_oracle::tile_rows);

// Some numbers as every row's reference, before a run. They define lists, whatever a row's scores come to.
void give_reference(Instance& in);
// What is taken from the keys of this head before they are coded: the layer's vector, or their mean.
sale_oracle::Floats smoothing_of(const Instance& in, int64_t b, int64_t kv);
// The same problem with its keys as a part of a sequence's: rows that stand in it, behind it or far behind it.
Case make_part(Case c);

struct Tally {
  int64_t cases = 0, backend_runs = 0, candidates = 0, kept = 0, visible = 0, exempted = 0;
  double worst = 0;  // share of the error limit
  void add(const Tally& t);
};
// Everything against the oracle and all backends against each other. Throws Failed.
Tally check_instance(Instance& in);
Tally check_case(const Case& c);
// A head's list: to the bit, and against exact thresholds outside 2^-10 of them. Throws Failed.
void check_list(const Instance& in, int64_t b, int64_t h, const sale_oracle::BlockLists& got, const std::string& who,
                Tally& tally);
// What one head's attention over given lists must be, and how far from it the outputs in `in` are: the worst share of
// the limit; throws Failed beyond it.
struct Expected {
  sale_oracle::Head head;
  sale_oracle::Attention exact;
  double relative;                         // limit, as a share of sum p|v|
  std::vector<std::vector<bool>> tainted;  // [tile][column]: V holds NaN or infinity in a kept block
};
Expected expected_attention(const Instance& in, int64_t b, int64_t h, const sale_oracle::BlockLists& lists,
                            int64_t tile = sale_oracle::tile_rows);
double check_attention(const Instance& in, int64_t b, int64_t h, const Expected& e, const std::string& who);

// The line being worked on by this thread: printed when the process dies.
void set_current(const std::string& line);
// Runs body(i) for i in [0, n) on all cores; collects the first failures as text, each with its problem line.
std::string in_parallel(int64_t n, const std::function<Case(int64_t)>& make,
                        const std::function<Tally(const Case&)>& body, Tally& total);

// Small random cases on every CPU backend that can run them; what `check` throws is a test's failure, with its line.
void on_random_cases(uint64_t first_seed, int64_t n, const std::function<void(Case&)>& adjust,
                     const std::function<void(Instance&, const std::string&)>& check);
// out and lse as they are now, gaps included.
std::vector<std::byte> outputs(const Instance& in);
// Takes numbers that no smoothing vector can be made of out of a case.
void regular(Case& c);
// Vectors near the means of the first sequence's keys, as calibrated ones are: the layer's, which refers to them.
std::vector<float> give_smoothing(Instance& in);

struct Flags {
  const char* program = "numeric_test";
  int64_t cases = 2000;
  uint64_t seed = 1;
  int64_t repeats = 100;
  std::vector<std::string> lines;
};
const Flags& flags();

}  // namespace sale_test
