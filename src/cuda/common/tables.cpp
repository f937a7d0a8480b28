#include "cuda/common/tables.hpp"

#include <algorithm>
#include <cstring>

#include "core/checked.hpp"
#include "cuda/common/stages.hpp"

namespace sale::cuda {

// ---- layer ----------------------------------------------------------------------------------------------------------

namespace {

// Several arrays in one piece of device memory.
class Upload {
public:
  template <class T>
  size_t add(const std::vector<T>& from) {
    const size_t at = (bytes_.size() + 255) / 256 * 256, n = from.size() * sizeof(T);
    bytes_.resize(at + n);
    if (n != 0) std::memcpy(bytes_.data() + at, from.data(), n);
    return at;
  }
  std::shared_ptr<void> send(int32_t device) const {
    std::shared_ptr<void> memory = device_space.allocate(bytes_.size(), device);
    device_space.write(memory.get(), bytes_.data(), bytes_.size(), device);
    return memory;
  }

private:
  std::vector<char> bytes_;
};

}  // namespace

void open_layer(const Architecture& a, Layer& layer) {
  auto made = std::make_shared<LayerTables>();
  made->device = open_device(a.generation, layer.device);
  Upload upload;
  const size_t thresholds = upload.add(layer.thresholds), k = upload.add(layer.k_projection),
               q = upload.add(layer.form.projected ? a.q_projection(layer) : std::vector<char>()),
               smoothing = upload.add(layer.smoothing), scales = upload.add(layer.key_scales);
  made->memory = upload.send(layer.device);
  const auto at = [&](size_t offset, bool there) {
    return there ? reinterpret_cast<float*>(static_cast<char*>(made->memory.get()) + offset) : nullptr;
  };
  made->thresholds = at(thresholds, true);
  made->k_projection = at(k, layer.form.projected);
  made->q_projection = at(q, layer.form.projected);
  made->smoothing = at(smoothing, !layer.smoothing.empty());
  made->key_scales = at(scales, !layer.key_scales.empty());
  layer.state = std::move(made);
}

Estimator estimator_of(const Architecture& a, const Layer& layer) {
  const LayerTables& t = tables_of(layer);
  return {layer.form.format, layer.form.rank, a.width(layer.form), t.k_projection, t.q_projection};
}

// ---- plan -----------------------------------------------------------------------------------------------------------

bool all_dense(const Plan& plan) {
  return std::all_of(plan.sequences.begin(), plan.sequences.end(), [](const auto& s) { return s.dense; });
}

void place_tables(const Architecture& a, Plan& plan, Areas& areas, int32_t chunk_tiles) {
  const sale_problem& p = plan.problem;
  auto made = std::make_shared<Tables>();
  made->device = open_device(a.generation, p.device);
  made->chunk_tiles = chunk_tiles;
  int64_t items = 0, chunks = 0, words = 0, audited = 0;
  for (int32_t first = 0; first < p.batch; first += max_sequences) {
    Group g{first, std::min(max_sequences, p.batch - first), items, chunks, 0, 0};
    for (int32_t b = 0; b < g.sequences; ++b) {
      const sale::Sequence& s = plan.sequences[static_cast<size_t>(first + b)];
      made->row_word_of.push_back(words);
      made->audited_of.push_back(audited);
      items += s.tiles;
      words += s.tiles;
      audited += s.audited;
      if (chunk_tiles != 0) chunks += ceil_div(s.tiles, chunk_tiles);
    }
    const int64_t n = items - g.first_item;
    if (n * p.q_heads > INT32_MAX)
      fail(SALE_UNSUPPORTED, "problem: ", n, " query tiles x ", p.q_heads,
           " heads are more than 2^31 - 1 in one launch; split the batch or the heads");
    g.items = static_cast<int32_t>(n);
    g.chunks = static_cast<int32_t>(chunks - g.first_chunk);
    made->groups.push_back(g);
  }
  made->items_at = areas.add(items * int64_t{sizeof(Item)});
  made->chunks_at = areas.add(chunks * int64_t{sizeof(Item)});
  made->row_word_at = areas.add(words * 8);
  made->audited_at = areas.add(audited * 8);
  plan.state = std::move(made);
}

void prepare(const Architecture& a, const Plan& plan, char* workspace, void* stream) {
  const Tables& t = tables_of(plan);
  const Current current(t.device.ordinal);
  const auto at = [&](size_t offset) { return workspace + offset; };
  for (const Group& g : t.groups) {
    LayoutCall c{};
    c.n_sequences = g.sequences;
    for (int32_t i = 0; i < g.sequences; ++i) {
      const auto b = static_cast<size_t>(g.first_sequence + i);
      c.sights[i] = plan.sequences[b].sight;
      c.row_word_at[i] = t.row_word_of[b];
      c.audited[i] = plan.sequences[b].audited;
      c.audited_at[i] = t.audited_of[b];
    }
    c.tile_rows = static_cast<int32_t>(a.tile_rows);
    c.chunk_tiles = t.chunk_tiles;
    c.items = reinterpret_cast<Item*>(at(t.items_at)) + g.first_item;
    c.chunks = reinterpret_cast<Item*>(at(t.chunks_at)) + g.first_chunk;
    c.row_word = reinterpret_cast<int64_t*>(at(t.row_word_at));
    c.audit_rows = reinterpret_cast<int64_t*>(at(t.audited_at));
    c.audit_seed = plan.audit_seed;
    must(launch_layout(c, static_cast<cudaStream_t>(stream)), "launching the plan's tables");
  }
}

namespace {

// Means, and keys and values in few bits: whole blocks of every sequence side by side, the coded means after them.
void place_stand_ins(const Plan& plan, Tables& t, Areas& areas) {
  const sale_problem& p = plan.problem;
  const bool low = plan.compute != SALE_COMPUTE_EXACT;
  t.means = t.blocks = 0;
  for (const sale::Sequence& s : plan.sequences) {
    t.mean_at.push_back(t.means);
    t.means += ceil_div(s.sight.k_len, mean_keys);
    t.block_at.push_back(t.blocks);
    t.blocks += Sight::blocks_of(s.sight.k_len);
  }
  t.coded_blocks = t.blocks;
  for (const sale::Sequence& s : plan.sequences) {
    t.mean_block_at.push_back(t.coded_blocks);
    if (plan.compensate) t.coded_blocks += coded_mean_blocks(s.sight.k_len);
  }
  const Checked heads(p.kv_heads), dim(p.head_dim);
  const Checked means = plan.compensate ? heads * Checked(t.means) * dim * Checked(2) : Checked(0);
  t.k_means_at = areas.add(means);
  t.v_means_at = areas.add(means);
  const Checked codes = low ? heads * Checked(t.coded_blocks) * Checked(block_keys) * dim : Checked(0);
  t.k_codes_at = areas.add(codes);
  t.v_codes_at = areas.add(codes * Checked(value_bytes(plan.compute)));
  t.k_scales_at = areas.add(low ? heads * Checked(t.coded_blocks) * Checked(4) : Checked(0));
  const Checked vectors = low ? Checked(p.batch) * heads * dim * Checked(4) : Checked(0);
  t.v_most_at = areas.add(vectors);
  t.smoothing_at = areas.add(vectors);
}

// Where an audit's rows and its scratch are.
void place_audit(const Plan& plan, Tables& made, Areas& areas) {
  const sale_problem& p = plan.problem;
  int64_t rows = 0, row_bytes = 0;
  for (const sale::Sequence& s : plan.sequences) {
    rows = std::max(rows, s.audited);
    row_bytes = std::max(row_bytes, int64_t{p.q_heads} * audit_ranges(s.sight.k_len).ranges * (p.head_dim + 3) * 4);
  }
  made.audit_slice = std::clamp<int64_t>(slice_bytes / row_bytes, 1, std::max<int64_t>(rows, 1));
  const Checked heads = Checked(rows == 0 ? 0 : p.batch) * Checked(p.q_heads);
  made.audit_rows_at = areas.add(heads * Checked(plan.audit) * Checked(int64_t{sizeof(AuditedRow)}));
  made.audits_at = areas.add(heads * Checked(int64_t{sizeof(sale_head_audit)}));
  made.audit_partials_at = areas.add(rows == 0 ? 0 : made.audit_slice * row_bytes);
}

}  // namespace

AuditRanges audit_ranges(int64_t k_len) {
  // Steps of 128 keys; a range begins where a word of block bits does.
  constexpr int64_t word_steps = 16, most_ranges = 32;
  const int64_t words = ceil_div(k_len, 128 * word_steps), ranges = std::min(words, most_ranges);
  return {static_cast<int32_t>(ranges), ceil_div(words, ranges) * word_steps};
}

void place_scratch(const Architecture& a, Plan& plan, Areas& areas) {
  const sale_problem& p = plan.problem;
  Tables& made = tables_of(plan);
  made.counter_at = areas.add(4);
  made.counts_at = areas.add(int64_t{p.batch} * p.q_heads * 8);
  const bool low = plan.compute != SALE_COMPUTE_EXACT,
             indexes =
                 std::any_of(plan.sequences.begin(), plan.sequences.end(), [](const auto& s) { return s.indexed; });
  made.index_scratch_at = areas.add(indexes || low ? static_cast<int64_t>(a.index_scratch(p.kv_heads, p.head_dim)) : 0);
  int64_t longest = 0;
  for (const sale::Sequence& s : plan.sequences) longest = std::max(longest, s.sight.k_len);
  made.uncoded_at = areas.add(plan.paged_index() ? uncoded_bytes(longest) : 0);
  place_stand_ins(plan, made, areas);
  place_audit(plan, made, areas);
}

// ---- index ----------------------------------------------------------------------------------------------------------

// Codes [kv_heads, keys rounded up to 32, width], scales [kv_heads, blocks, scales of a block] or [kv_heads],
// smoothing.
IndexMap index_map(const Architecture& a, int32_t kv_heads, int32_t head_dim, const Form& form, int64_t keys) {
  const auto aligned = [](int64_t n) { return static_cast<size_t>(round_up(n, area_alignment)); };
  const int64_t blocks = Sight::blocks_of(keys), scales = a.scales(form);
  const size_t heads = static_cast<size_t>(kv_heads);
  IndexMap m{};
  m.head_codes = aligned(blocks * block_keys * a.width(form));
  m.head_scales = scales == 0 ? 4 : aligned(blocks * scales * 4);
  m.scales_at = m.head_codes * heads;
  m.smoothing_at = m.scales_at + aligned(static_cast<int64_t>(m.head_scales * heads));
  m.total = m.smoothing_at + aligned(int64_t{kv_heads} * head_dim * 4);
  return m;
}

IndexParts parts_of(const Layer& layer, const IndexMap& m, char* base) {
  const LayerTables& t = tables_of(layer);
  const auto floats = [&](size_t at) { return reinterpret_cast<float*>(base + at); };
  const bool given = t.key_scales != nullptr;
  return {reinterpret_cast<uint8_t*>(base + m.codes_at), given ? t.key_scales : floats(m.scales_at),
          t.smoothing != nullptr ? t.smoothing : floats(m.smoothing_at), static_cast<int64_t>(m.head_codes),
          given ? 1 : static_cast<int64_t>(m.head_scales / 4)};
}

void open_index(const Architecture&, sale_index& index) {
  if (index.capacity > max_keys) fail(SALE_UNSUPPORTED, "capacity: ", index.capacity, " exceeds 2^21 keys a sequence");
  index.state = std::make_shared<IndexState>();
}

void update_index(const Architecture& a, sale_index& index, const IndexUpdate& u) {
  const Layer& layer = *index.layer;
  device_space.check("k", u.k, layer.device);
  if (u.pages != nullptr) device_space.check("pages", u.pages, layer.device);
  require(reinterpret_cast<uintptr_t>(u.k) % 16 == 0, "k: not aligned to 16 bytes");
  for (const int64_t stride : {u.strides.token, u.strides.head, u.pages != nullptr ? u.strides.batch : 0})
    require(stride % 8 == 0, "k strides: ", stride, " is not a multiple of 8");
  const int64_t first = index.length / block_keys * block_keys;
  if (first == u.k_len) return;  // whole blocks, and nothing new
  const Tokens k{u.k, u.strides.head, u.strides.token, index.page_size, u.strides.batch, u.pages};
  IndexCall call = index_call(a, layer, k, parts_of(layer, index.map, index.part(0)));
  call.k_len = u.k_len;
  call.first_key = first;
  call.fix = !index.fixed;
  call.smoothing_given = index.smoothed;
  call.scratch = index.part(index.map.total);
  const Current current(layer.device);
  must(a.index(call, static_cast<cudaStream_t>(u.stream)), "launching the key index");
}

void read_codes(const Architecture& a, const sale_index& index, int32_t head, const int8_t** codes,
                const float** scales, const float** smoothing) {
  IndexState& mine = *static_cast<IndexState*>(index.state.get());
  const Layer& layer = *index.layer;
  const int64_t rank = layer.form.rank, width = a.width(layer.form), d = layer.head_dim;
  const int64_t blocks = Sight::blocks_of(index.length);
  const IndexParts parts = parts_of(layer, index.map, index.part(0));
  const auto read = [&](void* to, const void* from, int64_t bytes) {
    if (bytes != 0) device_space.read(to, from, static_cast<size_t>(bytes), layer.device);
  };
  mine.raw.resize(static_cast<size_t>(blocks * block_keys * width));
  read(mine.raw.data(), parts.codes + parts.codes_head * head, blocks * block_keys * width);
  mine.codes.resize(static_cast<size_t>(index.length * rank));
  for (int64_t j = 0; j < index.length; ++j) a.decode(mine.raw.data(), j, layer.form, mine.codes.data() + j * rank);
  const int64_t of_block = a.scales(layer.form), n = of_block == 0 ? 1 : blocks * of_block;
  mine.scales.resize(static_cast<size_t>(n));
  read(mine.scales.data(), parts.scales + parts.scales_head * head, n * 4);
  mine.smoothing.resize(static_cast<size_t>(d));
  read(mine.smoothing.data(), parts.smoothing + head * d, d * 4);
  if (codes != nullptr) *codes = mine.codes.data();
  if (scales != nullptr) *scales = mine.scales.data();
  if (smoothing != nullptr) *smoothing = mine.smoothing.data();
}

}  // namespace sale::cuda
