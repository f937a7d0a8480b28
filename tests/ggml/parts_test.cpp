// Parts of the backend by themselves: masks as runs, rows as numbers, layers and models by name.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <sstream>

#include "fake_host.hpp"
#include "integrations/ggml/layers.hpp"
#include "integrations/ggml/mask.hpp"
#include "integrations/ggml/rows.hpp"

using namespace sale::ggml;

namespace {

// "x" sees, "." does not, "b" is a finite bias.
std::vector<Run> runs_of(const std::vector<std::string>& rows) {
  std::vector<uint16_t> mask;
  for (const std::string& row : rows)
    for (char c : row) mask.push_back(c == 'x' ? 0 : c == 'b' ? 0x3c00 : 0xfc00);
  return read_mask(mask.data(), static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size()));
}

std::string text(const std::vector<sale::ggml::Run>& runs) {
  std::ostringstream s;
  for (const sale::ggml::Run& r : runs) {
    switch (r.kind) {
      case sale::ggml::Run::causal: s << (r.ordered ? "causal " : "unordered "); break;
      case sale::ggml::Run::all: s << "all "; break;
      case sale::ggml::Run::blind: s << "blind "; break;
      case sale::ggml::Run::other: s << "other "; break;
    }
    s << r.row_begin << '-' << r.row_end;
    for (const Cells& c : r.keys) s << " [" << c.begin << ',' << c.end << ')';
    if (r.key_count > 0) s << ' ' << r.first_sees << '/' << r.key_count;
    if (r.window > 0) s << " window " << r.window;
    s << "; ";
  }
  return s.str();
}

}  // namespace

TEST(Mask, Runs) {
  EXPECT_EQ(text(runs_of({"x...", "xx..", "xxx."})), "causal 0-3 [0,3) 1/3; ");
  EXPECT_EQ(text(runs_of({"....", "....", ".x.."})), "blind 0-2; causal 2-3 [1,2) 1/1; ");
  EXPECT_EQ(text(runs_of({"xx.x..", "xx.xx.", "xx.xxx"})), "causal 0-3 [0,2) [3,6) 3/5; ");
  // A hole filled: in list order the last key is cell 2.
  EXPECT_EQ(text(runs_of({"xx..xx", "xxx.xx"})), "unordered 0-2 [0,2) [4,6) [2,3) 4/5; ");
  EXPECT_EQ(text(runs_of({"x...", "xxx."})), "causal 0-1 [0,1) 1/1; causal 1-2 [0,3) 3/3; ");
  EXPECT_EQ(text(runs_of({"xx..", ".xx.", "..xx"})), "causal 0-3 [0,4) 2/4 window 2; ");
  EXPECT_EQ(text(runs_of({"x....", "xx...", "xxx..", ".xxx.", "..xxx"})), "causal 0-5 [0,5) 1/5 window 3; ");
  EXPECT_EQ(text(runs_of({"x.x...", "..xx..", "...xx."})), "causal 0-3 [0,1) [2,5) 2/4 window 2; ");
  // Lost is not the oldest; nothing is lost where something was; two are.
  EXPECT_EQ(text(runs_of({"xxx..", "x.xx."})), "causal 0-1 [0,3) 3/3; causal 1-2 [0,1) [2,4) 3/3; ");
  EXPECT_EQ(text(runs_of({"xx...", ".xx..", ".xxx."})), "causal 0-2 [0,3) 2/3 window 2; causal 2-3 [1,4) 3/3; ");
  EXPECT_EQ(text(runs_of({"xxx..", "..xx."})), "causal 0-1 [0,3) 3/3; causal 1-2 [2,4) 2/2; ");
  // A ring: the new cell is where the oldest was.
  EXPECT_EQ(text(runs_of({".xx", "x.x"})), "unordered 0-2 [1,3) [0,1) 2/3 window 2; ");
  EXPECT_EQ(text(runs_of({"xxx.", "xxx.", "xxxx"})), "all 0-2 [0,3) 3/3; causal 2-3 [0,4) 4/4; ");
  EXPECT_EQ(text(runs_of({"xb..", "xxb.", "x...", "xx.."})), "other 0-2; causal 2-4 [0,2) 1/2; ");
}

TEST(Mask, AgreesWithEveryRow) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    // Long rows, so that whole comparisons and the search inside one are both used.
    const int64_t rows = 1 + static_cast<int64_t>(random() % 40), keys = 1 + static_cast<int64_t>(random() % 3000);
    std::vector<uint16_t> mask(static_cast<size_t>(rows * keys), 0xfc00);
    for (int64_t r = 0; r < rows; ++r) {
      uint16_t* row = mask.data() + r * keys;
      if (r > 0 && random() % 8 != 0) std::copy(row - keys, row, row);
      // Mostly the oldest, while rows gain keys behind it.
      if (random() % 3 != 0) *std::find(row, row + keys - 1, uint16_t{0}) = 0xfc00;
      const int more = random() % 10 == 0 ? 3 : 1;
      for (int i = 0; i < more; ++i) row[random() % static_cast<uint64_t>(keys)] = 0;
      if (random() % 4 != 0) {
        int64_t last = keys - 1;
        while (last > 0 && row[last] != 0) --last;
        row[std::min(last + 1, keys - 1)] = 0;
      }
    }
    int64_t next = 0;
    for (const sale::ggml::Run& run : read_mask(mask.data(), rows, keys)) {
      EXPECT_EQ(run.row_begin, next);
      next = run.row_end;
      ASSERT_TRUE(run.kind == sale::ggml::Run::causal || run.kind == sale::ggml::Run::all);
      std::vector<int64_t> list;
      for (const Cells& c : run.keys)
        for (int64_t j = c.begin; j < c.end; ++j) list.push_back(j);
      ASSERT_EQ(static_cast<int64_t>(list.size()), run.key_count);
      for (int64_t r = run.row_begin; r < run.row_end; ++r) {
        std::vector<uint16_t> row(static_cast<size_t>(keys), 0xfc00);
        const int64_t sees = run.first_sees + (run.kind == sale::ggml::Run::all ? 0 : r - run.row_begin);
        const int64_t first = run.window == 0 ? 0 : std::max<int64_t>(sees - run.window, 0);
        for (int64_t i = first; i < sees; ++i) row[static_cast<size_t>(list[static_cast<size_t>(i)])] = 0;
        ASSERT_TRUE(std::equal(row.begin(), row.end(), mask.begin() + static_cast<std::ptrdiff_t>(r * keys)));
      }
    }
    EXPECT_EQ(next, rows);
  }
}

