#include "cuda/sm90/tables.hpp"

#include <algorithm>
#include <cstring>

#include "core/checked.hpp"

namespace sale::sm90 {
namespace {

constexpr int64_t slice_bytes = int64_t{256} << 20;  // of coded queries, or of partial audits, at a time

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

// [kv_heads, width, head_dim], transposed; rows beyond rank are 0.
std::vector<uint16_t> transposed(const Plan& plan) {
  const sale::Estimator& e = plan.estimator;
  const int64_t d = plan.problem.head_dim, width = width_of(e);
  std::vector<uint16_t> t(static_cast<size_t>(plan.problem.kv_heads * width * d), 0);
  for (int64_t h = 0; h < plan.problem.kv_heads; ++h)
    for (int64_t a = 0; a < d; ++a)
      for (int64_t c = 0; c < e.rank; ++c) {
        const float x = e.q_projection[static_cast<size_t>((h * d + a) * e.rank + c)];
        t[static_cast<size_t>((h * width + c) * d + a)] = plan.problem.dtype == SALE_BF16 ? to_bf16(x) : to_f16(x);
      }
  return t;
}

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
  std::shared_ptr<void> send(int32_t device, size_t room = 0) const {
    std::shared_ptr<void> memory = device_space.allocate(size() + room, device);
    if (!bytes_.empty()) device_space.write(memory.get(), bytes_.data(), bytes_.size(), device);
    return memory;
  }
  size_t size() const { return (bytes_.size() + 255) / 256 * 256; }

private:
  std::vector<char> bytes_;
};

template <class T>
const T* part(const std::shared_ptr<void>& memory, size_t at) {
  return reinterpret_cast<const T*>(static_cast<const char*>(memory.get()) + at);
}

// Means of blocks, and keys and values in 8 bits: whole blocks of every sequence side by side, the coded means after
// them.
void place_stand_ins(const Plan& plan, Tables& t, Areas& areas) {
  const sale_problem& p = plan.problem;
  const bool low = plan.compute == SALE_COMPUTE_FP8;
  t.blocks = 0;
  for (const sale::Sequence& s : plan.sequences) {
    t.block_at.push_back(t.blocks);
    t.blocks += ceil_div(s.k_len, block_keys);
  }
  t.coded_blocks = t.blocks;
  for (const sale::Sequence& s : plan.sequences) {
    t.mean_block_at.push_back(t.coded_blocks);
    if (plan.compensate) t.coded_blocks += coded_mean_blocks(s.k_len);
  }
  const Checked heads(p.kv_heads), dim(p.head_dim);
  const Checked means = plan.compensate ? heads * Checked(t.blocks) * dim * Checked(2) : Checked(0);
  t.k_means_at = areas.add(means);
  t.v_means_at = areas.add(means);
  const Checked codes = low ? heads * Checked(t.coded_blocks) * Checked(block_keys) * dim : Checked(0);
  t.k_codes_at = areas.add(codes);
  t.v_codes_at = areas.add(codes);
  t.k_scales_at = areas.add(low ? heads * Checked(t.coded_blocks) * Checked(4) : Checked(0));
  const Checked vectors = low ? Checked(p.batch) * heads * dim * Checked(4) : Checked(0);
  t.v_most_at = areas.add(vectors);
  t.smoothing_at = areas.add(vectors);
}

}  // namespace

int32_t width_of(const sale::Estimator& e) { return !e.projected ? e.rank : e.rank <= 28 ? 32 : 64; }

// Codes [kv_heads, keys rounded up to 32, width], scales (INT8 [kv_heads, blocks], FP8 [kv_heads]), smoothing.
IndexMap index_map(int32_t kv_heads, int32_t head_dim, const sale::Estimator& e, int64_t keys) {
  const auto aligned = [](int64_t n) { return static_cast<size_t>(round_up(n, area_alignment)); };
  const int64_t blocks = ceil_div(keys, block_keys);
  const size_t heads = static_cast<size_t>(kv_heads);
  IndexMap m{};
  m.head_codes = aligned(blocks * block_keys * width_of(e));
  m.head_scales = e.format == SALE_FP8 ? 4 : aligned(blocks * 4);
  m.scales_at = m.head_codes * heads;
  m.smoothing_at = m.scales_at + aligned(static_cast<int64_t>(m.head_scales * heads));
  m.total = m.smoothing_at + aligned(int64_t{kv_heads} * head_dim * 4);
  return m;
}

