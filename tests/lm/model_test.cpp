#include "lm/model.hpp"

#include "lm/prompts.hpp"
#include "lm/safetensors.hpp"
#include "support.hpp"

namespace sale::lm {
namespace {

struct Difference {
  double mean = 0, most = 0;
};
Difference difference(std::span<const float> a, std::span<const float> b) {
  Difference d;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double x = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    EXPECT_FALSE(std::isnan(x));
    d.mean += x / static_cast<double>(a.size());
    d.most = std::max(d.most, x);
  }
  return d;
}

std::vector<float> rows_of(const ForwardResult& result, const Reference& reference) {
  std::vector<float> out;
  for (int32_t row : reference.rows) {
    const auto begin = result.logits.begin() + row * reference.vocab;
    out.insert(out.end(), begin, begin + reference.vocab);
  }
  return out;
}

std::vector<float> run(Model& model, const Reference& reference, int64_t chunk = 0) {
  KVCache cache(model.config(), ssize_of(reference.ids));
  PlainAttention attention;
  return rows_of(model.forward(reference.ids, cache, attention, {.logits = Logits::all, .chunk = chunk}), reference);
}

Model bundled(Compute compute = Compute::automatic, int threads = 2) {
  return Model::load(kModelDir, threads, compute);
}

// Attention's tensors are bf16 in both: over eight layers that rounding turns differences of 1e-6 into differences of
// its own size (0.0075 on average, in transformers too), over one layer it does not.
TEST(Model, F32AgreesWithTransformers) {
  const Reference reference(kDataDir / "logits.bin");
  Model model = bundled(Compute::f32);
  const auto logits = run(model, reference);
  const Difference same = difference(logits, reference.fp32_bf16_attention), pure = difference(logits, reference.fp32);
  RecordProperty("mean_abs_bf16_attention", std::to_string(same.mean));
  RecordProperty("mean_abs_fp32", std::to_string(pure.mean));
  EXPECT_LT(same.mean, 0.01);
  EXPECT_LT(pure.mean, 0.012);
}

// The bundled model's first layer alone.
Model one_layer(const Scratch& scratch) {
  std::filesystem::create_symlink(std::filesystem::absolute(kModelDir / "model.safetensors"),
                                  scratch.path() / "model.safetensors");
  std::string config = slurp(kModelDir / "config.json");
  config[config.find("\"num_hidden_layers\": 8") + 21] = '1';
  scratch.write("config.json", config);
  return Model::load(scratch.path(), 2, Compute::f32);
}

TEST(Model, OneLayerInF32AgreesStrictly) {
  const Scratch scratch;
  const Reference reference(kDataDir / "logits_1.bin");
  Model model = one_layer(scratch);
  ASSERT_EQ(model.config().layers, 1);
  const Difference d = difference(run(model, reference), reference.fp32_bf16_attention);
  RecordProperty("mean_abs", std::to_string(d.mean));
  EXPECT_LT(d.mean, 5e-4);
  EXPECT_LT(d.most, 5e-3);
}

TEST(Model, Bf16IsAsCloseAsTransformersBf16) {
  if (resolve(Compute::automatic) != Compute::bf16) GTEST_SKIP() << "no bf16 products on this CPU";
  const Reference reference(kDataDir / "logits.bin");
  Model model = bundled();
  const Difference d = difference(run(model, reference), reference.fp32);
  RecordProperty("mean_abs_fp32", std::to_string(d.mean));
  EXPECT_LT(d.mean, 0.03);  // transformers in bf16: 0.026 on average, 0.13 at most (data/logits.json)
  EXPECT_LT(d.most, 0.35);
}

TEST(Model, ShardedQwen2WithBiasesAndYarn) {
  const Reference reference(kDataDir / "tiny_qwen2.bin");
  Model model = Model::load(kDataDir / "tiny_qwen2", 3, Compute::f32);
  const Difference d = difference(run(model, reference), reference.fp32_bf16_attention);
  EXPECT_LT(d.mean, 2e-3);
  EXPECT_LT(d.most, 4e-2);
}

TEST(Model, Qwen3WithNormsAndMistralWithAWindow) {
  for (const char* name : {"tiny_qwen3", "tiny_mistral"}) {
    SCOPED_TRACE(name);
    const Reference reference(kDataDir / (std::string(name) + ".bin"));
    Model model = Model::load(kDataDir / name, 3, Compute::f32);
    const Difference d = difference(run(model, reference), reference.fp32_bf16_attention);
    EXPECT_LT(d.mean, 2e-3);
    EXPECT_LT(d.most, 4e-2);
  }
}

// Q8_0, rows of q and k in pairs, against transformers with the same weights.
TEST(Model, GgufLlama) {
  const Reference reference(kDataDir / "tiny_llama.bin");
  Model model = Model::load(kDataDir / "tiny_llama.gguf", 2, Compute::f32);
  EXPECT_EQ(model.config().head_dim, 16);
  EXPECT_EQ(model.config().bos, 1);
  EXPECT_EQ(model.config().eos, std::vector<int32_t>{2});
  const Difference d = difference(run(model, reference), reference.fp32_bf16_attention);
  EXPECT_LT(d.mean, 2e-3);
  EXPECT_LT(d.most, 4e-2);
}

// Tensors of the bundled model's file, changed and written to a folder of their own.
class Changed {
public:
  Changed() : file_(SafeTensors::open(kModelDir)) {
    for (const std::string& name : file_.names()) {
      const Tensor& t = file_.get(name);
      tensors_.push_back({name, t.dtype, t.shape, t.bytes});
    }
    scratch_.write("config.json", slurp(kModelDir / "config.json"));
  }
  std::vector<NamedTensor>& tensors() { return tensors_; }
  Model load() {
    write_safetensors(scratch_.path() / "model.safetensors", tensors_);
    return Model::load(scratch_.path(), 2, Compute::f32);
  }

private:
  Scratch scratch_;
  SafeTensors file_;
  std::vector<NamedTensor> tensors_;
};

std::vector<float> last_logits(Model& model) {
  KVCache cache(model.config(), 8);
  PlainAttention attention;
  return model.forward(std::vector<int32_t>{0, 300, 400, 7}, cache, attention).logits;
}

TEST(Model, FoldersAsTransformersReadsThem) {
  Model plain = Model::load(kModelDir, 2, Compute::f32);
  const std::vector<float> usual = last_logits(plain);
  const std::vector<std::byte> zeros(16);
  {
    Changed unused;
    unused.tensors().push_back({"model.layers.0.self_attn.some_buffer", DType::boolean, {16}, zeros});
    Model model = unused.load();
    EXPECT_EQ(last_logits(model), usual);
  }
  {
    Changed flat;  // a checkpoint of the bare model
    for (NamedTensor& t : flat.tensors()) t.name = t.name.substr(std::string_view("model.").size());
    Model model = flat.load();
    EXPECT_EQ(last_logits(model), usual);
  }
  {
    Changed headed;  // tied, it says, but there is a head: rows of the embedding in the other order
    const SafeTensors file = SafeTensors::open(kModelDir);
    const auto from = file.get("model.embed_tokens.weight").bytes;
    std::vector<std::byte> reversed(from.size());
    const size_t row = reversed.size() / 4096;
    for (size_t i = 0; i < 4096; ++i)
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(i * row), row,
                  reversed.end() - static_cast<std::ptrdiff_t>((i + 1) * row));
    headed.tensors().push_back({"lm_head.weight", DType::bf16, {4096, 448}, reversed});
    Model model = headed.load();
    std::vector<float> logits = last_logits(model);
    std::reverse(logits.begin(), logits.end());
    EXPECT_LT(difference(logits, usual).most, 1e-3);
  }
}

