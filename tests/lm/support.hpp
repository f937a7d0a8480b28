// Shared by the tests of lm/: scratch folders, reference files, and a plain attention.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "lm/attention.hpp"
#include "lm/bf16.hpp"
#include "lm/error.hpp"

namespace sale::lm {

inline const std::filesystem::path kModelDir = SALE_MODEL_DIR;
inline const std::filesystem::path kDataDir = SALE_LM_DATA_DIR;

// A folder of its own for each test, removed at the end.
class Scratch {
public:
  Scratch() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            ("lm_test." + std::to_string(::getpid()) + "." + test->test_suite_name() + "." + test->name());
    std::filesystem::create_directories(path_);
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::filesystem::path write(const std::string& name, std::string_view contents) const {
    std::ofstream(path_ / name, std::ios::binary) << contents;
    return path_ / name;
  }
  const std::filesystem::path& path() const { return path_; }

private:
  std::filesystem::path path_;
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The call must throw an Error whose message holds every one of the words.
template <class Call>
void expect_error(Call call, const std::vector<std::string>& words) {
  try {
    call();
  } catch (const Error& e) {
    for (const std::string& word : words)
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << "message: " << e.what() << "\nlacks: " << word;
    return;
  }
  ADD_FAILURE() << "no error; expected one with: " << (words.empty() ? "" : words[0]);
}

// Causal attention as it is written in books: all scores of a query, softmax, weighted sum; float.
class PlainAttention : public Attention {
public:
  void run(const AttentionCall& c) override {
    ++calls;
    for (int h = 0; h < c.q_heads; ++h) {
      const int64_t kv = h / (c.q_heads / c.kv_heads) * c.kv_head_stride;
      std::vector<float> k = widen(c.k + kv, c), v = widen(c.v + kv, c);
      for (int64_t i = 0; i < c.q_len; ++i) one_query(c, h, i, k, v);
    }
  }
  void truncate(int64_t tokens) override { truncated_to = tokens; }
  int calls = 0;
  int64_t truncated_to = -1;

private:
  static std::vector<float> widen(const uint16_t* from, const AttentionCall& c) {
    std::vector<float> out;
    for (int64_t j = 0; j < c.k_len; ++j)
      for (int64_t d = 0; d < c.head_dim; ++d) out.push_back(from_bf16(from[j * c.kv_token_stride + d]));
    return out;
  }
  static void one_query(const AttentionCall& c, int h, int64_t i, const std::vector<float>& k,
                        const std::vector<float>& v) {
    const int64_t seen = c.k_len - c.q_len + i + 1, dim = c.head_dim;
    std::vector<float> q(at(dim)), p(at(seen)), sum(at(dim));
    for (int64_t d = 0; d < dim; ++d)
      q[at(d)] = from_bf16(c.q[i * c.q_token_stride + h * c.q_head_stride + d]) * c.scale;
    float top = -INFINITY, total = 0;
    for (int64_t j = 0; j < seen; ++j) {
      float lane[16] = {};
      for (int64_t d = 0; d < dim; d += 16)
        for (int64_t e = 0; e < 16 && d + e < dim; ++e) lane[e] += q[at(d + e)] * k[at(j * dim + d + e)];
      for (float part : lane) p[at(j)] += part;
      top = std::max(top, p[at(j)]);
    }
    for (float& x : p) total += x = std::exp(x - top);
    for (int64_t j = 0; j < seen; ++j)
      for (int64_t d = 0; d < dim; ++d) sum[at(d)] += p[at(j)] * v[at(j * dim + d)];
    for (int64_t d = 0; d < dim; ++d)
      c.out[i * c.out_token_stride + h * c.out_head_stride + d] = to_bf16(sum[at(d)] / total);
  }
};

// logits.bin and tiny_qwen2.bin, as data/make_reference.py describes them.
struct Reference {
  std::vector<int32_t> ids, rows;
  int64_t vocab = 0;
  std::vector<float> fp32, fp32_bf16_attention;  // [rows][vocab]

  explicit Reference(const std::filesystem::path& path) {
    const std::string bytes = slurp(path);
    size_t position = 0;
    const auto read = [&](auto& out, size_t count) {
      out.resize(count);
      if (position + count * 4 > bytes.size()) fail(path.string(), ": too short");
      std::memcpy(out.data(), bytes.data() + position, count * 4);
      position += count * 4;
    };
    std::vector<int32_t> head;
    read(head, 3);
    vocab = head[2];
    read(ids, at(head[0]));
    read(rows, at(head[1]));
    read(fp32, at(head[1] * vocab));
    read(fp32_bf16_attention, at(head[1] * vocab));
  }
};

}  // namespace sale::lm
