// The calibrator: what it finds, that parts, interruptions and other types of memory change nothing, and what it
// refuses.
#include "sale/calibrator.hpp"

#include <gtest/gtest.h>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "synthetic.hpp"

namespace {

namespace fs = std::filesystem;
using synthetic::head_dim, synthetic::kv_heads, synthetic::layers, synthetic::q_heads;

constexpr int64_t tokens = 1536;
const sale_goal budget{SALE_GOAL_BUDGET, 0.1};

sale::ModelIdentity identity() { return {"synthetic", layers, q_heads, kv_heads, head_dim, 0x5a1e}; }

// Options and what they point to.
struct Asked {
  sale::ModelIdentity identity = ::identity();
  sale_model model = identity.c();
  std::vector<sale_goal> goals{budget};
  sale_calibrator_options c = sale_calibrator_options_init();
  Asked() { c.dtype = SALE_F32, c.rows = 8, c.date = "2026-01-01", c.command = "test", c.threads = 2; }
  const sale_calibrator_options& get() {
    model = identity.c();
    c.model = &model;
    c.goals = goals.data(), c.n_goals = static_cast<int64_t>(goals.size());
    return c;
  }
};

struct Attention {
  std::vector<float> q, k, v;
};
Attention attention(uint32_t prompt, int32_t layer, int64_t n = tokens) {
  const auto l = static_cast<uint32_t>(layer);
  return {synthetic::tensor(prompt, l, 0, n), synthetic::tensor(prompt, l, 1, n), synthetic::tensor(prompt, l, 2, n)};
}
sale_calibrator_layer layer_of(const Attention& a, int32_t layer, int64_t n = tokens) {
  sale_calibrator_layer l{};
  l.struct_size = sizeof l;
  l.layer = layer, l.device = SALE_HOST, l.q_len = l.k_len = n;
  l.q = a.q.data(), l.k = a.k.data(), l.v = a.v.data();
  l.q_strides = l.k_strides = l.v_strides = {0, n * head_dim, head_dim};
  return l;
}
void feed(sale::Calibrator& c, uint32_t prompt) {
  for (int32_t layer = 0; layer < layers; ++layer) {
    const Attention a = attention(prompt, layer);
    c.feed(layer_of(a, layer));
  }
}
void prompt(sale::Calibrator& c, uint32_t number) {
  c.begin("prompt " + std::to_string(number), tokens);
  feed(c, number);
  c.end();
}
void finish(sale::Calibrator& c) {
  while (!c.done()) prompt(c, static_cast<uint32_t>(c.state().prompt));
}
std::string printed(const sale::Calibration& c) { return sale::print_calibration(c, "x.tensors").json; }

std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const sale::Error& e) {
    EXPECT_EQ(e.status(), SALE_INVALID_ARGUMENT) << e.what();
    return e.what();
  }
  return "";
}
bool mentions(const std::string& text, const std::string& word) { return text.find(word) != std::string::npos; }
#define REFUSED(expression, words)                                          \
  {                                                                         \
    const std::string said = refusal([&] { expression; });                  \
    EXPECT_TRUE(mentions(said, words)) << "'" << said << "' for " << words; \
  }