constexpr int64_t chunks[] = {1, 7, 128, 299, 1000};

// oneDNN may sum in another order for another number of rows (it does with AVX2, not with AVX-512): 1e-6, which eight
// layers of bf16 attention tensors blow up to the size of bf16's own rounding, as above. One layer is held to more.
TEST(Model, OneLayerChunkedEqualsWholeStrictly) {
  const Scratch scratch;
  const Reference reference(kDataDir / "logits_1.bin");
  Model model = one_layer(scratch);
  const auto whole = run(model, reference);
  for (const int64_t chunk : chunks) {
    const Difference d = difference(run(model, reference, chunk), whole);
    EXPECT_LT(d.mean, 5e-4) << chunk;
    EXPECT_LT(d.most, 5e-3) << chunk;
  }
}

TEST(Model, ChunkedEqualsWhole) {
  const Reference reference(kDataDir / "logits.bin");
  const double rounding = difference(reference.fp32_bf16_attention, reference.fp32).mean;
  for (const Compute compute : {Compute::f32, Compute::automatic}) {
    Model model = bundled(compute);
    const auto whole = run(model, reference);
    for (const int64_t chunk : chunks) {
      const Difference d = difference(run(model, reference, chunk), whole);
      EXPECT_LT(d.mean, resolve(compute) == Compute::f32 ? rounding : 0.02) << chunk;
    }
  }
}

