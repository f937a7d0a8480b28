// Raw bytes as problems, layers, options and problem lines: refused or made, never a crash.
//
// First byte odd: the rest is a problem line. Even: the rest is a list of edits (slot, value) to the bytes of a good
// problem, layer and options, so that most inputs are wrong in few places and reach every check. Pointers are put back
// afterwards: what they point to is the caller's promise, its contents come from the input.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "case/instance.hpp"
#include "refused.hpp"
#include "sale/sale.h"

namespace {

class Input {
public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  template <class T>
  T take() {  // zeros once the bytes are used up
    T x{};
    const size_t n = std::min(size_, sizeof x);
    std::memcpy(&x, data_, n);
    data_ += n;
    size_ -= n;
    return x;
  }

private:
  const uint8_t* data_;
  size_t size_;
};

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "args_fuzz: %s\n", what);
  std::abort();
}

// Writes over 4 or 8 bytes of a struct, wherever the input says.
template <class Struct>
void edit(Struct& s, Input& in) {
  const uint8_t what = in.take<uint8_t>();
  const size_t slot = what % (sizeof s / 4) * 4;
  const uint8_t kind = in.take<uint8_t>();
  uint64_t value = in.take<uint8_t>();
  constexpr uint64_t one = 1;
  switch (kind % 6) {
    case 0: break;                  // a small number
    case 1: value = ~value; break;  // a small negative number
    case 2: value = (one << (value % 64)); break;
    case 3: value = (one << (value % 64)) - 1; break;
    case 4: value = in.take<uint32_t>(); break;
    default: value = in.take<uint64_t>(); break;
  }
  const size_t bytes = slot + 8 <= sizeof s && kind >= 128 ? 8 : 4;
  std::memcpy(reinterpret_cast<char*>(&s) + slot, &value, bytes);
}

constexpr size_t most_entries = 65536;  // of anything per sequence or head

struct Lists {
  std::vector<int64_t> q_lens, k_lens, q_offsets, q_starts, k_starts, k_coded;
  std::vector<float> thresholds, q_projection, k_projection, smoothing, key_scales;
  std::string backend;

  // Short input, long list: what was read is repeated.
  template <class T>
  static const T* fill(std::vector<T>& list, Input& in, size_t n) {
    const size_t read = in.take<uint8_t>() % 8 + 1;
    for (size_t i = 0; i < read; ++i) {
      if constexpr (sizeof(T) == 8) {
        list.push_back(in.take<uint8_t>() < 200 ? in.take<uint16_t>() : in.take<T>());
      } else {
        list.push_back(in.take<T>());
      }
    }
    while (list.size() < n) list.push_back(list[list.size() - read]);
    return list.data();
  }

  void put_back(sale_problem& p, sale_layer& l, Input& in) {
    const uint16_t which = in.take<uint16_t>();
    const size_t batch = p.batch > 0 ? std::min(static_cast<size_t>(p.batch), most_entries) : 1;
    p.q_lens = which & 1 ? fill(q_lens, in, batch) : nullptr;
    p.k_lens = which & 2 ? fill(k_lens, in, batch) : nullptr;
    p.q_offsets = which & 4 ? fill(q_offsets, in, batch) : nullptr;
    p.q_starts = which & 8 ? fill(q_starts, in, batch) : nullptr;
    p.k_starts = which & 16 ? fill(k_starts, in, batch) : nullptr;
    p.k_coded = which & 2048 ? fill(k_coded, in, batch) : nullptr;
    const size_t heads = static_cast<size_t>(std::clamp<int64_t>(l.n_thresholds, 1, most_entries));
    l.thresholds = which & 32 ? nullptr : fill(thresholds, in, heads);
    const int64_t sizes[]{l.kv_heads, l.head_dim, l.rank};
    __int128 matrix = 1;
    for (int64_t n : sizes) matrix *= std::max<int64_t>(n, 0);
    const bool small = matrix <= 1 << 20;
    const size_t n = small ? static_cast<size_t>(matrix) : 0;
    l.q_projection = which & 64 && small ? fill(q_projection, in, n) : nullptr;
    l.k_projection = which & 128 && small ? fill(k_projection, in, n) : nullptr;
    // One of the list, or none of it.
    const int32_t backends = sale_backend_count(), one = in.take<uint8_t>() % (backends + 2);
    l.backend = (which & 256) == 0 ? nullptr
                : one < backends   ? sale_backend_name(one)
                : one == backends  ? ""
                                   : "nonsense";
    const int64_t vectors = int64_t{std::max(l.kv_heads, 0)} * std::max(l.head_dim, 0);
    const bool few = vectors <= 1 << 20 && l.kv_heads <= 1 << 20;
    l.smoothing = which & 512 && few ? fill(smoothing, in, static_cast<size_t>(vectors)) : nullptr;
    l.key_scales = which & 1024 && few ? fill(key_scales, in, static_cast<size_t>(std::max(l.kv_heads, 0))) : nullptr;
    // Threads are real: a thousand of them per input would fuzz the kernel, not the library.
    if (l.threads >= 0 && l.threads <= 1024) l.threads = 1 + l.threads % 2;
    l.parallel_for = nullptr;
  }
};

