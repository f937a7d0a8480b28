// Real models, where there are any: SALE_REAL_MODELS names a folder with smollm2.gguf (scripts/test.sh models fetches
// it).
#include <cstdlib>

#include "lm/chat.hpp"
#include "lm/model.hpp"
#include "lm/tokenizer.hpp"
#include "texts.hpp"

namespace sale::lm {
namespace {

class Real : public ::testing::Test {
protected:
  void SetUp() override {
    const char* folder = std::getenv("SALE_REAL_MODELS");
    if (folder == nullptr) GTEST_SKIP() << "SALE_REAL_MODELS is not set";
    file_ = std::filesystem::path(folder) / "smollm2.gguf";
    ASSERT_TRUE(std::filesystem::exists(file_)) << file_;
  }
  std::filesystem::path file_;
};

TEST_F(Real, TokensAreThoseOfTheTokenizersPackage) {
  const nlohmann::json data = nlohmann::json::parse(slurp(kDataDir / "tokenizers.json"));
  const Tokenizer tokenizer = Tokenizer::load(file_);
  Fnv whole;
  for (const std::string& hash : hashes_of_ids(Texts(data), [&](const std::string& t) { return tokenizer.encode(t); }))
    whole.add(hash);
  EXPECT_EQ(whole.text(), "f63e255555830e25");  // make_tokenizers.py smollm2.gguf
}

TEST_F(Real, AnswersWhenAskedAsItsTemplateSays) {
  Model model = Model::load(file_, 2);
  EXPECT_EQ(model.config().layers, 30);
  EXPECT_EQ(model.config().max_positions, 8192);
  const Tokenizer tokenizer = Tokenizer::load(file_);
  const std::string asked = Chat::load(file_).ask("What is the capital of France?");
  EXPECT_TRUE(asked.ends_with("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"))
      << asked;
  KVCache cache(model.config(), 128);
  PlainAttention attention;
  const Generated made = generate_greedy(model, tokenizer.encode(asked, false), cache, attention, {.max_tokens = 40});
  EXPECT_NE(tokenizer.decode(made.ids).find("Paris"), std::string::npos) << tokenizer.decode(made.ids);
  EXPECT_LT(made.ids.size(), 40u);  // it ends by itself
}

}  // namespace
}  // namespace sale::lm
