// The host side of the Ampere and Ada backend: what its layers, plans and calls are, put into the kernels' structs and
// launched.
#include "cuda/sm80/host.hpp"

#include <algorithm>
#include <cstring>

#include "core/checked.hpp"
#include "cuda/common/stages.hpp"
#include "cuda/common/why_not.hpp"
#include "cuda/sm80/kernels.hpp"

namespace sale::sm80 {
namespace {

using cuda::Current;
using cuda::must;
using cuda::stream_of;
using cuda::Tables;
using cuda::tables_of;

// ---- layer ----------------------------------------------------------------------------------------------------------

// Ampere and Ada; what came later runs the PTX, 4-bit products in software.
bool serves(int32_t major, int32_t) { return major >= 8; }
bool suits(int32_t major, int32_t) { return major == 8; }

int32_t width_of(const Form& e) {
  const int32_t coordinates = e.rank <= 64 ? 64 : 128;
  return e.format == SALE_INT4 ? coordinates / 2 : coordinates;
}
int32_t scales_of(const Form& e) { return e.groups(); }

void decode(const uint8_t* codes, int64_t key, const Form& e, int8_t* to) {
  const int32_t width = width_of(e);
  for (int32_t c = 0; c < e.rank; ++c) {
    if (e.format == SALE_INT8) {
      to[c] = static_cast<int8_t>(codes[code_offset(key, c, width)]);
      continue;
    }
    const int nibble = codes[code_offset(key, c / 2, width)] >> c % 2 * 4 & 15;
    to[c] = static_cast<int8_t>(nibble < 8 ? nibble : nibble - 16);
  }
}

std::vector<char> q_projection(const Layer& layer) {
  std::vector<char> bytes(layer.q_projection.size() * 4);
  std::memcpy(bytes.data(), layer.q_projection.data(), bytes.size());
  return bytes;
}

// Its kernels by their PTX.
bool is_blackwell(int32_t major, int32_t) { return major >= 10; }
constexpr cuda::Generation blackwell{"10.0 or above", is_blackwell, "10.0 and above", is_blackwell, prepare_device};

constexpr cuda::Architecture architecture{{"8.0 or above", serves, "8.x", suits, prepare_device},
                                          tile_rows,
                                          width_of,
                                          scales_of,
                                          cuda::mean_scratch_bytes,
                                          launch_index,
                                          decode,
                                          q_projection,
                                          launch_audit};

// ---- plan -----------------------------------------------------------------------------------------------------------

// INT4: what the means of queries add to the scores of keys.
struct Bias {
  size_t q_means_at, bias_at, scratch_at;  // in the workspace, bytes
  std::vector<int64_t> tokens;             // first of each sequence
  int64_t keys;                            // of all
};
const Bias& bias_of(const Plan& plan) { return *static_cast<const Bias*>(tables_of(plan).own.get()); }

void tables(Plan& plan, Areas& areas) { cuda::place_tables(architecture, plan, areas, chunk_tiles(plan.group)); }

void make_plan(Plan& plan, Areas& areas) {
  const sale_problem& p = plan.problem;
  Tables& made = tables_of(plan);
  if (plan.compute == SALE_COMPUTE_FP8 && made.device.major == 8 && made.device.minor < 9)
    fail(SALE_UNSUPPORTED, "compute: SALE_COMPUTE_FP8, but device ", p.device, " has compute capability ",
         made.device.major, ".", made.device.minor,
         "; products of 8-bit floats begin with 8.9; SALE_COMPUTE_INT8 runs here");
  cuda::place_scratch(architecture, plan, areas);
  int64_t most_chunks = 1;
  for (const cuda::Group& g : made.groups) most_chunks = std::max<int64_t>(most_chunks, g.chunks);
  const Estimator e{plan.form.format, plan.form.rank, width_of(plan.form), nullptr, nullptr};
  const SelectScratch one = select_scratch(e, p.q_heads, plan.group, 1);
  made.slice = std::clamp<int64_t>(cuda::slice_bytes / static_cast<int64_t>(one.q_codes + one.limits), 1, most_chunks);
  const bool none = cuda::all_dense(plan), int4 = e.format == SALE_INT4 && !none;
  const SelectScratch scratch = none ? SelectScratch{} : select_scratch(e, p.q_heads, plan.group, made.slice);
  made.q_codes_at = areas.add(static_cast<int64_t>(scratch.q_codes));
  made.row_limits_at = areas.add(static_cast<int64_t>(scratch.limits));
  auto bias = std::make_shared<Bias>();
  bias->keys = 0;
  for (const sale::Sequence& s : plan.sequences) {
    bias->tokens.push_back(bias->keys);
    if (int4 && !s.dense) bias->keys += round_up(s.sight.k_len, block_keys);
  }
  const Checked heads(p.q_heads), vectors = int4 ? Checked(p.batch) * heads * Checked(p.head_dim) : Checked(0);
  bias->q_means_at = areas.add(vectors * Checked(4));
  bias->bias_at = areas.add(heads * Checked(bias->keys) * Checked(4));
  bias->scratch_at =
      areas.add(int4 ? static_cast<int64_t>(cuda::mean_scratch_bytes(p.q_heads, p.head_dim)) : int64_t{0});
  made.own = std::move(bias);
}

std::string explain(const Plan& plan, const Layer&) {
  const Tables& t = tables_of(plan);
  int64_t items = 0;
  for (const cuda::Group& g : t.groups) items += g.items;
  std::string e = text("device     ", t.device.ordinal, ", ", t.device.multiprocessors,
                       " multiprocessors, compute capability ", t.device.major, ".", t.device.minor, "\n");
  if (t.device.major != 8 && plan.form.format == SALE_INT4)
    e += "emulated   4-bit products run in software on this GPU: right, not fast; made for compute capability 8.x\n";
  return e + text("items      ", items, " query tiles x ", plan.problem.q_heads, " query heads in ", t.groups.size(),
                  " launches, selected ", t.slice * chunk_tiles(plan.group), " tiles at a time\n");
}

// ---- stages ---------------------------------------------------------------------------------------------------------

Strided strided(const void* base, const sale_strides& s) { return {base, s.batch, s.head, s.token}; }

// Loads and stores of 16 bytes.
void check(const Call& call) {
  const std::pair<const char*, const void*> tensors[] = {
      {"q", call.q}, {"k", call.k}, {"v", call.v}, {"out", call.out}};
  for (const auto& [name, base] : tensors)
    if (reinterpret_cast<uintptr_t>(base) % 16 != 0) fail(SALE_UNSUPPORTED, name, ": it is not aligned to 16 bytes");
  if (const std::string why = cuda::why_not_strides(call.strides); !why.empty()) fail(SALE_UNSUPPORTED, why);
}

void select_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const Bias& bias = bias_of(p);
  const Current current(t.device.ordinal);
  SelectCall c{};
  c.estimator = cuda::estimator_of(architecture, *call.layer);
  c.q = strided(call.q, call.strides.q);
  c.k = strided(call.k, call.strides.k);
  c.reference = call.reference;
  c.reference_rows = p.sequences.front().lse_rows;
  c.q_means = cuda::part<float>(call, bias.q_means_at);
  c.bias = cuda::part<float>(call, bias.bias_at);
  c.bias_keys = bias.keys;
  c.q_codes = cuda::part<uint8_t>(call, t.q_codes_at);
  c.limits = cuda::part<float>(call, t.row_limits_at);
  c.slice = t.slice;
  c.scratch = call.workspace + bias.scratch_at;
  for (const cuda::Group& g : t.groups) {
    c.common = cuda::common_of(architecture, call, g);
    c.chunks = cuda::part<Item>(call, t.chunks_at) + g.first_chunk;
    c.n_chunks = g.chunks;
    for (int32_t i = 0; i < g.sequences; ++i) c.bias_at[i] = bias.tokens[static_cast<size_t>(g.first_sequence + i)];
    must(launch_select(c, stream_of(call)), "launching the selection");
  }
}

void attend_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& t = tables_of(p);
  const sale_problem& x = p.problem;
  const Strides& by = call.strides;
  const Current current(t.device.ordinal);
  cuda::make_stand_ins(call);
  AttendCall c{};
  c.q = strided(call.q, by.q);
  c.k = strided(call.k, by.k);
  c.v = strided(call.v, by.v);
  if (p.compensate) {
    c.k_means = cuda::part<uint16_t>(call, t.k_means_at);
    c.v_means = cuda::part<uint16_t>(call, t.v_means_at);
  }
  c.means_head = t.means * x.head_dim;
  c.compute = p.compute;
  c.low = cuda::low_bit_of(call);
  c.out = call.out;
  c.out_batch = by.out.batch;
  c.out_head = by.out.head;
  c.out_token = by.out.token;
  c.lse = call.lse;
  c.lse_rows = p.sequences.front().lse_rows;
  for (const cuda::Group& g : t.groups) {
    c.common = cuda::common_of(architecture, call, g);
    must(launch_attend(c, stream_of(call)), "launching attention");
  }
}

}  // namespace

constinit const Stages stages =
    cuda::stages_of<architecture>(tables, make_plan, explain, check, select_blocks, attend_blocks, tile_rows);

std::string why_no_device() {
  static const std::string why = cuda::why_no_device(architecture.generation);
  return why;
}

std::string why_not_unasked(int32_t device) { return cuda::why_not_unasked(architecture.generation, device); }

std::string why_no_blackwell() {
  static const std::string why = cuda::why_no_device(blackwell);
  return why;
}

std::string why_not_blackwell(int32_t device) { return cuda::why_not_unasked(blackwell, device); }

}  // namespace sale::sm80
