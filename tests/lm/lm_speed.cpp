// lm_speed [threads] [tokens] [text file]: tokenizer and forward pass without attention.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "lm/error.hpp"
#include "lm/model.hpp"
#include "lm/tokenizer.hpp"

namespace {

class NoAttention : public sale::lm::Attention {
public:
  void run(const sale::lm::AttentionCall& call) override {
    for (int64_t i = 0; i < call.q_len * call.out_token_stride; ++i) call.out[i] = call.q[i];
  }
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int measure(int threads, int64_t tokens, const std::string& path) {
  using namespace sale::lm;
  const Tokenizer tokenizer = Tokenizer::load(SALE_MODEL_DIR);
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  double start = now();
  std::vector<int32_t> ids = tokenizer.encode(text);
  double taken = now() - start;
  std::printf("tokenize: %zu bytes, %zu tokens, %.3f s; 65536 tokens: %.3f s\n", text.size(), ids.size(), taken,
              taken * 65536 / static_cast<double>(ids.size()));
  start = now();
  Model model = Model::load(SALE_MODEL_DIR, threads);
  std::printf("load: %.3f s, %s\n", now() - start, model.compute() == Compute::bf16 ? "bf16" : "f32");
  if (ssize_of(ids) < tokens) fail("the text has fewer than ", tokens, " tokens");
  ids.resize(at(tokens));
  NoAttention attention;
  for (int round = 0; round < 3; ++round) {
    KVCache cache(model.config(), tokens + 64);
    const auto result = model.forward(ids, cache, attention);
    const auto made =
        generate_greedy(model, std::vector<int32_t>{1, 2}, cache, attention, {.max_tokens = 50, .stop = {-1}});
    std::printf("forward, %d threads: %ld tokens, %.3f s without attention; decode %.2f ms a token\n", threads,
                static_cast<long>(tokens), result.seconds - result.attention_seconds, made.decode_seconds * 1e3 / 50);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return measure(argc > 1 ? std::atoi(argv[1]) : 2, argc > 2 ? std::atoll(argv[2]) : 16384,
                   argc > 3 ? argv[3] : SALE_MODEL_DIR "/../text/moby_dick.txt");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
