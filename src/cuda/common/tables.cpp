#include "cuda/common/tables.hpp"

#include <algorithm>
#include <cstring>

#include "core/checked.hpp"

namespace sale::cuda {
namespace {

// Longest first, so that the last items to be taken are short; ties in a fixed order.
std::vector<Item> make_items(const Plan& plan, std::vector<Group>& groups) {
  std::vector<Item> items;
  const int32_t batch = plan.problem.batch;
  for (int32_t first = 0; first < batch; first += max_sequences) {
    Group g{first, std::min(max_sequences, batch - first), static_cast<int64_t>(items.size()), 0};
    for (int32_t b = 0; b < g.sequences; ++b) {
      const sale::Sequence& s = plan.sequences[static_cast<size_t>(first + b)];
      for (int64_t t = 0; t < s.tiles; ++t) items.push_back({b, static_cast<int32_t>(t)});
    }
    const int64_t n = static_cast<int64_t>(items.size()) - g.first_item;
    if (n * plan.problem.q_heads > INT32_MAX)
      fail(SALE_UNSUPPORTED, "problem: ", n, " query tiles x ", plan.problem.q_heads,
           " heads are more than 2^31 - 1 in one launch; split the batch or the heads");
    g.items = static_cast<int32_t>(n);
    std::stable_sort(items.begin() + g.first_item, items.end(), [&](const Item& a, const Item& b) {
      const auto blocks = [&](const Item& i) {
        return plan.sequences[static_cast<size_t>(first + i.sequence)].visible_blocks(i.tile);
      };
      return blocks(a) > blocks(b);
    });
    groups.push_back(g);
  }
  return items;
}

// Means, and keys and values in few bits: whole blocks of every sequence side by side, the coded means after them.
void place_stand_ins(const Plan& plan, Tables& t, Areas& areas) {
  const sale_problem& p = plan.problem;
  const bool low = plan.compute != SALE_COMPUTE_EXACT;
  t.means = t.blocks = 0;
  for (const sale::Sequence& s : plan.sequences) {
    t.mean_at.push_back(t.means);
    t.means += ceil_div(s.k_len, mean_keys);
    t.block_at.push_back(t.blocks);
    t.blocks += ceil_div(s.k_len, block_keys);
  }
  t.coded_blocks = t.blocks;
  for (const sale::Sequence& s : plan.sequences) {
    t.mean_block_at.push_back(t.coded_blocks);
    if (plan.compensate) t.coded_blocks += coded_mean_blocks(s.k_len);
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

}  // namespace

std::shared_ptr<void> Upload::send(int32_t device, size_t room) const {
  std::shared_ptr<void> memory = device_space.allocate(size() + room, device);
  if (!bytes_.empty()) device_space.write(memory.get(), bytes_.data(), bytes_.size(), device);
  return memory;
}

bool all_dense(const Plan& plan) {
  return std::all_of(plan.sequences.begin(), plan.sequences.end(), [](const auto& s) { return s.dense; });
}

// Codes [kv_heads, keys rounded up to 32, width], scales [kv_heads, blocks, scales of a block] or [kv_heads],
// smoothing.
IndexMap index_map(const Architecture& a, int32_t kv_heads, int32_t head_dim, const sale::Estimator& e, int64_t keys) {
  const auto aligned = [](int64_t n) { return static_cast<size_t>(round_up(n, area_alignment)); };
  const int64_t blocks = ceil_div(keys, block_keys), scales = a.scales(e);
  const size_t heads = static_cast<size_t>(kv_heads);
  IndexMap m{};
  m.head_codes = aligned(blocks * block_keys * a.width(e));
  m.head_scales = scales == 0 ? 4 : aligned(blocks * scales * 4);
  m.scales_at = m.head_codes * heads;
  m.smoothing_at = m.scales_at + aligned(static_cast<int64_t>(m.head_scales * heads));
  m.total = m.smoothing_at + aligned(int64_t{kv_heads} * head_dim * 4);
  return m;
}

Estimator estimator_of(const Architecture& a, const sale::Estimator& e, const float* k_projection,
                       const void* q_projection) {
  return {e.format, e.rank, a.width(e), k_projection, q_projection};
}

AuditRanges audit_ranges(int64_t k_len) {
  // Steps of 128 keys; a range begins where a word of block bits does.
  constexpr int64_t word_steps = 16, most_ranges = 32;
  const int64_t words = ceil_div(k_len, 128 * word_steps), ranges = std::min(words, most_ranges);
  return {static_cast<int32_t>(ranges), ceil_div(words, ranges) * word_steps};
}

// Where an audit's rows and its scratch are.
void place_audit(const Plan& plan, Tables& made, Areas& areas) {
  const sale_problem& p = plan.problem;
  int64_t rows = 0, row_bytes = 0;
  for (const sale::Sequence& s : plan.sequences) {
    rows = std::max(rows, static_cast<int64_t>(s.audited.size()));
    row_bytes = std::max(row_bytes, int64_t{p.q_heads} * audit_ranges(s.k_len).ranges * (p.head_dim + 3) * 4);
  }
  made.audit_slice = std::clamp<int64_t>(slice_bytes / row_bytes, 1, std::max<int64_t>(rows, 1));
  const Checked heads = Checked(rows == 0 ? 0 : p.batch) * Checked(p.q_heads);
  made.audit_rows_at = areas.add(heads * Checked(plan.audit) * Checked(int64_t{sizeof(AuditedRow)}));
  made.audits_at = areas.add(heads * Checked(int64_t{sizeof(sale_head_audit)}));
  made.audit_partials_at = areas.add(rows == 0 ? 0 : made.audit_slice * row_bytes);
}

std::shared_ptr<Tables> make_tables(const Architecture& a, const Plan& plan, Areas& areas, Upload& upload) {
  const sale_problem& p = plan.problem;
  auto made = std::make_shared<Tables>();
  made->device = open_device(a.generation, p.device);
  if (p.page_size != 0) device_space.check("page_table", p.page_table, p.device);
  const size_t items_at = upload.add(make_items(plan, made->groups));
  std::vector<int64_t> row_word, audited;
  for (const sale::Sequence& s : plan.sequences) {
    made->row_word_at.push_back(static_cast<int64_t>(row_word.size()));
    made->audited_at.push_back(static_cast<int64_t>(audited.size()));
    row_word.insert(row_word.end(), s.row_word.begin(), s.row_word.end());
    audited.insert(audited.end(), s.audited.begin(), s.audited.end());
  }
  const size_t row_word_at = upload.add(row_word), thresholds_at = upload.add(plan.thresholds);
  const size_t audited_at = upload.add(audited), k_at = upload.add(plan.estimator.k_projection);
  made->memory = upload.send(p.device);
  made->items = part<Item>(made->memory, items_at);
  made->row_word = part<int64_t>(made->memory, row_word_at);
  made->audited = part<int64_t>(made->memory, audited_at);
  made->thresholds = part<float>(made->memory, thresholds_at);
  made->k_projection = plan.estimator.projected ? part<float>(made->memory, k_at) : nullptr;

  made->counter_at = areas.add(4);
  made->counts_at = areas.add(int64_t{p.batch} * p.q_heads * 8);
  const bool low = plan.compute != SALE_COMPUTE_EXACT, indexes = !plan.with_index && !all_dense(plan);
  made->index_scratch_at =
      areas.add(indexes || low ? static_cast<int64_t>(a.index_scratch(p.kv_heads, p.head_dim)) : 0);
  place_stand_ins(plan, *made, areas);
  place_audit(plan, *made, areas);
  return made;
}

void open_index(const Architecture& a, sale_index& index) {
  const sale_problem& p = index.problem;
  if (index.capacity > max_keys) fail(SALE_UNSUPPORTED, "capacity: ", index.capacity, " exceeds 2^21 keys a sequence");
  auto made = std::make_shared<IndexState>();
  made->device = open_device(a.generation, p.device);
  Upload upload;
  const size_t at = upload.add(index.estimator.k_projection), scratch = a.index_scratch(p.kv_heads, p.head_dim);
  made->memory = upload.send(p.device, scratch);
  made->k_projection = index.estimator.projected ? part<float>(made->memory, at) : nullptr;
  made->scratch = static_cast<char*>(made->memory.get()) + upload.size();
  index.bytes += upload.size() + scratch;
  index.state = std::move(made);
}

void update_index(const Architecture& a, sale_index& index, const IndexUpdate& u) {
  const IndexState& mine = *static_cast<const IndexState*>(index.state.get());
  const sale_problem& p = index.problem;
  device_space.check("k", u.k, p.device);
  if (u.pages != nullptr) device_space.check("pages", u.pages, p.device);
  require(reinterpret_cast<uintptr_t>(u.k) % 16 == 0, "k: not aligned to 16 bytes");
  for (const int64_t stride : {u.strides.token, u.strides.head, u.pages != nullptr ? u.strides.batch : 0})
    require(stride % 8 == 0, "k strides: ", stride, " is not a multiple of 8");
  IndexCall call{};
  call.k = {u.k, u.strides.head, u.strides.token, p.page_size, u.strides.batch, u.pages};
  call.dtype = p.dtype;
  call.head_dim = p.head_dim;
  call.kv_heads = p.kv_heads;
  call.estimator = estimator_of(a, index.estimator, mine.k_projection, nullptr);
  call.codes = reinterpret_cast<uint8_t*>(index.part(index.map.codes_at));
  call.scales = reinterpret_cast<float*>(index.part(index.map.scales_at));
  call.smoothing = reinterpret_cast<float*>(index.part(index.map.smoothing_at));
  call.codes_head = static_cast<int64_t>(index.map.head_codes);
  call.scales_head = static_cast<int64_t>(index.map.head_scales / 4);
  call.k_len = u.k_len;
  call.first_key = index.length / block_keys * block_keys;
  call.fix = !index.fixed;
  call.smoothing_given = index.smoothed;
  call.scratch = mine.scratch;
  if (call.first_key == u.k_len) return;  // whole blocks, and nothing new
  const Current current(p.device);
  must(a.index(call, static_cast<cudaStream_t>(u.stream)), "launching the key index");
}

void read_codes(const Architecture& a, const sale_index& index, int32_t head, const int8_t** codes,
                const float** scales, const float** smoothing) {
  IndexState& mine = *static_cast<IndexState*>(index.state.get());
  const sale_problem& p = index.problem;
  const int64_t rank = index.estimator.rank, width = a.width(index.estimator), d = p.head_dim;
  const int64_t blocks = ceil_div(index.length, block_keys);
  const size_t h = static_cast<size_t>(head);
  const auto read = [&](void* to, size_t at, int64_t bytes) {
    if (bytes != 0) device_space.read(to, index.part(at), static_cast<size_t>(bytes), p.device);
  };
  mine.raw.resize(static_cast<size_t>(blocks * block_keys * width));
  read(mine.raw.data(), index.map.codes_at + index.map.head_codes * h, blocks * block_keys * width);
  mine.codes.resize(static_cast<size_t>(index.length * rank));
  for (int64_t j = 0; j < index.length; ++j)
    a.decode(mine.raw.data(), j, index.estimator, mine.codes.data() + j * rank);
  const int64_t of_block = a.scales(index.estimator), n = of_block == 0 ? 1 : blocks * of_block;
  mine.scales.resize(static_cast<size_t>(n));
  read(mine.scales.data(), index.map.scales_at + index.map.head_scales * h, n * 4);
  mine.smoothing.resize(static_cast<size_t>(d));
  read(mine.smoothing.data(), index.map.smoothing_at + h * static_cast<size_t>(d) * 4, d * 4);
  if (codes != nullptr) *codes = mine.codes.data();
  if (scales != nullptr) *scales = mine.scales.data();
  if (smoothing != nullptr) *smoothing = mine.smoothing.data();
}

}  // namespace sale::cuda
