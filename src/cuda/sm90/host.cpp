// The host side of the Hopper backend: what its layers, plans and calls are, put into the kernels' structs and
// launched.
#include "cuda/sm90/host.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/checked.hpp"
#include "cuda/common/stages.hpp"
#include "cuda/common/why_not.hpp"
#include "cuda/sm90/kernels.hpp"

namespace sale::sm90 {
namespace {

using cuda::Current;
using cuda::must;
using cuda::stream_of;
using cuda::Tables;
using cuda::tables_of;

// ---- layer ----------------------------------------------------------------------------------------------------------

bool serves(int32_t major, int32_t minor) { return major == 9 && minor == 0; }

int32_t width_of(const Form& form) { return !form.projected ? form.rank : form.rank <= 28 ? 32 : 64; }
int32_t scales_of(const Form& form) { return form.format == SALE_FP8 ? 0 : 1; }

void decode(const uint8_t* codes, int64_t key, const Form& form, int8_t* to) {
  for (int32_t c = 0; c < form.rank; ++c) to[c] = static_cast<int8_t>(codes[code_offset(key, c, width_of(form))]);
}

// To nearest, ties to even.
uint16_t to_bf16(float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  return static_cast<uint16_t>((w + 0x7fffu + ((w >> 16) & 1u)) >> 16);
}
uint16_t to_f16(float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  const uint32_t sign = w >> 16 & 0x8000u, magnitude = w & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x38800000u) {                                               // below 2^-14: a multiple of 2^-24
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;  // whose last place is 2^-24
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) - 0x38000000u) >> 13);
}

// [kv_heads, width, head_dim], transposed, in the tensors' type; rows beyond rank are 0.
std::vector<char> q_projection(const Layer& layer) {
  const int64_t d = layer.head_dim, width = width_of(layer.form), rank = layer.form.rank;
  std::vector<uint16_t> t(static_cast<size_t>(layer.kv_heads * width * d), 0);
  for (int64_t h = 0; h < layer.kv_heads; ++h)
    for (int64_t a = 0; a < d; ++a)
      for (int64_t c = 0; c < rank; ++c) {
        const float x = layer.q_projection[static_cast<size_t>((h * d + a) * rank + c)];
        t[static_cast<size_t>((h * width + c) * d + a)] = layer.dtype == SALE_BF16 ? to_bf16(x) : to_f16(x);
      }
  std::vector<char> bytes(t.size() * 2);
  std::memcpy(bytes.data(), t.data(), bytes.size());
  return bytes;
}

constexpr cuda::Architecture architecture{{"9.0", serves, "9.0", serves, prepare_device},
                                          tile_rows,
                                          width_of,
                                          scales_of,
                                          index_scratch_bytes,
                                          launch_index,
                                          decode,
                                          q_projection,
                                          launch_audit};

// ---- plan -----------------------------------------------------------------------------------------------------------

void tables(Plan& plan, Areas& areas) { cuda::place_tables(architecture, plan, areas, 0); }

void make_plan(Plan& plan, Areas& areas) {
  cuda::place_scratch(architecture, plan, areas);
  Tables& made = tables_of(plan);
  int64_t most_items = 1;
  for (const cuda::Group& g : made.groups) most_items = std::max<int64_t>(most_items, g.items);
  const Estimator e{plan.form.format, plan.form.rank, width_of(plan.form), nullptr, nullptr};
  const SelectScratch one = select_scratch(e, plan.problem.q_heads, 1);
  made.slice =
      std::clamp<int64_t>(cuda::slice_bytes / static_cast<int64_t>(one.q_codes + one.row_limits), 1, most_items);
  const SelectScratch scratch =
      cuda::all_dense(plan) ? SelectScratch{} : select_scratch(e, plan.problem.q_heads, made.slice);
  made.q_codes_at = areas.add(static_cast<int64_t>(scratch.q_codes));
  made.row_limits_at = areas.add(static_cast<int64_t>(scratch.row_limits));
}

std::string explain(const Plan& plan, const Layer&) {
  const Tables& t = tables_of(plan);
  int64_t items = 0;
  for (const cuda::Group& g : t.groups) items += g.items;
  return text("device     ", t.device.ordinal, ", ", t.device.multiprocessors, " multiprocessors\n",  //
              "items      ", items, " query tiles x ", plan.problem.q_heads, " query heads in ", t.groups.size(),
              " launches, selected ", t.slice, " tiles at a time\n");
}

// ---- tensor maps ----------------------------------------------------------------------------------------------------

EncodeTiled tensor_map_encoder() {
  static const EncodeTiled encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    cuda::must(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found),
               "looking for cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) fail(SALE_UNSUPPORTED, "cuda: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<EncodeTiled>(f);
  }();
  return encode;
}

MapSpec query_spec(const Call& call) {
  const Plan& p = *call.plan;
  const sale_problem& x = p.problem;
  const sale_strides& by = call.strides.q;
  int64_t tokens = 1;
  for (const sale::Sequence& s : p.sequences) tokens = std::max(tokens, s.q_start + s.sight.q_len);
  return {call.q, x.head_dim, tokens, x.q_heads, x.batch, by.token, by.head, by.batch, 64};
}

