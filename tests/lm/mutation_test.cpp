// Damaged files: whatever the bytes, a reader gives a good object or an Error; nothing else leaves it. Run these with
// the address and undefined-behaviour sanitizers to see what they are for.
#include <functional>

#include "lm/config.hpp"
#include "lm/prompts.hpp"
#include "lm/safetensors.hpp"
#include "lm/tokenizer.hpp"
#include "support.hpp"

namespace sale::lm {
namespace {

// One to four edits: a byte changed, a stretch cut out or doubled, a number made extreme, JSON's own signs swapped.
std::string damaged(std::string text, Random& random) {
  static const char* const extremes[] = {
      "-1", "0", "18446744073709551615", "9223372036854775807", "1e308", "null", "[]", "{}", "\"\""};
  for (int64_t edits = 1 + random.below(4); edits > 0 && !text.empty(); --edits) {
    const size_t where = at(random.below(ssize_of(text))), length = at(1 + random.below(8));
    switch (random.below(5)) {
      case 0: text[where] = static_cast<char>(random.below(256)); break;
      case 1: text.erase(where, length); break;
      case 2: text.insert(where, text.substr(where, length)); break;
      case 3: {
        const size_t digit = text.find_first_of("0123456789", where);
        if (digit != std::string::npos) text.replace(digit, 1, extremes[at(random.below(9))]);
        break;
      }
      default: text[where] = "{}[],:\"0"[random.below(8)]; break;
    }
  }
  return text;
}

void try_all(const std::string& good, const std::string& name, int rounds,
             const std::function<void(const std::filesystem::path&)>& use) {
  const Scratch scratch;
  Random random(2024);
  int refused = 0;
  for (int i = 0; i < rounds; ++i) {
    const auto path = scratch.write(name, damaged(good, random));
    try {
      use(path);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, rounds / 10);
}

TEST(Mutation, SafeTensors) {
  const Scratch scratch;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const auto bytes = std::as_bytes(std::span(values));
  write_safetensors(scratch.path() / "x", {{"first", DType::f32, {2, 3}, bytes}, {"second", DType::bf16, {12}, bytes}});
  try_all(slurp(scratch.path() / "x"), "x.safetensors", 4000, [](const auto& path) {
    const SafeTensors file = SafeTensors::open(path);
    for (const std::string& name : file.names()) {
      const Tensor& tensor = file.get(name);
      int sum = 0;  // touches every byte the reader vouches for
      for (std::byte b : tensor.bytes) sum += std::to_integer<int>(b);
      EXPECT_GE(sum, 0);
      if (tensor.dtype != DType::i8 && tensor.elements() < 1000) file.floats(name, tensor.shape);
    }
  });
}

TEST(Mutation, Config) {
  try_all(slurp(kModelDir / "config.json"), "config.json", 3000, [](const auto& path) {
    const Config config = read_config(path);
    EXPECT_GE(config.head_dim, 2);
    EXPECT_EQ(config.q_heads % config.kv_heads, 0);
  });
}

TEST(Mutation, Tokenizer) {
  try_all(slurp(kModelDir / "tokenizer.json"), "tokenizer.json", 150, [](const auto& path) {
    const Tokenizer tokenizer = Tokenizer::load(path);
    const std::string text = "Some text, 123 \u00e9\n <|pad|>";
    tokenizer.decode(tokenizer.encode(text));
  });
}

}  // namespace
}  // namespace sale::lm
