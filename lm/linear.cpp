#include "lm/linear.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include <oneapi/dnnl/dnnl.hpp>

#include "lm/buffer.hpp"

namespace sale::lm {
namespace {

using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;

constexpr int64_t kPackRows = 256;          // the row count the packed weight layout is chosen for
constexpr size_t kMaxPrimitives = 64;       // per layer: row counts times epilogues
constexpr int64_t kWorthThreads = 4 << 20;  // weights from here on are worth several threads even for one row

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

// oneDNN takes its thread count from the calling thread's OpenMP setting; it is put back afterwards. Looked up at run
// time so that whichever OpenMP runtime oneDNN brought along is the one that is told.
class OneDnnThreads {
public:
  explicit OneDnnThreads(int threads) : before_(get() ? get()() : 0) {
    if (set()) set()(threads);
  }
  ~OneDnnThreads() {
    if (set() && before_ > 0) set()(before_);
  }
  OneDnnThreads(const OneDnnThreads&) = delete;
  OneDnnThreads& operator=(const OneDnnThreads&) = delete;

private:
  using Get = int (*)();
  using Set = void (*)(int);
  static Get get() {
    static const auto function = reinterpret_cast<Get>(::dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
    return function;
  }
  static Set set() {
    static const auto function = reinterpret_cast<Set>(::dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    return function;
  }
  int before_;
};

void* scratch(size_t bytes) {
  thread_local Buffer<std::byte> buffer;
  buffer.need(static_cast<int64_t>(bytes));
  return buffer.data();
}

struct Ready {
  dnnl::matmul matmul;
  dnnl::memory::desc src, dst, scratchpad;
};

}  // namespace

Compute resolve(Compute wanted) {
  if (wanted != Compute::automatic) return wanted;
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::avx512_core_bf16:
    case dnnl::cpu_isa::avx512_core_amx: return Compute::bf16;
    default: return Compute::f32;
  }
}

struct Linear::State {
  int64_t in, out;
  Type activation;
  dnnl::memory weights, bias;
  std::mutex lock;
  std::map<std::tuple<int64_t, Then, int>, Ready> ready;

  dnnl::matmul::primitive_desc describe(int64_t rows, Then then, const dnnl::memory::desc& packed) const {
    const bool wide = then == Then::store_f32 || then == Then::add_f32;
    const dnnl::memory::desc src({rows, in}, activation, Tag::ab),
        dst({rows, out}, wide ? Type::f32 : activation, Tag::ab);
    dnnl::post_ops after;
    if (then == Then::add_f32) after.append_sum();
    if (then == Then::swish) after.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.0f, 0.0f);
    if (then == Then::multiply) after.append_binary(dnnl::algorithm::binary_mul, dst);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(after);
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (bias) return {dnnl::matmul::desc(src, packed, bias.get_desc(), dst), attributes, engine()};
    return {dnnl::matmul::desc(src, packed, dst), attributes, engine()};
  }

  Ready prepare(int64_t rows, Then then, int threads) {
    const std::lock_guard guard(lock);
    const std::tuple key(rows, then, threads);
    if (const auto it = ready.find(key); it != ready.end()) return it->second;
    if (ready.size() >= kMaxPrimitives) ready.clear();
    const auto description = describe(rows, then, weights.get_desc());
    Ready made{dnnl::matmul(description), description.src_desc(), description.dst_desc(),
               description.scratchpad_desc()};
    return ready.emplace(key, std::move(made)).first->second;
  }
};

Linear::Linear(Compute compute, int64_t in, int64_t out, const std::vector<float>& weights,
               const std::vector<float>& bias)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.in = in;
  s.out = out;
  s.activation = resolve(compute) == Compute::bf16 ? Type::bf16 : Type::f32;
  if (ssize_of(weights) != checked_mul(in, out, "linear layer") || (!bias.empty() && ssize_of(bias) != out))
    fail("linear layer: ", weights.size(), " weights and ", bias.size(), " biases; ", in, " x ", out, " is expected");
  const OneDnnThreads one(1);
  dnnl::stream stream(engine());
  if (!bias.empty()) {
    s.bias = dnnl::memory(dnnl::memory::desc({1, out}, Type::f32, Tag::ab), engine());
    std::memcpy(s.bias.get_data_handle(), bias.data(), bias.size() * sizeof(float));
  }
  const dnnl::memory::desc any({in, out}, s.activation, Tag::any);
  const auto chosen = s.describe(kPackRows, Then::store_f32, any);
  s.weights = dnnl::memory(chosen.weights_desc(), engine());
  // [out][in] as stored is the transpose of what oneDNN multiplies by.
  dnnl::memory plain(dnnl::memory::desc({in, out}, Type::f32, Tag::ba), engine(), const_cast<float*>(weights.data()));
  dnnl::reorder(plain, s.weights).execute(stream, plain, s.weights);
  stream.wait();
}

Linear::~Linear() = default;
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
int64_t Linear::in() const { return state_->in; }
int64_t Linear::out() const { return state_->out; }

void Linear::run(int64_t rows, const void* src, void* dst, Then then, const void* other, int threads) const {
  if (rows == 0) return;
  const int used = state_->in * state_->out >= kWorthThreads ? std::max(threads, 1) : 1;
  const OneDnnThreads guard(used);
  const Ready ready = state_->prepare(rows, then, used);
  const auto memory = [](const dnnl::memory::desc& desc, const void* data) {
    return dnnl::memory(desc, engine(), const_cast<void*>(data));
  };
  std::unordered_map<int, dnnl::memory> arguments{
      {DNNL_ARG_SRC, memory(ready.src, src)},
      {DNNL_ARG_WEIGHTS, state_->weights},
      {DNNL_ARG_DST, memory(ready.dst, dst)},
      {DNNL_ARG_SCRATCHPAD, memory(ready.scratchpad, scratch(ready.scratchpad.get_size()))}};
  if (state_->bias) arguments.emplace(DNNL_ARG_BIAS, state_->bias);
  if (then == Then::multiply)
    arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, memory(ready.dst, other));
  dnnl::stream stream(engine());
  ready.matmul.execute(stream, arguments);
  stream.wait();
}

}  // namespace sale::lm
