#include "cuda/sm80/tables.hpp"

#include <algorithm>

#include "core/checked.hpp"
#include "cuda/sm80/host.hpp"

namespace sale::sm80 {
namespace {

// Ampere and Ada; what came later runs the PTX, 4-bit products in software.
bool serves(int32_t major, int32_t) { return major >= 8; }
bool suits(int32_t major, int32_t) { return major == 8; }

int32_t width_of(const sale::Estimator& e) {
  const int32_t coordinates = e.rank <= 64 ? 64 : 128;
  return e.format == SALE_INT4 ? coordinates / 2 : coordinates;
}
int32_t scales_of(const sale::Estimator& e) { return e.groups(); }

void decode(const uint8_t* codes, int64_t key, const sale::Estimator& e, int8_t* to) {
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

// Tiles that are selected together, longest first.
std::vector<Item> make_chunks(const Plan& plan, const std::vector<cuda::Group>& groups,
                              std::vector<std::pair<int64_t, int32_t>>& of_group) {
  std::vector<Item> chunks;
  const int32_t step = chunk_tiles(plan.group);
  for (const cuda::Group& g : groups) {
    const auto first = static_cast<int64_t>(chunks.size());
    const auto sequence = [&](const Item& i) -> const sale::Sequence& {
      return plan.sequences[static_cast<size_t>(g.first_sequence + i.sequence)];
    };
    for (int32_t b = 0; b < g.sequences; ++b)
      for (int64_t t = 0; t < sequence({b, 0}).tiles; t += step) chunks.push_back({b, static_cast<int32_t>(t)});
    std::stable_sort(chunks.begin() + first, chunks.end(), [&](const Item& a, const Item& b) {
      return sequence(a).visible_blocks(a.tile) > sequence(b).visible_blocks(b.tile);
    });
    of_group.emplace_back(first, static_cast<int32_t>(static_cast<int64_t>(chunks.size()) - first));
  }
  return chunks;
}

}  // namespace

const cuda::Architecture architecture{{"8.0 or above", serves, "8.x", suits, prepare_device},
                                      tile_rows,
                                      width_of,
                                      scales_of,
                                      cuda::mean_scratch_bytes,
                                      launch_index,
                                      decode,
                                      launch_audit};

std::string why_no_device() {
  static const std::string why = cuda::why_no_device(architecture.generation);
  return why;
}

std::string why_not_unasked(const sale_problem& p) { return cuda::why_not_unasked(architecture.generation, p.device); }

void make_tables(Plan& plan, const sale_options&, Areas& areas) {
  const sale_problem& p = plan.problem;
  const cuda::Device device = cuda::open_device(architecture.generation, p.device);
  if (plan.compute == SALE_COMPUTE_FP8 && device.major == 8 && device.minor < 9)
    fail(SALE_UNSUPPORTED, "compute: SALE_COMPUTE_FP8, but device ", p.device, " has compute capability ", device.major,
         ".", device.minor, "; products of 8-bit floats begin with 8.9; SALE_COMPUTE_INT8 runs here");
  cuda::Upload upload;
  const size_t q_at = upload.add(plan.estimator.q_projection);
  std::vector<cuda::Group> groups;
  for (int32_t first = 0; first < p.batch; first += cuda::max_sequences)
    groups.push_back({first, std::min(cuda::max_sequences, p.batch - first), 0, 0});
  std::vector<std::pair<int64_t, int32_t>> of_group;
  const size_t chunks_at = upload.add(make_chunks(plan, groups, of_group));
  const std::shared_ptr<Tables> made = cuda::make_tables(architecture, plan, areas, upload);
  made->q_projection = plan.estimator.projected ? cuda::part<float>(made->memory, q_at) : nullptr;
  made->chunks = cuda::part<Item>(made->memory, chunks_at);
  int64_t most_chunks = 1;
  for (size_t i = 0; i < made->groups.size(); ++i) {
    cuda::Group& g = made->groups[i];
    g.first_chunk = of_group[i].first;
    g.chunks = of_group[i].second;
    most_chunks = std::max<int64_t>(most_chunks, g.chunks);
  }

  const Estimator e = cuda::estimator_of(architecture, plan.estimator, nullptr, nullptr);
  const SelectScratch one = select_scratch(e, p.q_heads, plan.group, 1);
  made->slice = std::clamp<int64_t>(cuda::slice_bytes / static_cast<int64_t>(one.q_codes + one.limits), 1, most_chunks);
  const bool none = cuda::all_dense(plan), int4 = e.format == SALE_INT4 && !none;
  const SelectScratch scratch = none ? SelectScratch{} : select_scratch(e, p.q_heads, plan.group, made->slice);
  made->q_codes_at = areas.add(static_cast<int64_t>(scratch.q_codes));
  made->row_limits_at = areas.add(static_cast<int64_t>(scratch.limits));
  made->bias_keys = 0;
  for (const sale::Sequence& s : plan.sequences) {
    made->bias_tokens.push_back(made->bias_keys);
    if (int4 && !s.dense) made->bias_keys += round_up(s.k_len, block_keys);
  }
  const Checked heads(p.q_heads), vectors = int4 ? Checked(p.batch) * heads * Checked(p.head_dim) : Checked(0);
  made->q_means_at = areas.add(vectors * Checked(4));
  made->bias_at = areas.add(heads * Checked(made->bias_keys) * Checked(4));
  made->q_scratch_at =
      areas.add(int4 ? static_cast<int64_t>(cuda::mean_scratch_bytes(p.q_heads, p.head_dim)) : int64_t{0});
  plan.state = made;
}

std::string explain(const Plan& plan) {
  const Tables& t = tables_of(plan);
  int64_t items = 0;
  for (const cuda::Group& g : t.groups) items += g.items;
  std::string e = text("device     ", t.device.ordinal, ", ", t.device.multiprocessors,
                       " multiprocessors, compute capability ", t.device.major, ".", t.device.minor, "\n");
  if (t.device.major != 8)
    e += "emulated   4-bit products run in software on this GPU: right, not fast; made for compute capability 8.x\n";
  return e + text("items      ", items, " query tiles x ", plan.problem.q_heads, " query heads in ", t.groups.size(),
                  " launches, selected ", t.slice * chunk_tiles(plan.group), " tiles at a time\n");
}

}  // namespace sale::sm80
