// What the backend computes, against plain attention in double precision.
#include "plugin.hpp"
#include "prompt.hpp"

using namespace fake;

namespace {

constexpr float hide = -INFINITY;

// Tolerances of what is computed densely: rounding of queries, products and outputs.
double tolerance(const Shape& s) { return s.k_type == f32 ? 1e-5 : s.k_type == bf16 ? 2e-2 : 2e-3; }

void expect_equal(Session& session, Tensor* op, double tolerance, const char* what) {
  const std::vector<float> ours = session.compute(op);
  EXPECT_LT(relative_l1(ours, plainly(op)), tolerance) << what;
}

struct Named {
  const char* name;
  Shape shape;
};

const Named shapes[] = {
    {"f16", {}},
    {"bf16", {.k_type = bf16, .v_type = bf16}},
    {"f32", {.k_type = f32, .v_type = f32}},
    {"q8_0", {.k_type = q8_0, .v_type = q8_0}},
    {"q8_0 and f16", {.k_type = q8_0, .v_type = f16}},
    {"128", {.dim = 128, .heads = 6, .kv_heads = 2}},
    {"80, one head", {.dim = 80, .heads = 1, .kv_heads = 1}},
    {"two streams", {.dim = 128, .heads = 4, .kv_heads = 1, .streams = 2}},
};

}  // namespace

// Below dense_below nothing is left out, whatever the threshold.
TEST(Attend, ShortPromptsInPieces) {
  for (const Named& n : shapes) {
    Session session;
    Prompt prompt(n.shape, 600);
    for (int64_t stream = 0; stream < n.shape.streams; ++stream) prompt.write(0, 450, stream);
    expect_equal(session, prompt.causal(200, 0, 256), tolerance(n.shape), n.name);
    expect_equal(session, prompt.causal(33, 200, 256), tolerance(n.shape), n.name);
    expect_equal(session, prompt.causal(190, 233, 512), tolerance(n.shape), n.name);
    const auto stats = session.end();
    EXPECT_EQ(stats["rows"]["dense"], 423 * n.shape.streams) << n.name;
    EXPECT_EQ(stats["rows"]["ggml"], 0) << n.name;
  }
}

TEST(Attend, NoMaskAndMasksThatAreTheSameForAllRows) {
  Session session;
  Prompt prompt({}, 256);
  prompt.write(0, 256, 0);
  expect_equal(session, prompt.attend(70, 256, nullptr), 2e-3, "no mask");
  expect_equal(session, prompt.attend(70, 256, [](int64_t, int64_t c, int64_t) { return c < 99 ? 0 : hide; }), 2e-3,
               "the same keys");
  EXPECT_EQ(session.end()["rows"]["dense"], 140);
}

// Cells of two sequences mixed, empty cells between, new cells where old ones were freed.
TEST(Attend, ScatteredCells) {
  for (const Named& n : shapes) {
    Session session;
    Prompt prompt(n.shape, 512);
    for (int64_t stream = 0; stream < n.shape.streams; ++stream) prompt.write(0, 512, stream);
    const auto other_sequence = [](int64_t c) { return c % 97 < 40; };
    expect_equal(session,
                 prompt.attend(64, 512,
                               [&](int64_t r, int64_t c, int64_t) {
                                 return c < 300 ? (other_sequence(c) ? hide : 0) : c - 300 <= r ? 0 : hide;
                               }),
                 tolerance(n.shape), n.name);
    // Rows fill the hole 100 .. 163 downwards.
    expect_equal(session,
                 prompt.attend(64, 512,
                               [&](int64_t r, int64_t c, int64_t) {
                                 if (c >= 100 && c < 164) return 163 - c <= r ? 0 : hide;
                                 return c < 400 ? 0 : hide;
                               }),
                 tolerance(n.shape), n.name);
    EXPECT_EQ(session.end()["rows"]["ggml"], 0) << n.name;
  }
}