MapSpec key_spec(const Call& call, const void* base, const sale_strides& strides, int32_t rows) {
  const Plan& p = *call.plan;
  const sale_problem& x = p.problem;
  int64_t tokens = 1, outer = x.batch;
  for (const sale::Sequence& s : p.sequences) tokens = std::max(tokens, s.k_start + s.sight.k_len);
  if (x.page_size != 0) tokens = x.page_size, outer = int64_t{1} << 31;  // any page a table can name
  return {base, x.head_dim, tokens, x.kv_heads, outer, strides.token, strides.head, strides.batch, rows};
}
// Of a block of keys; pages that are no multiple of it are read 16 keys at a time.
int32_t block_rows(const Call& call) { return call.plan->problem.page_size % 32 == 0 ? 32 : 16; }

CUtensorMap map_of(const char* name, const MapSpec& spec, const Call& call) {
  CUtensorMap map;
  if (make_map(tensor_map_encoder(), spec, call.plan->problem.dtype, &map) != CUDA_SUCCESS)
    fail(SALE_UNSUPPORTED, name, ": the driver cannot describe such a tensor to the copy engine (strides ",
         spec.outer_stride, ", ", spec.head_stride, ", ", spec.token_stride, ")");
  return map;
}

// Of a call's tensors, made once: where it is checked.
struct Maps {
  CUtensorMap q64, k32, k128, v32, v128;
};
static_assert(sizeof(Maps) <= sizeof(Call::Own) && alignof(Maps) <= alignof(Call::Own));
Maps& maps_of(const Call& call) { return *std::launder(reinterpret_cast<Maps*>(call.own.bytes)); }

void check(const Call& call) {
  const sale_problem& x = call.plan->problem;
  const Current current(x.device);
  Maps& maps = *new (call.own.bytes) Maps;
  const auto one = [&](const char* name, const MapSpec& spec, CUtensorMap& map) {
    if (spec.base == nullptr) return;
    if (const char* why = why_not_map(spec, x.dtype); *why != '\0') fail(SALE_UNSUPPORTED, name, ": ", why);
    map = map_of(name, spec, call);
  };
  const int32_t rows = block_rows(call);
  one("q", query_spec(call), maps.q64);
  one("k", key_spec(call, call.k, call.strides.k, rows), maps.k32);
  one("k", key_spec(call, call.k, call.strides.k, 128), maps.k128);
  one("v", key_spec(call, call.v, call.strides.v, rows), maps.v32);
  one("v", key_spec(call, call.v, call.strides.v, 128), maps.v128);
  if (reinterpret_cast<uintptr_t>(call.out) % 16 != 0) fail(SALE_UNSUPPORTED, "out: it is not aligned to 16 bytes");
  if (const std::string why = cuda::why_not_strides(call.strides); !why.empty()) fail(SALE_UNSUPPORTED, why);
}

// ---- stages ---------------------------------------------------------------------------------------------------------

void select_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& tables = tables_of(p);
  const Strides& by = call.strides;
  const Current current(tables.device.ordinal);
  SelectCall c{};
  c.estimator = cuda::estimator_of(architecture, *call.layer);
  c.exact = {call.q, call.k, by.q.batch, by.q.head, by.q.token, by.k.batch, by.k.head, by.k.token};
  c.q64 = maps_of(call).q64;
  c.k32 = maps_of(call).k32;
  c.q_codes = cuda::part<uint8_t>(call, tables.q_codes_at);
  c.row_limits = cuda::part<float>(call, tables.row_limits_at);
  c.slice = tables.slice;
  c.reference = call.reference;
  c.reference_rows = p.sequences.front().lse_rows;
  for (const cuda::Group& g : tables.groups) {
    c.common = cuda::common_of(architecture, call, g);
    must(launch_select(c, tables.device.multiprocessors, stream_of(call)), "launching the selection");
  }
}

CUtensorMap means_map(const Call& call, size_t at) {
  const sale_problem& x = call.plan->problem;
  const int64_t means = tables_of(*call.plan).means;
  return map_of("means",
                {call.workspace + at, x.head_dim, means, x.kv_heads, 1, x.head_dim, means * x.head_dim, 8,
                 static_cast<int32_t>(tile_rows)},
                call);
}

void attend_blocks(const Call& call) {
  const Plan& p = *call.plan;
  const Tables& tables = tables_of(p);
  const Strides& by = call.strides;
  const Current current(tables.device.ordinal);
  AttendCall c{};
  const Maps& maps = maps_of(call);
  c.q64 = maps.q64, c.k32 = maps.k32, c.k128 = maps.k128, c.v32 = maps.v32, c.v128 = maps.v128;
  c.compensate = p.compensate;
  if (p.compensate) c.k_means = means_map(call, tables.k_means_at), c.v_means = means_map(call, tables.v_means_at);
  c.low = cuda::low_bit_of(call);
  cuda::make_stand_ins(call);
  c.out = call.out;
  c.out_batch = by.out.batch;
  c.out_head = by.out.head;
  c.out_token = by.out.token;
  c.lse = call.lse;
  c.lse_rows = p.sequences.front().lse_rows;
  c.counter = cuda::part<int32_t>(call, tables.counter_at);
  for (const cuda::Group& g : tables.groups) {
    c.common = cuda::common_of(architecture, call, g);
    must(launch_attend(c, tables.device.multiprocessors, stream_of(call)), "launching attention");
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

}  // namespace sale::sm90