// A good problem of this size takes time and memory in proportion; that is not what is looked for here.
bool laborious(const sale_problem& p) {
  __int128 tiles = 0;
  for (int32_t b = 0; b < p.batch && b < 65536; ++b) {
    const int64_t rows = p.q_lens != nullptr ? p.q_lens[b] : p.q_len;
    tiles += rows > 0 && rows <= (int64_t{1} << 31) ? rows / 64 + 1 : 0;
  }
  return tiles * std::max(p.kv_heads, 1) > 1 << 18;
}

void try_index(const sale_estimator* estimator, Input& in) {
  sale_index_options o{};
  o.struct_size = sizeof o;
  o.capacity = 1 + in.take<uint8_t>();
  if (in.take<uint8_t>() % 4 == 1) edit(o, in);
  // Memory is the caller's promise; sizes that any allocator gives.
  o.memory = nullptr;
  const size_t bytes = sale_index_memory(estimator, o.capacity);
  if (bytes > 1 << 24) return;
  sale_index* const sentinel = reinterpret_cast<sale_index*>(0x40);
  sale_index* index = sentinel;
  const sale_status status = sale_index_create(estimator, &o, &index);
  require(status != SALE_INTERNAL, "an internal error");
  require((status == SALE_OK) == (index != sentinel), "a refusal touched the index");
  if (status != SALE_OK) return;
  require(sale_index_bytes(index) == bytes && sale_index_length(index) == 0, "a new index is not what was said of it");
  sale_index_destroy(index);
}