TEST(Attend, RowsOfSeveralSequencesAndRowsThatSeeNothing) {
  Session session;
  Prompt prompt({}, 512);
  prompt.write(0, 512, 0);
  Tensor* op = prompt.attend(150, 512, [](int64_t r, int64_t c, int64_t) {
    if (r < 10) return hide;                                     // padding
    if (r < 50) return c <= r + 90 ? 0 : hide;                   // one sequence
    if (r < 55) return c == r || c == 2 * r ? 0 : hide;          // five that decode
    return c >= 256 && c <= 256 + 100 + (r - 55) ? 0.0f : hide;  // another prompt
  });
  const std::vector<float> ours = session.compute(op);
  EXPECT_LT(relative_l1(ours, plainly(op)), 2e-3);
  const auto rows = session.end()["rows"];
  EXPECT_EQ(rows["blind"], 10);
  EXPECT_EQ(rows["dense"], 40 + 95);
  EXPECT_EQ(rows["ggml"], 5);
}

TEST(Attend, MasksThatNoListDescribesGoToTheHost) {
  Session session;
  Prompt prompt({}, 256);
  prompt.write(0, 256, 0);
  // One that every row moves by two keys.
  Tensor* window =
      prompt.attend(64, 256, [](int64_t r, int64_t c, int64_t) { return c <= 2 * r + 64 && c > 2 * r ? 0 : hide; });
  Tensor* biased = prompt.attend(64, 256, [](int64_t r, int64_t c, int64_t) {
    return c > r + 64 ? hide : -0.25f * static_cast<float>((r + c) % 5);
  });
  for (Tensor* op : {window, biased}) expect_equal(session, op, 1e-6, "by the host");
  EXPECT_EQ(session.end()["rows"]["ggml"], 128);
}

// Sliding windows: open at first, from the first row on, over scattered cells, long enough to be sparse.
TEST(Attend, SlidingWindows) {
  for (const Named& n : shapes) {
    Session session;
    Prompt prompt(n.shape, 2048);
    for (int64_t stream = 0; stream < n.shape.streams; ++stream) prompt.write(0, 2048, stream);
    const auto window = [&](int64_t rows, int64_t first, int64_t keys, int64_t w, int64_t every) {
      return prompt.attend(rows, keys, [=](int64_t r, int64_t c, int64_t) {
        if (c % every != 0) return hide;
        const int64_t at = c / every;
        return at <= first + r && at > first + r - w ? 0 : hide;
      });
    };
    expect_equal(session, window(200, 0, 256, 50, 1), tolerance(n.shape), n.name);
    expect_equal(session, window(64, 100, 256, 64, 1), tolerance(n.shape), n.name);
    expect_equal(session, window(100, 100, 512, 70, 2), tolerance(n.shape), n.name);
    expect_equal(session, window(128, 1900, 2048, 1500, 1), 0.1, n.name);
    EXPECT_EQ(session.end()["rows"]["ggml"], 0) << n.name;
  }
}

// The layers of a pass share a mask, which is read once; the next pass fills the same tensor anew.
TEST(Attend, MaskSharedByLayersAndFilledAnew) {
  Session session;
  Prompt first({}, 512, 0), second({}, 512, 1), third({}, 512, 2);
  Tensor* mask = nullptr;
  for (Prompt* prompt : {&first, &second, &third}) {
    prompt->write(0, 512, 0);
    Tensor* op = prompt->causal(64, 100, 512);
    if (mask == nullptr) mask = op->src[3];
    op->src[3] = mask;
    // Before the third layer, as if a graph without the first ones had taken the tensor's place.
    if (prompt == &third)
      for (int64_t r = 0; r < 64; ++r) static_cast<uint16_t*>(mask->data)[r * 512] = 0xfc00;
    expect_equal(session, op, 2e-3, "a layer");
  }
  for (int64_t r = 0; r < 64; ++r) static_cast<uint16_t*>(mask->data)[r * 512 + 200] = 0;
  Tensor* op = first.causal(64, 100, 512);
  op->src[3] = mask;
  expect_equal(session, op, 2e-3, "another pass");
}

// ---- selection and the key index -------------------------------------------------------------------------------

namespace {

constexpr int64_t long_cells = 4096, piece = 256;

// A prompt of 2048 tokens in pieces; the last output.
std::vector<float> read_prompt(Session& session, Prompt& prompt, Tensor** last = nullptr) {
  std::vector<float> out;
  for (int64_t at = 0; at < 2048; at += piece) {
    prompt.write(at, at + piece, 0);
    Tensor* op = prompt.causal(piece, at, at + piece);
    out = session.compute(op);
    if (last != nullptr) *last = op;
  }
  return out;
}

}  // namespace

