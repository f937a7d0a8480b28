#include "lm/safetensors.hpp"

#include <bit>

#include "support.hpp"

namespace sale::lm {
namespace {

std::string file_of(const std::string& header, const std::string& data, uint64_t claimed) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(claimed >> (8 * i));
  return bytes + header + data;
}
std::string file_of(const std::string& header, const std::string& data) { return file_of(header, data, header.size()); }

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

TEST(SafeTensors, WritesAndReadsBack) {
  const Scratch scratch;
  const std::vector<float> f = {1.5f, -2.0f, 3.25f, 0.0f, 7.0f, 8.0f};
  const std::vector<uint16_t> half = {0x3f80, 0xc000}, f16 = {0x3c00, 0x0001};
  const std::vector<uint8_t> odd = {9};
  write_safetensors(scratch.path() / "x.safetensors", {{"f", DType::f32, {2, 3}, bytes_of(f)},
                                                       {"odd", DType::u8, {1}, bytes_of(odd)},
                                                       {"b", DType::bf16, {2}, bytes_of(half)},
                                                       {"h", DType::f16, {2, 1}, bytes_of(f16)},
                                                       {"none", DType::i64, {0, 5}, {}}});
  const SafeTensors file = SafeTensors::open(scratch.path() / "x.safetensors");
  EXPECT_EQ(file.names().size(), 5u);
  EXPECT_EQ(file.floats("f", {2, 3}), f);
  EXPECT_EQ(file.floats("b", {2}), (std::vector<float>{1.0f, -2.0f}));  // at an odd address
  EXPECT_EQ(file.floats("h", {2, 1}), (std::vector<float>{1.0f, 0x1p-24f}));
  EXPECT_EQ(file.get("none").elements(), 0);
  EXPECT_TRUE(file.contains("odd"));
  EXPECT_FALSE(file.contains("od"));
  expect_error([&] { file.floats("f", {3, 2}); }, {"'f'", "[2, 3]", "[3, 2]"});
  expect_error([&] { file.floats("odd", {1}); }, {"'odd'", "U8"});
  expect_error([&] { file.get("g"); }, {"x.safetensors", "'g'"});
  expect_error([&] { write_safetensors(scratch.path() / "y", {{"f", DType::f32, {7}, bytes_of(f)}}); }, {"'f'", "28"});
  expect_error([&] { write_safetensors(scratch.path() / "no/such/folder", {}); }, {"cannot be written"});
}

TEST(SafeTensors, BundledAndSharded) {
  const SafeTensors bundled = SafeTensors::open(kModelDir);
  EXPECT_EQ(bundled.get("model.embed_tokens.weight").shape, (std::vector<int64_t>{4096, 448}));
  const SafeTensors shards = SafeTensors::open(kDataDir / "tiny_qwen2");
  EXPECT_EQ(shards.floats("model.norm.weight", {32}).size(), 32u);
  EXPECT_EQ(shards.get("lm_head.weight").dtype, DType::bf16);
}

// A tensor that nobody reads may be of any type that the format has.
TEST(SafeTensors, TypesThatAreNotRead) {
  const Scratch scratch;
  std::vector<NamedTensor> tensors;
  const std::vector<uint8_t> bytes(128, 1);
  for (int type = 0; type <= static_cast<int>(DType::f4); ++type) {
    const auto t = static_cast<DType>(type);
    tensors.push_back({std::string(name_of(t)), t, {16}, std::as_bytes(std::span(bytes)).first(at(2 * bits_of(t)))});
  }
  write_safetensors(scratch.path() / "x.safetensors", tensors);
  const SafeTensors file = SafeTensors::open(scratch.path() / "x.safetensors");
  for (const NamedTensor& t : tensors) {
    EXPECT_EQ(file.get(t.name).elements(), 16) << t.name;
    if (t.dtype == DType::f32 || t.dtype == DType::f16 || t.dtype == DType::bf16)
      EXPECT_EQ(file.floats(t.name, {16}).size(), 16u);
    else
      expect_error([&] { file.floats(t.name, {16}); }, {t.name, "F32, F16 or BF16"});
  }
}

TEST(SafeTensors, HostileHeaders) {
  const Scratch scratch;
  const std::string four(4, '\0');
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"t": {"dtype": ")" + dtype + R"(", "shape": )" + shape + R"(, "data_offsets": )" + offsets + "}}";
  };
  struct Case {
    std::string bytes;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {"", {"not a file with contents"}},
      {"1234", {"4 bytes"}},
      {file_of("{}", "", 3), {"header length is 3"}},
      {file_of("{}", "", UINT64_MAX), {"header length"}},
      {file_of("{}", "", UINT64_MAX - 7), {"header length"}},
      {file_of("{}", "", 0), {"header length is 0"}},
      {file_of(" {}", ""), {"'{'"}},
      {file_of("{\"t\": ", ""), {"not valid JSON"}},
      {file_of("{\"t\": 3}", ""), {"'t'", "object"}},
      {file_of(R"({"t": {}, "t": {}})", ""), {"'t'", "twice"}},
      {file_of(R"({"t": {"dtype": "F32", "dtype": "F32"}})", ""), {"'dtype'", "twice"}},
      {file_of(entry("F65", "[1]", "[0, 8]"), four + four), {"'t'", "dtype", "F65", "BF16"}},
      {file_of(entry("F64", "[1]", "[0, 4]"), four), {"'t'", "[1]", "8"}},
      {file_of(entry("F4", "[3]", "[0, 2]"), four), {"'t'", "[3]", "whole number of bytes"}},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n", {"Git LFS pointer"}},
      {file_of(entry("F32", "[1]", "[0, 8]"), four), {"data_offsets end", "'8'", "0 to 4"}},
      {file_of(entry("F32", "[1]", "[4, 0]"), four), {"data_offsets begin"}},
      {file_of(entry("F32", "[1]", "[-4, 0]"), four), {"data_offsets begin", "-4"}},
      {file_of(entry("F32", "[2]", "[0, 4]"), four), {"'t'", "[2]", "8"}},
      {file_of(entry("F32", "[-1]", "[0, 4]"), four), {"shape", "-1"}},
      {file_of(entry("F32", "[4294967296, 4294967296]", "[0, 0]"), ""), {"shape", "64 bits"}},
      {file_of(entry("F32", "[4611686018427387905]", "[0, 4]"), four), {"shape", "64 bits"}},
      {file_of(entry("F32", "[18446744073709551615]", "[0, 4]"), four), {"shape"}},
      {file_of(entry("F32", "[1.0]", "[0, 4]"), four), {"shape", "whole number"}},
      {file_of(entry("F32", "[1,1,1,1,1,1,1,1,1]", "[0, 4]"), four), {"dimensions"}},
      {file_of(entry("F32", "{}", "[0, 4]"), four), {"shape", "array"}},
      {file_of(entry("F32", "[1]", "[0, 4, 8]"), four), {"data_offsets has 3"}},
      {file_of(entry("F32", "[1]", "[0, 9223372036854775808]"), four), {"data_offsets end"}},
      {file_of("{\"t\": " + std::string(5000, '['), ""), {"nested"}},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    const auto path = scratch.write("bad.safetensors", cases[i].bytes);
    expect_error([&] { SafeTensors::open(path); }, cases[i].words);
  }
  expect_error([&] { SafeTensors::open(scratch.path() / "absent.safetensors"); }, {"absent", "cannot be opened"});
}