void try_plan(Input in) {
  sale_problem p = sale_problem_init(4, 2, 64, SALE_BF16, 100, 300);
  p.batch = 2;
  sale_layer l = sale_layer_init(4, 2, 64, SALE_BF16);
  sale_options o = sale_options_init();
  o.dense_below = 0;
  const int edits = in.take<uint8_t>() % 8;
  bool of_layer = false;
  for (int i = 0; i < edits; ++i) {
    const int which = in.take<uint8_t>() % 8;
    if (which == 0) edit(o, in);
    if (which == 2 || which == 4) edit(l, in), of_layer = true;
    if (which % 2 == 1 || which == 6) edit(p, in);
  }
  // Half the time the same of both, so that what is right of a layer meets a problem like it.
  if (in.take<uint8_t>() & 1) {
    if (of_layer)
      p.q_heads = l.q_heads, p.kv_heads = l.kv_heads, p.head_dim = l.head_dim, p.dtype = l.dtype, p.device = l.device;
    else
      l.q_heads = p.q_heads, l.kv_heads = p.kv_heads, l.head_dim = p.head_dim, l.dtype = p.dtype, l.device = p.device;
  }
  Lists lists;
  lists.put_back(p, l, in);
  if (laborious(p)) return;
  for (int32_t i = -1; i <= sale_backend_count(); ++i)
    require(sale_backend_why_not_problem(i, &p, &l, &o) != nullptr, "no reason");
  const auto refused = [&](sale_status status, bool untouched) {
    require(status != SALE_INTERNAL, "an internal error");
    if (status == SALE_OK) return false;
    require(untouched, "a refusal touched the output");
    require(*sale_last_error() != '\0', "a refusal without a message");
    if (edits == 0) sale_fuzz::refused(sale_last_error());
    return true;
  };
  sale_estimator* const no_estimator = reinterpret_cast<sale_estimator*>(0x40);
  sale_estimator* estimator = no_estimator;
  if (refused(sale_estimator_create(&l, &estimator), estimator == no_estimator)) return;
  require(*sale_estimator_backend(estimator) != '\0', "an estimator without a backend");
  try_index(estimator, in);
  const sale_estimator* const one = estimator;
  sale_plan* const no_plan = reinterpret_cast<sale_plan*>(0x40);
  sale_plan* plan = no_plan;
  const sale_status status = sale_plan_create(&p, &o, &one, 1, &plan);
  sale_estimator_destroy(estimator);
  if (refused(status, plan == no_plan)) return;
  sale_workspace w{};
  w.struct_size = sizeof w;
  require(sale_plan_workspace(plan, &w) == SALE_OK, "no workspace of a plan");
  require(w.total == w.tables + w.key_index + w.selection + w.scratch, "workspace parts do not add up");
  require(*sale_plan_explain(plan) != '\0' && *sale_plan_backend(plan) != '\0', "nothing to explain");
  if (w.selection < 1 << 22) {
    sale_blocks* blocks = nullptr;
    require(sale_blocks_create(plan, &blocks) == SALE_OK, "no block list for a plan");
    sale_row_counts first{-1, -1};
    require(sale_blocks_row(blocks, {0, 0, 0}, nullptr, 0, &first) == SALE_OK, "no first row");
    require(first.kept == first.visible && first.kept >= 1, "a new block list is not full");
    sale_csr_counts all{-1, -1};
    require(sale_blocks_csr(blocks, nullptr, 0, nullptr, 0, &all) == SALE_OK, "no rows at all");
    require(all.rows >= 1 && all.kept >= first.kept, "the whole has less than its first row");
    sale_blocks_destroy(blocks);
  }
  sale_plan_destroy(plan);
}

void try_line(const uint8_t* data, size_t size) {
  try {
    const sale_case::Case c = sale_case::parse({reinterpret_cast<const char*>(data), size});
    const std::string line = sale_case::print(c);
    require(sale_case::parse(line) == c, "a line does not read back as it was printed");
    const sale_case::Instance in(c, 1 << 16);
  } catch (const sale_case::Error& e) {
    sale_fuzz::refused(e.what());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  if (data[0] & 1) {
    try_line(data + 1, size - 1);
  } else {
    try_plan(Input(data + 1, size - 1));
  }
  return 0;
}

#if defined(SALE_FUZZ_STANDALONE)
// args_fuzz FILE...        those inputs
// args_fuzz -n COUNT SEED  random ones
#include <fstream>
#include <iterator>

#include "case/random.hpp"

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "-n") {
    sale_case::Random random(std::strtoull(argv[3], nullptr, 10));
    for (long n = std::atol(argv[2]); n > 0; --n) {
      std::vector<uint8_t> bytes(static_cast<size_t>(random.between(1, 200)));
      for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.u64());
      if (bytes[0] & 1) {  // random bytes are no line: a printed one, with a byte or two changed
        const std::string line = sale_case::print(sale_case::random_case(random.u64() >> 8));
        bytes.assign(line.begin(), line.end());
        bytes.insert(bytes.begin(), 1);
        for (int64_t i = random.below(3); i > 0; --i)
          bytes[static_cast<size_t>(random.between(1, static_cast<int64_t>(bytes.size()) - 1))] =
              static_cast<uint8_t>(random.between(32, 126));
      }
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    return 0;
  }
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  return 0;
}
#endif