TEST(Index, PromptInPiecesIsCodedOnceAndSelects) {
  for (const Named& n : shapes) {
    if (n.shape.streams > 1) continue;
    Session session;
    Prompt prompt(n.shape, long_cells);
    Tensor* last = nullptr;
    const std::vector<float> ours = read_prompt(session, prompt, &last);
    EXPECT_LT(relative_l1(ours, plainly(last)), 0.12) << n.name;
    const auto stats = session.end();
    // From 1024 keys on, the default of dense_below: five pieces.
    EXPECT_EQ(stats["rows"]["sparse"], 5 * piece) << n.name << stats;
    EXPECT_LT(stats["density"], 0.98) << n.name;
    EXPECT_GT(stats["density"], 0.05) << n.name;
    // Made anew while the smoothing vector is of few keys; the pieces of a call are coded anew in any case.
    EXPECT_GT(stats["keys"]["coded"], 2047) << n.name;
  }
}

// Repeating a call changes nothing and codes nothing; a context that starts there gets the same bits.
TEST(Index, SameKeysSameBits) {
  Session session;
  Prompt prompt({}, long_cells * 2);
  prompt.write(0, 6144, 0);
  Tensor* op = prompt.causal(128, 6000, 6144);
  const std::vector<float> first = session.compute(op), second = session.compute(op);
  EXPECT_EQ(first, second);
  EXPECT_EQ(session.end()["keys"]["reused"], 6128 / 32 * 32);
  Session fresh(1);
  EXPECT_EQ(fresh.compute(op), first);
}

// Every way in which cells change under an index: none may leave a code behind that does not belong to its key.
TEST(Index, ForgetsWhatChanged) {
  const auto fresh = [](Tensor* op) {
    Session session;
    return session.compute(op);
  };
  Session session;
  Prompt prompt({}, long_cells * 2);
  prompt.write(0, 6144, 0);
  session.compute(prompt.causal(128, 6000, 6144));
  // All keys rewritten, as by a context shift: as if nothing had been.
  prompt.write(0, 6144, 0);
  Tensor* shifted = prompt.causal(128, 6000, 6144);
  EXPECT_EQ(session.compute(shifted), fresh(shifted));
  // Another sequence in the same cells, shorter.
  prompt.write(0, 5000, 0);
  Tensor* reused = prompt.causal(128, 4800, 5120);
  EXPECT_EQ(session.compute(reused), fresh(reused));
  // A change in the middle: the beginning stays, and with it its smoothing vector; right all the same.
  prompt.write(3000, 3001, 0);
  Tensor* middle = prompt.causal(128, 4800, 5120);
  EXPECT_LT(relative_l1(session.compute(middle), plainly(middle)), 0.15);
  const auto stats = session.end();
  EXPECT_EQ(stats["keys"]["reused"], 3000 / 32 * 32);
  EXPECT_LT(stats["density"], 0.9);
}

// Two sequences in one cache take turns and share their beginning.
TEST(Index, SequencesOfOneCacheKeepTheirs) {
  Session session;
  Prompt prompt({}, long_cells * 4);
  prompt.write(0, 10000, 0);
  for (int64_t c = 0; c < 64; ++c) prompt.move(c, 5000 + c);
  Tensor* a = prompt.causal(128, 4800, 10240);
  Tensor* b = prompt.attend(
      128, 10240, [](int64_t r, int64_t c, int64_t) { return c >= 5000 && c <= 9800 + r ? 0.0f : -INFINITY; });
  session.compute(a);
  session.compute(b);
  session.compute(a);
  session.compute(b);
  const auto keys = session.end()["keys"];
  EXPECT_GT(keys["reused"], 2 * 4800);
}

TEST(Index, WithoutMemoryTheLayerIsDense) {
  Session session;
  Prompt prompt({.dim = 128}, int64_t{1} << 17, 5);
  prompt.write(0, 2048, 0);
  Tensor* op = prompt.causal(64, 1984, 2048);
  testing::internal::CaptureStderr();
  failing_allocation = size_t{1} << 24;
  const std::vector<float> first = session.compute(op), second = session.compute(op);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(failing_allocation, 0u);
  EXPECT_LT(relative_l1(first, plainly(op)), 2e-3);
  EXPECT_EQ(first, second);
  EXPECT_EQ(said, "sale: no memory for the key index of layer 5; it runs dense\n");
  EXPECT_EQ(session.end()["rows"]["dense"], 128);
}