TEST(SafeTensors, EveryCutOfAGoodFileIsRefused) {
  const Scratch scratch;
  const std::vector<float> f = {1, 2, 3};
  write_safetensors(scratch.path() / "x.safetensors", {{"f", DType::f32, {3}, bytes_of(f)}});
  const std::string good = slurp(scratch.path() / "x.safetensors");
  for (size_t n = 0; n < good.size(); ++n) {
    const auto path = scratch.write("cut.safetensors", good.substr(0, n));
    EXPECT_THROW(SafeTensors::open(path), Error) << n;
  }
}

TEST(SafeTensors, HostileIndexes) {
  const Scratch scratch;
  const std::vector<float> f = {1};
  write_safetensors(scratch.path() / "a.safetensors", {{"f", DType::f32, {1}, bytes_of(f)}});
  const auto index = [&](const std::string& text) {
    SafeTensors::open(scratch.write("model.safetensors.index.json", text));
  };
  index(R"({"weight_map": {"f": "a.safetensors"}})");
  expect_error([&] { index("{}"); }, {"weight_map", "missing"});
  expect_error([&] { index(R"({"weight_map": []})"); }, {"weight_map"});
  expect_error([&] { index(R"({"weight_map": {"f": 1}})"); }, {"'f'", "same folder"});
  expect_error([&] { index(R"({"weight_map": {"f": "../a.safetensors"}})"); }, {"'f'", "same folder"});
  expect_error([&] { index(R"({"weight_map": {"f": "/etc/passwd"}})"); }, {"'f'", "same folder"});
  expect_error([&] { index(R"({"weight_map": {"g": "a.safetensors"}})"); }, {"a.safetensors", "'g'"});
  expect_error([&] { index(R"({"weight_map": {"f": "b.safetensors"}})"); }, {"b.safetensors"});
  expect_error([&] { index(R"({"weight_map": {"f": "a.safetensors", "f": "a.safetensors"}})"); }, {"twice"});
  expect_error([&] { SafeTensors::open(kDataDir); }, {"neither"});
}

}  // namespace
}  // namespace sale::lm