TEST(Model, ThreadCountDoesNotChangeABit) {
  const Reference reference(kDataDir / "logits.bin");
  Model one = bundled(Compute::automatic, 1), three = bundled(Compute::automatic, 3);
  EXPECT_EQ(run(one, reference), run(three, reference));
}

TEST(Model, LogitChoicesAgree) {
  const Reference reference(kDataDir / "logits.bin");
  Model model = bundled(Compute::f32);
  const int64_t n = ssize_of(reference.ids), vocab = reference.vocab;
  std::vector<int32_t> targets(reference.ids.begin() + 1, reference.ids.end());
  targets.push_back(-1);
  PlainAttention attention;
  const auto with = [&](Logits what, int64_t chunk) {
    KVCache cache(model.config(), n);
    return model.forward(reference.ids, cache, attention, {.logits = what, .targets = targets, .chunk = chunk});
  };
  const auto all = with(Logits::all, 0), last = with(Logits::last, 100), none = with(Logits::none, 0);
  const auto target = with(Logits::targets, 90);
  EXPECT_LT(difference(last.logits, std::span(all.logits).last(at(vocab))).mean, 2e-3);
  EXPECT_TRUE(none.logits.empty());
  double total = 0;
  for (int64_t row = 0; row + 1 < n; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(all.logits[at(row * vocab + i)]));
    EXPECT_NEAR(target.log_probs[at(row)], all.logits[at(row * vocab + targets[at(row)])] - std::log(sum), 0.05);
    total += static_cast<double>(target.log_probs[at(row)]);
  }
  EXPECT_EQ(target.log_probs.back(), 0.0f);
  const double perplexity = std::exp(-total / static_cast<double>(n - 1));
  EXPECT_GT(perplexity, 3.0);
  EXPECT_LT(perplexity, 60.0);
}

TEST(Model, TruncatingAndGoingOnGivesTheSame) {
  const Reference reference(kDataDir / "logits.bin");
  Model model = bundled(Compute::f32);
  PlainAttention attention;
  KVCache cache(model.config(), 400);
  const auto head = std::span(reference.ids).first(200), tail = std::span(reference.ids).subspan(200, 50);
  model.forward(head, cache, attention, {.logits = Logits::none});
  const auto first = model.forward(tail, cache, attention).logits;
  EXPECT_EQ(cache.length(), 250);
  cache.truncate(200);
  EXPECT_EQ(model.forward(tail, cache, attention).logits, first);
  expect_error([&] { cache.truncate(251); }, {"251", "250"});
  expect_error([&] { cache.truncate(-1); }, {"-1"});
}