struct Folder {
  fs::path path = fs::temp_directory_path() /
                  ("sale_calibrator_" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) +
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
  Folder() { fs::remove_all(path), fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

}  // namespace

// The file that python/tests/test_calibrator.py must get for the same attention.
TEST(Calibrator, GivesTheFileThatEveryLanguageGives) {
  Asked asked;
  asked.c.prompts = 2;
  sale::Calibrator c(asked.get());
  finish(c);
  const sale::Calibration made = c.result();
  if (std::getenv("SALE_WRITE_SYNTHETIC") != nullptr) sale::write_calibration(SALE_SYNTHETIC, made);
  const sale::Calibration kept = sale::read_calibration(SALE_SYNTHETIC);
  EXPECT_EQ(made.thresholds, kept.thresholds);
  EXPECT_EQ(made.density, kept.density);
  EXPECT_NEAR(made.relative_l1, kept.relative_l1, 1e-9);
  EXPECT_NEAR(made.retained_mass, kept.retained_mass, 1e-9);
  EXPECT_EQ(made.prompts[1].text, "prompt 1");
  EXPECT_LT(made.density, 0.9) << "nothing to choose from";
  const auto found = c.findings();
  EXPECT_STREQ(found.goal, "budget 0.1 for the whole model");
  EXPECT_GT(found.dense_attention_s, 0);
  EXPECT_GT(found.seconds_per_block, 0);
  double sum = 0;
  for (size_t h = 0; h < made.thresholds.size(); ++h) {
    sum += found.heads[h].error * found.heads[h].error;
    EXPECT_LE(found.heads[h].kept_blocks, found.heads[h].visible_blocks);
    EXPECT_LE(found.heads[h].relative, 4 * 0.1 * 1.25) << "between the ladder's steps it is a guess";
  }
  EXPECT_LE(std::sqrt(sum / static_cast<double>(made.thresholds.size())), 0.1 * 1.25);
}

TEST(Calibrator, SeveralGoalsOfOneMeasuring) {
  Asked asked;
  asked.goals = {{SALE_GOAL_BUDGET, 0.02}, {SALE_GOAL_BUDGET, 0.2}, {SALE_GOAL_ERROR, 0.05}, {SALE_GOAL_ERROR, 0}};
  sale::Calibrator c(asked.get());
  finish(c);
  EXPECT_LT(c.result(1).density, c.result(0).density);
  for (size_t h = 0; h < 8; ++h) EXPECT_LE(c.findings(2).heads[h].relative, 0.05 * 1.25) << h;
  EXPECT_EQ(c.result(3).thresholds, std::vector<float>(8, 0.0f));
  EXPECT_LT(c.findings(3).heads[0].error, 1e-12);
  REFUSED(c.result(4), "goal: 4 is not in 0 .. 3");
}

// Rows that answers are read from can only ask for more than the text does, and do where they lose more than it; what
// is not asked for changes nothing.
TEST(Calibrator, RowsOfAnswersCountByThemselves) {
  Asked asked;
  asked.goals = {{SALE_GOAL_ERROR, 0.05}};
  const auto made_with = [&](const std::vector<int64_t>& rows) {
    sale::Calibrator c(asked.get());
    while (!c.done()) {
      c.begin("prompt", tokens);
      c.asks(rows);
      feed(c, 0);
      c.end();
    }
    return c.result();
  };
  sale::Calibrator plain(asked.get());
  while (!plain.done()) {
    plain.begin("prompt", tokens);
    feed(plain, 0);
    plain.end();
  }
  EXPECT_EQ(printed(made_with({})), printed(plain.result()));
  std::vector<int64_t> every(tokens);
  for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<int64_t>(i);
  const sale::Calibration text = plain.result(), answers = made_with({tokens - 400});
  int lower = 0;
  for (size_t h = 0; h < text.thresholds.size(); ++h) {
    EXPECT_LE(answers.thresholds[h], text.thresholds[h]) << h;
    lower += answers.thresholds[h] < text.thresholds[h] ? 1 : 0;
  }
  EXPECT_GT(lower, 0);
  EXPECT_GT(answers.density, text.density);
  EXPECT_NO_THROW(made_with(every)) << "as many of them as are sampled";
}

// What it says of compensated attention is what compensated attention is off by, on the rows it samples.
TEST(Calibrator, MeasuresCompensatedAttention) {
  double density[2];
  for (const int compensate : {0, 1}) {
    Asked asked;
    asked.goals = {{SALE_GOAL_ERROR, 0.2}};
    asked.c.rows = 1000, asked.c.compensate = compensate;
    sale::Calibrator c(asked.get());
    finish(c);
    const sale::Calibration made = c.result();
    density[compensate] = made.density;
    const sale::Problem problem(1, q_heads, kv_heads, tokens, tokens, head_dim, SALE_F32);
    for (int32_t layer = 0; layer < layers; ++layer) {
      const Attention a = attention(0, layer);
      const auto output = [&](sale::Options options) {
        std::vector<float> out(a.q.size());
        const sale::Plan plan(problem, options.threads(2));
        const sale::Workspace workspace(plan.workspace().total);
        plan.run({.q = a.q.data(), .k = a.k.data(), .v = a.v.data(), .out = out.data()}, workspace);
        return out;
      };
      const std::vector<float> dense = output(made.options(layer).dense());
      const std::vector<float> sparse = output(made.options(layer).compensate(compensate == 1));
      for (size_t h = 0; h < q_heads; ++h) {
        double error = 0, size = 0;
        for (size_t i = (h * tokens + 1024) * head_dim; i < (h + 1) * tokens * head_dim; ++i)
          error += std::fabs(sparse[i] - dense[i]), size += std::fabs(dense[i]);
        const double found = c.findings().heads[static_cast<size_t>(layer) * q_heads + h].relative;
        EXPECT_NEAR(found, error / size, 0.2 * found) << compensate << " " << layer << " " << h;
      }
    }
  }
  EXPECT_LT(density[1], density[0]);
}

TEST(Calibrator, RefusesRowsOfAnswersThatCannotBe) {
  Asked asked;
  sale::Calibrator c(asked.get());
  const std::vector<int64_t> one{5}, twice{5, 5}, beyond{5, tokens}, below{-1};
  REFUSED(c.asks(one), "rows: no prompt was begun");
  c.begin("prompt", tokens);
  REFUSED(c.asks(twice), "rows: element 1 is 5; they ascend");
  REFUSED(c.asks(beyond), "rows: element 1 is 1536");
  REFUSED(c.asks(below), "rows: element 0 is -1");
  EXPECT_EQ(sale_calibrator_asks(c.get(), nullptr, 1), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(sale_calibrator_asks(c.get(), one.data(), -1), SALE_INVALID_ARGUMENT);
  const Attention a = attention(0, 0);
  c.feed(layer_of(a, 0));
  REFUSED(c.asks(one), "rows: they are said before the prompt is fed");
}

// Parts of a prompt, one after the other, are the prompt; strides of other layouts are read as they are.
TEST(Calibrator, PartsAndLayoutsChangeNothing) {
  Asked asked;
  sale::Calibrator whole(asked.get()), parts(asked.get());
  finish(whole);
  while (!parts.done()) {
    parts.begin("prompt 0", tokens);
    for (int64_t begin : {0, 700, 1100}) {
      const int64_t end = begin == 0 ? 700 : begin == 700 ? 1100 : tokens;
      for (int32_t layer = layers - 1; layer >= 0; --layer) {
        const Attention a = attention(0, layer);
        std::vector<float> q(a.q.size());  // [tokens, heads, head_dim]
        for (int64_t h = 0; h < q_heads; ++h)
          for (int64_t t = 0; t < tokens; ++t)
            std::copy_n(a.q.begin() + (h * tokens + t) * head_dim, head_dim, q.begin() + (t * q_heads + h) * head_dim);
        sale_calibrator_layer l = layer_of(a, layer);
        l.q = q.data() + begin * q_heads * head_dim, l.q_strides = {0, head_dim, q_heads * head_dim};
        l.q_len = end - begin, l.k_len = end;
        parts.feed(l);
      }
    }
    parts.end();
  }
  EXPECT_EQ(printed(parts.result()), printed(whole.result()));
}

TEST(Calibrator, ProjectionsAreMadeFirst) {
  Asked asked;
  asked.c.rank = 16;
  sale::Calibrator c(asked.get());
  EXPECT_EQ(c.state().pass, SALE_PASS_PROJECT);
  finish(c);
  const sale::Calibration made = c.result();
  EXPECT_EQ(made.k_projections.size(), 2u * 2 * 32 * 16);
  for (int32_t layer = 0; layer < layers; ++layer) {
    EXPECT_GT(c.findings().left_out[layer], 0);
    EXPECT_LT(c.findings().left_out[layer], 0.5);
  }
  // The same by two: projections alone, then thresholds for them.
  Asked alone;
  alone.c.rank = 16, alone.goals.clear();
  sale::Calibrator first(alone.get());
  finish(first);
  const sale::Calibration projections = first.result();
  EXPECT_EQ(projections.k_projections, made.k_projections);
  EXPECT_EQ(projections.thresholds, std::vector<float>(8, 0.004f));
  Asked given;
  given.c.rank = 16;
  given.c.q_projections = projections.q_projections.data(), given.c.k_projections = projections.k_projections.data();
  sale::Calibrator second(given.get());
  EXPECT_EQ(second.state().pass, SALE_PASS_MEASURE);
  finish(second);
  EXPECT_EQ(printed(second.result()), printed(made));
}

TEST(Calibrator, ThePapersProcedure) {
  Asked asked;
  asked.goals = {{SALE_GOAL_PAPER, 0.05}};
  sale::Calibrator c(asked.get());
  finish(c);
  for (float tau : c.result().thresholds) {
    EXPECT_TRUE(tau == 0 || (tau >= 0.0001f && tau <= 0.008f)) << tau;
    if (tau != 0) {
      EXPECT_EQ(std::log2(0.008f / tau), std::floor(std::log2(0.008f / tau)));
    }
  }
  EXPECT_EQ(c.findings().dense_attention_s, 0) << "not measured";
}

// Where every value is the same, nothing is lost by dropping; where much is, a head does not become local.
TEST(Calibrator, LocalHeads) {
  for (const bool flat : {true, false}) {
    Asked asked;
    asked.goals = {{SALE_GOAL_BUDGET, 0.05}, {SALE_GOAL_ERROR, 0.05}};
    asked.c.local_heads = 1;
    sale::Calibrator c(asked.get());
    while (!c.done()) {
      c.begin("values all alike", tokens);
      for (int32_t layer = 0; layer < layers; ++layer) {
        Attention a = attention(0, layer);
        if (flat) std::fill(a.v.begin(), a.v.end(), 1.0f);
        c.feed(layer_of(a, layer));
      }
      c.end();
    }
    for (int64_t goal : {0, 1}) {
      const std::vector<float> taus = c.result(goal).thresholds;
      EXPECT_EQ(std::count(taus.begin(), taus.end(), SALE_TAU_LOCAL), flat ? 8 : 0) << goal;
    }
  }
}

// With the layers' own vectors, thresholds are measured by codes that are functions of the keys: what pages can hold.
TEST(Calibrator, Smoothing) {
  Asked asked;
  asked.c.smoothing = 1, asked.c.prompts = 2;
  for (const int32_t rank : {0, 16}) {
    asked.c.rank = rank;
    sale::Calibrator c(asked.get());
    EXPECT_EQ(c.state().pass, SALE_PASS_PROJECT);
    finish(c);
    const sale::Calibration made = c.result();
    ASSERT_EQ(made.smoothing.size(), static_cast<size_t>(layers * kv_heads * head_dim));
    EXPECT_TRUE(made.scales.empty()) << "INT8 has a scale in every block";
    EXPECT_EQ(made.projected(), rank != 0);
    EXPECT_LT(made.density, 0.9);
    const Attention first = attention(0, 1), second = attention(1, 1);
    double sum = 0;
    for (int64_t t = 0; t < tokens; ++t)
      sum += double{first.k[static_cast<size_t>(t * head_dim)]} + double{second.k[static_cast<size_t>(t * head_dim)]};
    EXPECT_NEAR(made.layer_smoothing(1)[0], sum / (2 * tokens), 1e-5);
    const sale::Problem problem(1, q_heads, kv_heads, tokens, tokens, head_dim, SALE_F32);
    EXPECT_GT(sale::Estimator(problem, made.options(1)).index_page_bytes(64), 0u);
    sale::Calibration without = made;
    without.smoothing.clear();
    EXPECT_EQ(sale::Estimator(problem, without.options(1)).index_page_bytes(64), 0u);
    EXPECT_NE(printed(made), printed(without));
  }
  asked.c.smoothing = 2;
  REFUSED(sale::Calibrator(asked.get()), "options.smoothing: 2");
  asked.c.smoothing = 0, asked.c.compensate = 2;
  REFUSED(sale::Calibrator(asked.get()), "options.compensate: 2");
  asked.c.compensate = 1, asked.goals = {{SALE_GOAL_PAPER, 0.4}};
  REFUSED(sale::Calibrator(asked.get()), "options.compensate: the paper's procedure");
}

// An interrupted calibrator goes on where it was, in every pass, and gives what an uninterrupted one gives.
TEST(Calibrator, GoesOnWhereItWas) {
  const Folder folder;
  const std::string progress = folder.path / "c.progress";
  Asked asked;
  asked.c.rank = 16, asked.c.prompts = 2;
  sale::Calibrator whole(asked.get());
  finish(whole);
  asked.c.progress = progress.c_str();
  for (int32_t done = 0; done < 6; ++done) {
    sale::Calibrator c(asked.get());
    EXPECT_EQ(c.state().resumed, done);
    EXPECT_NEAR(c.state().done, done / 6.0, 1e-9);
    c.begin("never ended", tokens);
    c.cancel();
    prompt(c, static_cast<uint32_t>(c.state().prompt));
  }
  std::ofstream(progress, std::ios::app) << "{\"pass\": 2, \"te";  // cut off
  {
    Asked other;
    other.c.rank = 16, other.c.prompts = 2, other.c.progress = progress.c_str(), other.c.rows = 9;
    REFUSED(sale::Calibrator(other.get()), "is of other work (rows: 8 there, 9 now)");
    other.c.rows = 8, other.identity.fingerprint = 7;
    REFUSED(sale::Calibrator(other.get()), "is of other work (model: ");
  }
  sale::Calibrator last(asked.get());
  EXPECT_TRUE(last.done());
  EXPECT_EQ(printed(last.result()), printed(whole.result()));
  EXPECT_TRUE(fs::exists(progress));
  last.forget();
  EXPECT_FALSE(fs::exists(progress));
}

TEST(Calibrator, ProgressFilesAreNotTrusted) {
  const Folder folder;
  const std::string progress = folder.path / "c.progress";
  Asked asked;
  asked.c.progress = progress.c_str();
  const auto with = [&](const std::string& line) {
    fs::remove(progress);
    {
      const sale::Calibrator c(asked.get());
    }
    std::ofstream(progress, std::ios::app) << line << "\n";
    return refusal([&] { sale::Calibrator c(asked.get()); });
  };
  for (const char* line :
       {"{}", "[]", "7", "{\"pass\": 2}", "{\"pass\": 2, \"text\": \"\", \"tokens\": 1, \"measured\": {}}",
        "{\"pass\": 2, \"text\": \"\", \"tokens\": 1, \"measured\": {\"tries\": [], \"cost\": [0,0,0,0,0], "
        "\"rows_of_blocks\": 0, \"prompts\": 1}}",
        "{\"pass\": 3, \"text\": \"\", \"tokens\": 1}", "not JSON"})
    EXPECT_TRUE(mentions(with(line), "progress: ")) << line << ": " << with(line);
  std::ofstream(progress) << "a letter\n";
  REFUSED(sale::Calibrator(asked.get()), "is not a file of a calibrator's progress");
}

TEST(Calibrator, BadOptionsAreRefused) {
  const auto said = [](const std::function<void(Asked&)>& change) {
    Asked asked;
    change(asked);
    return refusal([&] { sale::Calibrator c(asked.get()); });
  };
  const auto expect = [&](const char* words, const std::function<void(Asked&)>& change) {
    EXPECT_TRUE(mentions(said(change), words)) << "'" << said(change) << "' for " << words;
  };
  EXPECT_EQ(said([](Asked&) {}), "");
  expect("options.struct_size", [](Asked& a) { a.c.struct_size = sizeof a.c + 1; });
  expect("options.struct_size: 0", [](Asked& a) { a.c.struct_size = 0; });
  expect("options.model.layers: 0", [](Asked& a) { a.identity.layers = 0; });
  expect("options.model.kv_heads: 3", [](Asked& a) { a.identity.kv_heads = 3; });
  expect("options.model.head_dim: 24", [](Asked& a) { a.identity.head_dim = 24; });
  expect("options.dtype: 9", [](Asked& a) { a.c.dtype = static_cast<sale_dtype>(9); });
  expect("options.format: 1", [](Asked& a) { a.c.format = static_cast<sale_format>(1); });
  expect("options.rank is 12; a multiple of 16", [](Asked& a) { a.c.rank = 12; });
  expect("int4 takes only head_dim", [](Asked& a) { a.c.rank = 16, a.c.format = SALE_INT4; });
  expect("options.sink: 20", [](Asked& a) { a.c.sink = 20; });
  expect("multiples of 32", [](Asked& a) { a.c.local = 100; });
  expect("options.goals: none", [](Asked& a) { a.goals.clear(); });
  expect("options.goals[0].value: 2", [](Asked& a) { a.goals[0].value = 2; });
  expect("options.goals[0].value: nan", [](Asked& a) { a.goals[0].value = std::nan(""); });
  expect("options.goals[0].kind: 8", [](Asked& a) { a.goals[0].kind = static_cast<sale_goal_kind>(8); });
  expect("a goal on its own; there are 2", [](Asked& a) { a.goals.push_back({SALE_GOAL_PAPER, 1}); });
  expect("options.prompts: -1", [](Asked& a) { a.c.prompts = -1; });
  expect("options.rows: 3", [](Asked& a) { a.c.rows = 3; });
  expect("options.threads: -1", [](Asked& a) { a.c.threads = -1; });
  expect("options.device: -2", [](Asked& a) { a.c.device = -2; });
  expect("one is given without the other", [](Asked& a) {
    static const std::vector<float> some(2 * 2 * 32 * 16);
    a.c.rank = 16, a.c.q_projections = some.data();
  });
  expect("options.model.name: has 201 bytes", [](Asked& a) { a.identity.name = std::string(201, 'x'); });
  expect("options.date: has 41 bytes", [](Asked& a) { a.c.date = "01234567890123456789012345678901234567890"; });
  expect("no backend is called 'none such'", [](Asked& a) { a.c.backend = "none such"; });
  expect("/none/such.progress", [](Asked& a) { a.c.progress = "/none/such.progress"; });
  sale_calibrator* made = nullptr;
  EXPECT_EQ(sale_calibrator_create(nullptr, &made), SALE_INVALID_ARGUMENT);
  EXPECT_EQ(made, nullptr);
  EXPECT_EQ(sale_calibrator_end(nullptr), SALE_INVALID_ARGUMENT);
  EXPECT_STREQ(sale_last_error(), "calibrator: null");
  sale_calibrator_destroy(nullptr);
}

// What is fed wrongly is refused, and the prompt can be finished all the same.
TEST(Calibrator, BadFeedsAreRefusedAndForgotten) {
  Asked asked;
  sale::Calibrator clean(asked.get());
  finish(clean);
  sale::Calibrator c(asked.get());
  const Attention a = attention(0, 0);
  const sale_calibrator_layer good = layer_of(a, 0);
  REFUSED(c.feed(good), "no prompt was begun");
  REFUSED(c.end(), "no prompt was begun");
  REFUSED(c.result(), "before all passes are done");
  REFUSED(c.begin("short", 1023), "tokens: 1023 are too few rows; at least 1024");
  REFUSED(c.begin(std::string(1001, 'x'), tokens), "text: has 1001 bytes");
  c.begin("prompt 0", tokens);
  REFUSED(c.begin("again", tokens), "neither ended nor cancelled");
  const auto changed = [&](const char* words, const std::function<void(sale_calibrator_layer&)>& change) {
    sale_calibrator_layer l = good;
    change(l);
    const std::string said = refusal([&] { c.feed(l); });
    EXPECT_TRUE(mentions(said, words)) << "'" << said << "' for " << words;
  };
  changed("layer.layer: 2 is not in 0 .. 1", [](auto& l) { l.layer = 2; });
  changed("layer.layer: -1", [](auto& l) { l.layer = -1; });
  changed("layer.device: 3", [](auto& l) { l.device = 3; });
  changed("layer.q_len, k_len: 5 and 1536", [](auto& l) { l.q_len = 5; });
  changed("layer.q_len, k_len: 0 and 0", [](auto& l) { l.q_len = l.k_len = 0; });
  changed("layer.q_len, k_len: 1600 and 1600", [](auto& l) { l.q_len = l.k_len = 1600; });
  changed("layer.q: null", [](auto& l) { l.q = nullptr; });
  changed("layer.v: null", [](auto& l) { l.v = nullptr; });
  changed("layer.k_strides: head 49152, token 31", [](auto& l) { l.k_strides.token = 31; });
  changed("layer.scale: -1", [](auto& l) { l.scale = -1; });
  changed("layer.scale: nan", [](auto& l) { l.scale = std::nanf(""); });
  changed("layer.struct_size", [](auto& l) { l.struct_size = 4; });
  Attention bad = attention(0, 0);
  bad.v[static_cast<size_t>(tokens - 9) * head_dim] = std::numeric_limits<float>::infinity();
  REFUSED(c.feed(layer_of(bad, 0)), "layer 0: the attention of query head 0 at token ");
  bad = attention(0, 0);
  bad.k[5] = std::nanf("");
  REFUSED(c.feed(layer_of(bad, 0)), "is not finite");
  c.feed(good);
  REFUSED(c.feed(good), "layer.layer: 0 was fed already");
  REFUSED(c.end(), "end: layer 1 was not fed");
  const Attention second = attention(0, 1);
  sale_calibrator_layer part = layer_of(second, 1);
  part.q_len = part.k_len = 1000;
  c.feed(part);
  REFUSED(c.end(), "end: layer 1 was fed in part");
  c.cancel();
  finish(c);
  EXPECT_EQ(printed(c.result()), printed(clean.result()));
  REFUSED(c.begin("more", tokens), "all passes are done");
}

// Second moments are checked too.
TEST(Calibrator, ProjectionsOfWhatIsNotFinite) {
  Asked asked;
  asked.c.rank = 16;
  sale::Calibrator c(asked.get()), clean(asked.get());
  prompt(clean, 0);
  c.begin("prompt 0", tokens);
  Attention bad = attention(0, 0);
  bad.q[77] = std::numeric_limits<float>::infinity();
  REFUSED(c.feed(layer_of(bad, 0)), "layer 0: a query of kv head 0 is not finite");
  feed(c, 0);
  c.end();
  finish(c), finish(clean);
  EXPECT_EQ(c.result().k_projections, clean.result().k_projections);
}

// Constant and zero tensors are attention too.
TEST(Calibrator, FlatAttention) {
  Asked asked;
  asked.c.rank = 16;
  sale::Calibrator c(asked.get());
  Attention flat = attention(0, 0);
  for (auto* t : {&flat.q, &flat.k, &flat.v}) std::fill(t->begin(), t->end(), 0.0f);
  while (!c.done()) {
    c.begin("nothing", tokens);
    for (int32_t layer = 0; layer < layers; ++layer) c.feed(layer_of(flat, layer));
    c.end();
  }
  for (float tau : c.result().thresholds) EXPECT_TRUE(std::isfinite(tau));
  EXPECT_EQ(c.result().relative_l1, 0);
}