TEST(Rows, EveryHalfThereAndBack) {
  // Eight equal numbers take the vector path where there is one, seven the plain one.
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const std::vector<uint16_t> in(15, static_cast<uint16_t>(h));
    std::vector<float> wide(15), expected(15);
    widen_row(SALE_F16, in.data(), wide.data(), 15);
    fake::load(fake::f16, in.data(), expected.data(), 15);
    std::vector<uint16_t> back(15);
    round_row(SALE_F16, wide.data(), back.data(), 15);
    for (size_t i : {size_t{0}, size_t{14}}) {
      if (std::isnan(expected[i])) {
        ASSERT_TRUE(std::isnan(wide[i]));
        ASSERT_GT(back[i] & 0x7fff, 0x7c00);
      } else {
        ASSERT_EQ(wide[i], expected[i]) << h;
        ASSERT_EQ(back[i], h);
      }
    }
  }
}

TEST(Rows, RoundedToNearestEven) {
  std::mt19937 random(3);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random());
    std::vector<float> in(9);
    std::memcpy(&in[0], &bits, 4);
    if (std::isnan(in[0])) continue;
    in[8] = in[0];
    uint16_t f16[9], bf16[9], plain;
    round_row(SALE_F16, in.data(), f16, 9);
    ASSERT_EQ(f16[0], fake::half(in[0])) << in[0];
    ASSERT_EQ(f16[8], fake::half(in[0])) << in[0];
    round_row(SALE_BF16, in.data(), bf16, 9);
    fake::store(fake::bf16, in.data(), &plain, 1);
    ASSERT_EQ(bf16[0], plain);
  }
}

TEST(Rows, Q8) {
  std::vector<float> in(64), back(64), halves(64);
  for (size_t i = 0; i < 64; ++i) in[i] = std::sin(static_cast<float>(i)) * static_cast<float>(i < 32 ? 1 : 100);
  std::vector<char> stored(row_bytes(Type::q8_0, 64));
  EXPECT_EQ(stored.size(), 68u);
  fake::store(fake::q8_0, in.data(), stored.data(), 64);
  std::vector<uint16_t> unpacked(64);
  unpack_row(Type::q8_0, stored.data(), unpacked.data(), 64);
  widen_row(SALE_F16, unpacked.data(), halves.data(), 64);
  fake::load(fake::q8_0, stored.data(), back.data(), 64);
  for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(halves[i], back[i], std::fabs(back[i]) * 5e-4f);
}

TEST(Layers, ByCacheName) {
  Tensor cache{}, k{};
  k.view_src = &cache;
  const std::pair<const char*, int32_t> names[] = {
      {"cache_k_l0", 0},  {"cache_k_l31", 31},          {"cache_k_l", -1}, {"cache_k_l-1", -1}, {"cache_k_l3x", -1},
      {"cache_v_l3", -1}, {"cache_k_l99999999999", -1}, {"", -1}};
  for (const auto& [name, layer] : names) {
    std::memset(cache.name, 0, sizeof cache.name);
    std::strcpy(cache.name, name);
    EXPECT_EQ(cache_layer(k), layer) << name;
  }
  k.view_src = nullptr;
  EXPECT_EQ(cache_layer(k), -1);
}

// The literal is what scripts/gguf.py computes for these norms.
TEST(Layers, FingerprintOfAModel) {
  Host host{};
  host.f32 = fake::f32, host.op_multiply = fake::op_multiply, host.op_flash_attention = fake::op_flash;
  host.backend_buffer_is_host = [](Buffer*) { return true; };
  Models models;
  Tensor* cache = fake::make(fake::f16, 8, 8, 1, 1, "cache_k_l0");
  EXPECT_FALSE(models.fingerprint(cache->data));
  const auto plan = [&](float first) {
    for (int layer = 0; layer < 12; ++layer) {
      Tensor* norm = fake::make(fake::f32, 20, 1, 1, 1, "blk." + std::to_string(layer) + ".attn_norm.weight");
      for (int i = 0; i < 20; ++i) static_cast<float*>(norm->data)[i] = first + static_cast<float>(layer + i) / 4;
      Tensor* multiply = fake::operation(fake::op_multiply, fake::f32, 20, 1, 1, 1);
      multiply->src[1] = norm;
      models.saw(host, *multiply);
      Tensor* attention = fake::operation(fake::op_flash, fake::f32, 8, 1, 1, 1);
      attention->src[1] = fake::operation(fake::op_view, fake::f16, 8, 8, 1, 1);
      attention->src[1]->view_src = cache;
      models.saw(host, *attention);
    }
  };
  plan(1);
  const auto one = models.fingerprint(cache->data);
  ASSERT_TRUE(one);
  EXPECT_EQ(*one, 0x17a0f77ccc0e93d3u) << std::hex << *one;
  plan(2);  // another model in the same place
  EXPECT_NE(models.fingerprint(cache->data), one);
  plan(1);
  EXPECT_EQ(models.fingerprint(cache->data), one);
}