TEST(Model, AnswersANeedleAtTwoThousandTokens) {
  const Tokenizer tokenizer = Tokenizer::load(kModelDir);
  const std::string book = slurp(kModelDir / "../text/moby_dick.txt");
  ASSERT_GT(book.size(), 100'000u);
  Model model = bundled();
  PlainAttention attention;
  const Prompt needles = needle_prompt(tokenizer, book, {.tokens = 2000, .facts = 2, .depths = {0.2, 0.7}, .seed = 11});
  const Prompt json = json_prompt(tokenizer, {.tokens = 700, .facts = 1, .depths = {}, .seed = 12});
  for (const Prompt& prompt : {needles, json}) {
    KVCache cache(model.config(), 2048);
    model.forward(prompt.context, cache, attention, {.logits = Logits::none});
    for (const Fact& fact : prompt.facts) {
      const auto made = generate_greedy(model, fact.question, cache, attention, {.max_tokens = 12});
      EXPECT_TRUE(answers(fact, tokenizer.decode(made.ids)))
          << fact.question_text << tokenizer.decode(made.ids) << " | " << fact.answer;
      cache.truncate(ssize_of(prompt.context));
    }
  }
}

TEST(Model, GenerationStops) {
  Model model = bundled();
  PlainAttention attention;
  KVCache cache(model.config(), 100);
  const std::vector<int32_t> prompt = {0, 100, 200};
  const auto free = generate_greedy(model, prompt, cache, attention, {.max_tokens = 6});
  ASSERT_EQ(free.ids.size(), 6u);
  EXPECT_EQ(cache.length(), 3 + 5);
  cache.truncate(0);
  EXPECT_TRUE(generate_greedy(model, prompt, cache, attention, {.max_tokens = 6, .stop = {free.ids[0]}}).ids.empty());
  cache.truncate(0);
  EXPECT_EQ(
      generate_greedy(model, prompt, cache, attention, {.max_tokens = 6, .on_token = [](int32_t) { return false; }})
          .ids.size(),
      1u);
}

class Failing : public PlainAttention {
public:
  void run(const AttentionCall& call) override {
    if (call.layer == 5) fail("layer five");
    PlainAttention::run(call);
  }
};

TEST(Model, AFailureLeavesTheCacheAsItWas) {
  Model model = bundled();
  KVCache cache(model.config(), 64);
  Failing failing;
  PlainAttention good;
  const std::vector<int32_t> tokens = {0, 5, 6, 7};
  model.forward(tokens, cache, good);
  expect_error([&] { model.forward(tokens, cache, failing); }, {"layer five"});
  EXPECT_EQ(cache.length(), 4);
  EXPECT_EQ(failing.truncated_to, 4);
}

TEST(Model, WrongArguments) {
  Model model = bundled();
  PlainAttention attention;
  KVCache cache(model.config(), 8);
  const auto forward = [&](std::vector<int32_t> ids, ForwardOptions options = {}) {
    model.forward(ids, cache, attention, options);
  };
  expect_error([&] { forward({}); }, {"no tokens"});
  expect_error([&] { forward({1, 4096}); }, {"token 1", "4096", "4095"});
  expect_error([&] { forward({-1}); }, {"-1"});
  expect_error([&] { forward(std::vector<int32_t>(9, 1)); }, {"room for 8"});
  expect_error([&] { forward({1}, {.chunk = -1}); }, {"chunk", "-1"});
  expect_error([&] { forward({1}, {.logits = Logits::targets}); }, {"0 targets for 1"});
  expect_error([&] { KVCache(model.config(), 131073); }, {"131073", "131072", "max_position_embeddings"});
  expect_error([&] { KVCache(model.config(), 0); }, {"KV cache of 0"});
  expect_error([&] { Model::load(kModelDir, 0); }, {"threads is 0"});
  KVCache full(model.config(), 131072);
  expect_error([&] { model.forward(std::vector<int32_t>(131073, 1), full, attention); },
               {"131073", "131072", "max_position_embeddings"});
  EXPECT_EQ(attention.calls, 0);
}

TEST(Model, WrongShapesInTheFolderAreNamed) {
  const Scratch scratch;
  std::filesystem::create_symlink(std::filesystem::absolute(kModelDir / "model.safetensors"),
                                  scratch.path() / "model.safetensors");
  std::string config = slurp(kModelDir / "config.json");
  config.replace(config.find("1152"), 4, "1151");
  scratch.write("config.json", config);
  expect_error([&] { Model::load(scratch.path(), 1); }, {"gate_proj", "[1152, 448]", "[1151, 448]"});
}

}  // namespace
}  // namespace sale::lm