Estimator estimator_of(const sale::Estimator& e, const float* k_projection, const uint16_t* q_projection) {
  return {e.format, e.rank, width_of(e), k_projection, q_projection};
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

void make_tables(Plan& plan, const sale_options&, Areas& areas) {
  const sale_problem& p = plan.problem;
  auto made = std::make_shared<Tables>();
  made->device = open_device(p.device);
  if (p.page_size != 0) device_space.check("page_table", p.page_table, p.device);
  Upload upload;
  const size_t items_at = upload.add(make_items(plan, made->groups));
  std::vector<int64_t> row_word, audited;
  for (const sale::Sequence& s : plan.sequences) {
    made->row_word_at.push_back(static_cast<int64_t>(row_word.size()));
    made->audited_at.push_back(static_cast<int64_t>(audited.size()));
    row_word.insert(row_word.end(), s.row_word.begin(), s.row_word.end());
    audited.insert(audited.end(), s.audited.begin(), s.audited.end());
  }
  const size_t row_word_at = upload.add(row_word), thresholds_at = upload.add(plan.thresholds);
  const size_t audited_at = upload.add(audited);
  const bool projected = plan.estimator.projected;
  const size_t k_at = upload.add(plan.estimator.k_projection);
  const size_t q_at = projected ? upload.add(transposed(plan)) : 0;
  made->memory = upload.send(p.device);
  made->items = part<Item>(made->memory, items_at);
  made->row_word = part<int64_t>(made->memory, row_word_at);
  made->audited = part<int64_t>(made->memory, audited_at);
  made->thresholds = part<float>(made->memory, thresholds_at);
  made->k_projection = projected ? part<float>(made->memory, k_at) : nullptr;
  made->q_projection = projected ? part<uint16_t>(made->memory, q_at) : nullptr;

  int64_t most_items = 1;
  for (const Group& g : made->groups) most_items = std::max<int64_t>(most_items, g.items);
  const Estimator e = estimator_of(plan.estimator, nullptr, nullptr);
  const SelectScratch one = select_scratch(e, p.q_heads, 1);
  made->slice = std::clamp<int64_t>(slice_bytes / static_cast<int64_t>(one.q_codes + one.row_limits), 1, most_items);
  const bool all_dense =
      std::all_of(plan.sequences.begin(), plan.sequences.end(), [](const auto& s) { return s.dense; });
  const SelectScratch scratch = all_dense ? SelectScratch{} : select_scratch(e, p.q_heads, made->slice);
  made->q_codes_at = areas.add(static_cast<int64_t>(scratch.q_codes));
  made->row_limits_at = areas.add(static_cast<int64_t>(scratch.row_limits));
  made->counter_at = areas.add(4);
  made->counts_at = areas.add(int64_t{p.batch} * p.q_heads * 8);
  const bool low = plan.compute == SALE_COMPUTE_FP8, indexes = !plan.with_index && !all_dense;
  made->index_scratch_at =
      areas.add(indexes || low ? static_cast<int64_t>(index_scratch_bytes(p.kv_heads, p.head_dim)) : 0);
  place_stand_ins(plan, *made, areas);
  place_audit(plan, *made, areas);
  plan.state = std::move(made);
}

std::string explain(const Plan& plan) {
  const Tables& t = tables_of(plan);
  int64_t items = 0;
  for (const Group& g : t.groups) items += g.items;
  return text("device     ", t.device.ordinal, ", ", t.device.multiprocessors, " multiprocessors\n",  //
              "items      ", items, " query tiles x ", plan.problem.q_heads, " query heads in ", t.groups.size(),
              " launches, selected ", t.slice, " tiles at a time\n");
}

void open_index(sale_index& index, const sale_options&) {
  const sale_problem& p = index.problem;
  if (index.capacity > max_keys) fail(SALE_UNSUPPORTED, "capacity: ", index.capacity, " exceeds 2^21 keys a sequence");
  auto made = std::make_shared<IndexState>();
  made->device = open_device(p.device);
  Upload upload;
  const size_t at = upload.add(index.estimator.k_projection), scratch = index_scratch_bytes(p.kv_heads, p.head_dim);
  made->memory = upload.send(p.device, scratch);
  made->k_projection = index.estimator.projected ? part<float>(made->memory, at) : nullptr;
  made->scratch = static_cast<char*>(made->memory.get()) + upload.size();
  index.bytes += upload.size() + scratch;
  index.state = std::move(made);
}

void update_index(sale_index& index, const IndexUpdate& u) {
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
  call.estimator = estimator_of(index.estimator, mine.k_projection, nullptr);
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
  must(launch_index(call, static_cast<cudaStream_t>(u.stream)), "launching the key index");
}

void read_codes(const sale_index& index, int32_t head, const int8_t** codes, const float** scales,
                const float** smoothing) {
  IndexState& mine = *static_cast<IndexState*>(index.state.get());
  const sale_problem& p = index.problem;
  const int64_t rank = index.estimator.rank, width = width_of(index.estimator), d = p.head_dim;
  const int64_t blocks = ceil_div(index.length, block_keys);
  const size_t h = static_cast<size_t>(head);
  const auto read = [&](void* to, size_t at, int64_t bytes) {
    if (bytes != 0) device_space.read(to, index.part(at), static_cast<size_t>(bytes), p.device);
  };
  mine.raw.resize(static_cast<size_t>(blocks * block_keys * width));
  read(mine.raw.data(), index.map.codes_at + index.map.head_codes * h, blocks * block_keys * width);
  mine.codes.resize(static_cast<size_t>(index.length * rank));
  for (int64_t j = 0; j < index.length; ++j)
    for (int64_t c = 0; c < rank; ++c)
      mine.codes[static_cast<size_t>(j * rank + c)] =
          static_cast<int8_t>(mine.raw[static_cast<size_t>(code_offset(j, c, width))]);
  const int64_t n = index.estimator.format == SALE_FP8 ? 1 : blocks;
  mine.scales.resize(static_cast<size_t>(n));
  read(mine.scales.data(), index.map.scales_at + index.map.head_scales * h, n * 4);
  mine.smoothing.resize(static_cast<size_t>(d));
  read(mine.smoothing.data(), index.map.smoothing_at + h * static_cast<size_t>(d) * 4, d * 4);
  if (codes != nullptr) *codes = mine.codes.data();
  if (scales != nullptr) *scales = mine.scales.data();
  if (smoothing != nullptr) *smoothing = mine.smoothing.data();
}

}  // namespace sale::sm90
