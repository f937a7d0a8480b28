#include "sale/calibration.hpp"

#include <gtest/gtest.h>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

namespace {

using Json = nlohmann::ordered_json;

sale::Calibration small(bool projected) {
  sale::Calibration c;
  c.library = "0.1.0";
  c.model = {"toy", 2, 4, 2, 32, 0x0123456789abcdefu};
  c.rank = projected ? 16 : 32;
  c.thresholds = {0, 0.004f, 0.1f, 1e-5f, 0.25f, 1, 2, 3};
  if (projected) {
    for (int i = 0; i < 2 * 2 * 32 * 16; ++i) {
      c.q_projections.push_back(static_cast<float>(i) * 0.001f);
      c.k_projections.push_back(static_cast<float>(i) * -0.002f);
    }
  }
  c.prompts = {{"a book", 4096}};
  c.command = "made by a test";
  c.date = "2026-11-24";
  c.relative_l1 = 0.03, c.retained_mass = 0.97, c.density = 0.2;
  return c;
}

// The message of the refusal, or "" when there is none.
std::string refusal(const std::string& json, const std::string& projections = "") {
  try {
    sale::parse_calibration(json, projections, "file");
    return "";
  } catch (const sale::Error& e) {
    EXPECT_EQ(e.status(), SALE_INVALID_ARGUMENT);
    return e.what();
  }
}

bool mentions(const std::string& text, const std::string& word) { return text.find(word) != std::string::npos; }

TEST(Calibration, RoundTrip) {
  for (bool projected : {false, true}) {
    const auto c = small(projected);
    const auto bytes = sale::print_calibration(c, "p.tensors");
    const auto d = sale::parse_calibration(bytes.json, bytes.tensors, "file");
    EXPECT_EQ(d.thresholds, c.thresholds);
    EXPECT_EQ(d.q_projections, c.q_projections);
    EXPECT_EQ(d.k_projections, c.k_projections);
    EXPECT_EQ(d.rank, c.rank);
    EXPECT_EQ(d.model.fingerprint, c.model.fingerprint);
    EXPECT_EQ(d.prompts[0].text, "a book");
    EXPECT_EQ(Json::parse(bytes.json)["projections"].is_null(), !projected);
    EXPECT_EQ(bytes.tensors.empty(), !projected);
    EXPECT_EQ(sale::print_calibration(d, "p.tensors").json, bytes.json);
  }
}

// Smoothing vectors and scales go with projections and without; local heads are a word in the file.
TEST(Calibration, WhatIsOptionalRoundTrips) {
  for (bool projected : {false, true})
    for (bool scales : {false, true}) {
      auto c = small(projected);
      c.thresholds[3] = SALE_TAU_LOCAL;
      for (int i = 0; i < 2 * 2 * 32; ++i) c.smoothing.push_back(static_cast<float>(i) * 0.5f - 20);
      if (scales) c.scales = {0.5f, 1, 2, 4};
      const auto bytes = sale::print_calibration(c, "p.tensors");
      EXPECT_EQ(Json::parse(bytes.json)["thresholds"][0][3], "local");
      const auto d = sale::parse_calibration(bytes.json, bytes.tensors, "file");
      EXPECT_EQ(d.thresholds, c.thresholds);
      EXPECT_EQ(d.smoothing, c.smoothing);
      EXPECT_EQ(d.scales, c.scales);
      EXPECT_EQ(d.k_projections, c.k_projections);
      sale_calibration_layer_data layer{};
      layer.struct_size = sizeof layer;
      const auto handle = sale::CalibrationHandle::of(c);
      ASSERT_EQ(sale_calibration_layer(handle.get(), 1, &layer), SALE_OK);
      EXPECT_EQ(layer.smoothing[0], c.smoothing[2 * 32]);
      EXPECT_EQ(layer.scales == nullptr, !scales);
      if (scales) {
        EXPECT_EQ(layer.scales[0], 2);
      }
    }
}

// The projections file with its header and data rewritten, and the JSON's fingerprint made to fit.
std::string hostile(const std::function<void(Json& header, std::string& data)>& change,
                    const sale::Calibration& c = small(true)) {
  const auto bytes = sale::print_calibration(c, "p.tensors");
  uint64_t length = 0;
  std::memcpy(&length, bytes.tensors.data(), 8);
  Json header = Json::parse(bytes.tensors.substr(8, length));
  std::string data = bytes.tensors.substr(8 + length);
  change(header, data);
  const std::string text = header.dump();
  length = text.size();
  const std::string file = std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
  Json json = Json::parse(bytes.json);
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx",
                static_cast<unsigned long long>(sale::Fingerprint().add(file).value()));
  json["projections"]["fingerprint"] = digits;
  return refusal(json.dump(), file);
}

TEST(Calibration, TensorsWithoutNeedAreRefused) {
  auto c = small(false);
  c.smoothing.assign(2 * 2 * 32, 1);
  const auto with = [&](const std::function<void(Json&, std::string&)>& change) { return hostile(change, c); };
  EXPECT_EQ(with([](Json&, std::string&) {}), "");
  EXPECT_TRUE(mentions(with([](Json& h, std::string& d) { h = Json::object(), d = ""; }), "has no layer.0.smoothing"));
  EXPECT_TRUE(
      mentions(with([](Json& h, std::string&) { h.erase("layer.1.smoothing"); }), "layer.1.smoothing is missing"));
  c.scales = {1, 1, 0, 1};
  EXPECT_THROW(sale::print_calibration(c, "p.tensors"), sale::Error);
  c.scales = {1, 1, 1, 1};
  c.smoothing.clear();
  EXPECT_THROW(sale::print_calibration(c, "p.tensors"), sale::Error);
}

// A caller compiled with an older header passes shorter structs; a newer one longer ones.
TEST(Calibration, StructsOfOtherHeaders) {
  const auto handle = sale::CalibrationHandle::of(small(false));
  sale_calibration_data d{};
  d.struct_size = offsetof(sale_calibration_data, thresholds);
  d.density = 77;
  EXPECT_EQ(sale_calibration_get(handle.get(), &d), SALE_OK);
  EXPECT_EQ(d.layers, 2);
  EXPECT_EQ(d.thresholds, nullptr);
  EXPECT_EQ(d.density, 77);
  d.struct_size = sizeof d + 8;
  EXPECT_EQ(sale_calibration_get(handle.get(), &d), SALE_INVALID_ARGUMENT);
  EXPECT_TRUE(mentions(sale_last_error(), "data.struct_size"));
  sale_model model{};
  EXPECT_TRUE(mentions(sale_calibration_why_not(handle.get(), &model), "model.struct_size: 0"));
  model = small(false).model.c();
  model.struct_size = offsetof(sale_model, fingerprint);
  model.fingerprint = 1;  // beyond what this caller's header has: unknown
  EXPECT_STREQ(sale_calibration_why_not(handle.get(), &model), "");
  sale_calibration* made = nullptr;
  sale_calibration_data whole{};
  whole.struct_size = sizeof whole;
  EXPECT_EQ(sale_calibration_get(handle.get(), &whole), SALE_OK);
  whole.struct_size = offsetof(sale_calibration_data, prompts);  // no words, no figures
  EXPECT_EQ(sale_calibration_create(&whole, &made), SALE_OK) << sale_last_error();
  sale_calibration_close(made);
  whole.struct_size = sizeof whole;
  whole.thresholds = nullptr, made = nullptr;
  EXPECT_EQ(sale_calibration_create(&whole, &made), SALE_INVALID_ARGUMENT);
  EXPECT_TRUE(mentions(sale_last_error(), "calibration.thresholds: null"));
  EXPECT_EQ(made, nullptr);
}

TEST(Calibration, PrintingNeedsRoom) {
  const auto handle = sale::CalibrationHandle::of(small(true));
  size_t json = 0, tensors = 0;
  EXPECT_EQ(sale_calibration_print(handle.get(), "p", nullptr, &json, nullptr, &tensors), SALE_OK);
  std::string a(json, '?'), b(tensors, '?');
  size_t less = json - 1;
  EXPECT_EQ(sale_calibration_print(handle.get(), "p", a.data(), &less, b.data(), &tensors), SALE_OK);
  EXPECT_EQ(less, json);
  EXPECT_EQ(a, std::string(json, '?'));
  EXPECT_EQ(sale_calibration_print(handle.get(), "p", a.data(), &json, b.data(), &tensors), SALE_OK);
  EXPECT_EQ(a.front(), '{');
  EXPECT_EQ(sale_calibration_print(handle.get(), "p", nullptr, &json, b.data(), &tensors), SALE_INVALID_ARGUMENT);
}

// A local head keeps its sink and local keys, whatever the others say, on every backend of this machine.
TEST(Calibration, LocalHeadsKeepSinkAndLocalKeys) {
  constexpr int64_t n = 2048;
  std::vector<float> q(n * 32), k(n * 32);
  for (size_t i = 0; i < q.size(); ++i) q[i] = k[i] = static_cast<float>((i * 2654435761u >> 7) % 1000) * 0.02f - 10;
  k[500 * 32] = std::numeric_limits<float>::quiet_NaN();  // what anyone else would keep
  for (sale_format format : {SALE_INT8, SALE_INT4})
    for (const auto& backend : sale::backends()) {
      const sale::Problem problem(1, 1, 1, n, n, 32, SALE_F32);
      const auto options = sale::Options().threshold(SALE_TAU_LOCAL).estimator(format).backend(backend.name);
      if (!backend.why_not.empty() || backend.name.starts_with("sm")) continue;
      const sale::Plan plan(problem, options);
      sale::BlockList blocks(plan);
      const sale::Workspace workspace(plan.workspace().total);
      plan.select({.q = q.data(), .k = k.data()}, blocks, workspace);
      for (int64_t tile = 4; tile < n / 64; ++tile) {
        const auto row = blocks.row(0, 0, tile).kept;
        EXPECT_EQ(row[0], 0);
        EXPECT_EQ(row[1], std::max<int64_t>(1, 2 * tile - 4)) << backend.name << " tile " << tile;
        EXPECT_EQ(row.size(), static_cast<size_t>(2 * tile + 2 - row[1] + 1));
      }
    }
}

TEST(Calibration, FilesRoundTrip) {
  const auto folder = std::filesystem::temp_directory_path() / "sale_files_test";
  std::filesystem::create_directories(folder);
  const auto c = small(true);
  sale::write_calibration(folder / "c.json", c);
  EXPECT_EQ(sale::read_calibration(folder / "c.json").k_projections, c.k_projections);
  // As it was laid out before: any name that the JSON has.
  auto json = Json::parse(std::ifstream(folder / "c.json"));
  json["projections"]["file"] = "c.safetensors";
  std::ofstream(folder / "old.json") << json.dump();
  std::filesystem::copy_file(folder / "c.tensors", folder / "c.safetensors");
  EXPECT_EQ(sale::read_calibration(folder / "old.json").k_projections, c.k_projections);
  std::filesystem::remove(folder / "c.tensors");
  EXPECT_THROW(sale::read_calibration(folder / "c.json"), sale::Error);
  EXPECT_THROW(sale::read_calibration(folder / "absent.json"), sale::Error);
  EXPECT_THROW(sale::read_calibration(folder), sale::Error);
  std::filesystem::remove_all(folder);
}

TEST(Calibration, OptionsOfLayers) {
  const auto c = small(true);
  EXPECT_EQ(c.layer_thresholds(1)[0], 0.25f);
  EXPECT_EQ(c.layer_q_projection(1).size(), 2u * 32 * 16);
  EXPECT_EQ(c.layer_q_projection(1)[0], c.q_projections[2 * 32 * 16]);
  EXPECT_NO_THROW(c.options(1).layer(sale::Problem(1, 4, 2, 1, 1, 32, SALE_F32)));
  EXPECT_THROW(c.options(2), sale::Error);
  EXPECT_THROW(c.options(-1), sale::Error);
}

TEST(Calibration, EveryFieldIsNeeded) {
  const auto bytes = sale::print_calibration(small(false), "");
  const Json whole = Json::parse(bytes.json);
  const auto try_without = [&](Json::json_pointer parent, const std::string& name) {
    Json j = whole;
    j.at(parent).erase(name);
    EXPECT_TRUE(mentions(refusal(j.dump()), name + " is missing"))
        << parent.to_string() << name << ": " << refusal(j.dump());
  };
  for (const auto& item : whole.items()) {
    try_without(Json::json_pointer(""), item.key());
    if (item.value().is_object())
      for (const auto& inner : item.value().items()) try_without(Json::json_pointer("/" + item.key()), inner.key());
  }
}

TEST(Calibration, UnknownFieldsAreRefused) {
  const Json whole = Json::parse(sale::print_calibration(small(false), "").json);
  for (const char* parent : {"", "/model", "/estimator", "/blocks", "/provenance", "/provenance/prompts/0", "/error"}) {
    Json j = whole;
    j.at(Json::json_pointer(parent))["surprise"] = 1;
    EXPECT_TRUE(mentions(refusal(j.dump()), "'surprise' is not a known field")) << parent << ": " << refusal(j.dump());
  }
}

struct Change {
  const char *where, *value, *words;
};

TEST(Calibration, BadValuesAreNamed) {
  const Json whole = Json::parse(sale::print_calibration(small(false), "").json);
  const Change changes[] = {
      {"/schema", "2", "schema is 2"},
      {"/schema", "\"1\"", "schema is not a whole number"},
      {"/model/layers", "0", "model.layers is 0"},
      {"/model/layers", "3", "thresholds has 2 rows; 3 are needed"},
      {"/model/layers", "18446744073709551615", "model.layers is 18446744073709551615"},
      {"/model/layers", "-1", "model.layers is -1"},
      {"/model/layers", "2.0", "model.layers is not a whole number"},
      {"/model/kv_heads", "3", "a divisor of q_heads"},
      {"/model/head_dim", "33", "multiple of 16"},
      {"/model/fingerprint", "\"12\"", "16 hexadecimal digits"},
      {"/model/fingerprint", "\"0123456789ABCDEF\"", "16 hexadecimal digits"},
      {"/model/name", "7", "model.name is not text"},
      {"/estimator/format", "\"int5\"", "'int4', 'fp4', 'int8' and 'fp8' are known"},
      {"/estimator/format", "\"fp4\\u0000\"", "'int4', 'fp4', 'int8' and 'fp8' are known"},
      {"/estimator/rank", "17", "multiple of 16"},
      {"/estimator/rank", "16", "rank below head_dim needs a file"},
      {"/estimator/rank", "64", "estimator.rank is 64"},
      {"/blocks/query", "128", "blocks.query is 128"},
      {"/blocks/sink", "33", "multiple of 32"},
      {"/blocks/local", "2048", "blocks.local is 2048"},
      {"/blocks/dense_below", "-1", "blocks.dense_below is -1"},
      {"/thresholds", "{}", "thresholds is not a list"},
      {"/thresholds/1", "[1,2,3]", "thresholds[1] has 3 numbers; 4 are needed"},
      {"/thresholds/1/2", "-0.5", "thresholds[1][2] is -0.5"},
      {"/thresholds/1/2", "null", "thresholds[1][2] is not a number"},
      {"/thresholds/1/2", "1e300", "thresholds[1][2] is 1e+300"},
      {"/error/retained_mass", "1.5", "error.retained_mass is 1.5"},
      {"/provenance/prompts", "3", "provenance.prompts is not a list"},
      {"/provenance/prompts/0/tokens", "0", "tokens is 0"},
      {"/projections", "{\"file\":\"../x\",\"fingerprint\":\"0123456789abcdef\"}", "a file name without folders"},
      {"/projections", "{\"file\":\"x\",\"fingerprint\":\"0123456789abcdef\"}", "fingerprint differs"},
      {"/estimator/format", "\"fp8\"", ""},
      {"/thresholds/1/2", "\"local\"", ""},
      {"/thresholds/1/2", "\"dense\"", "thresholds[1][2] is not a number"},
      {"/thresholds/1/2", "3.4028234663852886e38", "thresholds[1][2] is 3.4028234663852886e+38"},
  };
  for (const Change& c : changes) {
    Json j = whole;
    j.at(Json::json_pointer(c.where)) = Json::parse(c.value);
    const std::string said = refusal(j.dump());
    EXPECT_TRUE(*c.words == '\0' ? said.empty() : mentions(said, c.words))
        << c.where << " = " << c.value << ": " << said;
  }
}

// The rules of ranks, which are the format's.
TEST(Calibration, Ranks) {
  const auto said = [](const char* format, int rank) {
    Json j = Json::parse(sale::print_calibration(small(true), "p.tensors").json);
    j["estimator"] = {{"format", format}, {"rank", rank}};
    return refusal(j.dump());
  };
  EXPECT_TRUE(mentions(said("int4", 16), "int4 takes only head_dim, 32"));
  EXPECT_TRUE(mentions(said("int8", 12), "a multiple of 16 is needed"));
  EXPECT_TRUE(mentions(said("fp8", 2), "a multiple of 4 is needed"));
  EXPECT_TRUE(mentions(said("fp8", 30), "a multiple of 4 is needed"));
  EXPECT_TRUE(mentions(said("int8", 0), "estimator.rank is 0"));
}

TEST(Calibration, NotJson) {
  for (const char* text : {"", "[]", "{", "null", "{\"schema\": NaN}", "{\"schema\": 1, \"schema\": 1}",
                           "{\"schema\": 1e999}", "\xff\xfe"})
    EXPECT_NE(refusal(text), "") << text;
  EXPECT_TRUE(mentions(refusal("{\"schema\": 1, \"schema\": 1}"), "given twice"));
  EXPECT_TRUE(mentions(refusal(std::string(100000, '[')), "nested deeper"));
  EXPECT_TRUE(mentions(refusal(std::string((size_t{16} << 20) + 1, ' ')), "bytes; at most"));
}

TEST(Calibration, HostileProjections) {
  const std::string first = "layer.0.q_projection", second = "layer.0.k_projection";
  const auto refused = [](const std::string& message, const std::string& words) {
    EXPECT_TRUE(mentions(message, words)) << "'" << message << "' should say '" << words << "'";
  };
  EXPECT_EQ(hostile([](Json&, std::string&) {}), "");
  refused(hostile([&](Json& h, std::string&) { h.erase(first); }), first + " is missing");
  refused(hostile([&](Json& h, std::string&) { h["more"] = h[first]; }), "'more' is not a known field");
  refused(hostile([&](Json& h, std::string&) { h[first]["dtype"] = "F64"; }), "is not F32");
  refused(hostile([&](Json& h, std::string&) { h[first]["shape"] = {2, 32, 17}; }), "has shape");
  refused(hostile([&](Json& h, std::string&) { h[first]["shape"] = {-2, -32, 16}; }), "has shape");
  refused(hostile([&](Json& h, std::string&) { h[first]["data_offsets"] = h[second]["data_offsets"]; }), "overlap");
  refused(hostile([&](Json& h, std::string&) { h[first]["data_offsets"] = {4, 4100}; }), "overlap");
  refused(hostile([&](Json& h, std::string&) { h[first]["data_offsets"] = {0, 1}; }), "data_offsets[1]");
  refused(hostile([&](Json& h, std::string&) { h[first]["data_offsets"] = {18446744073709551615u, 1}; }),
          "data_offsets[0]");
  refused(hostile([&](Json& h, std::string&) { h[first]["data_offsets"] = 3; }), "pair of numbers");
  refused(hostile([&](Json&, std::string& d) { d.pop_back(); }), "bytes of data");
  refused(hostile([&](Json&, std::string& d) { d.append(4, '\0'); }), "bytes of data");
  refused(hostile([&](Json&, std::string& d) {
            const float nan = std::nanf("");
            std::memcpy(d.data() + 40, &nan, 4);
          }),
          "holds nan at 10");
}

TEST(Calibration, TruncatedProjections) {
  const auto bytes = sale::print_calibration(small(true), "p.tensors");
  EXPECT_TRUE(mentions(refusal(bytes.json, bytes.tensors + "x"), "fingerprint differs"));
  EXPECT_TRUE(mentions(refusal(bytes.json, ""), "fingerprint differs"));
  Json json = Json::parse(bytes.json);
  for (size_t n = 0; n < 200; ++n) {
    const std::string part = bytes.tensors.substr(0, n);
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx",
                  static_cast<unsigned long long>(sale::Fingerprint().add(part).value()));
    json["projections"]["fingerprint"] = digits;
    EXPECT_NE(refusal(json.dump(), part), "") << n;
  }
}

TEST(Calibration, AnotherModelIsRefused) {
  const auto c = small(false);
  EXPECT_NO_THROW(sale::check_model(c, c.model));
  const auto difference = [&](const std::function<void(sale::ModelIdentity&)>& change) -> std::string {
    sale::ModelIdentity m = c.model;
    change(m);
    try {
      sale::check_model(c, m);
    } catch (const sale::Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(difference([](auto& m) { m.name = "renamed"; }), "");
  EXPECT_TRUE(mentions(difference([](auto& m) { m.layers = 3; }), "layers 2 ('toy'); this one has 3"));
  EXPECT_TRUE(mentions(difference([](auto& m) { m.q_heads = 8; }), "q_heads"));
  EXPECT_TRUE(mentions(difference([](auto& m) { m.kv_heads = 1; }), "kv_heads"));
  EXPECT_TRUE(mentions(difference([](auto& m) { m.head_dim = 64; }), "head_dim"));
  EXPECT_TRUE(mentions(difference([](auto& m) { m.fingerprint ^= 1; }), "fingerprint"));
}

TEST(Calibration, WrongSizesAreNotWritten) {
  auto c = small(true);
  c.thresholds.pop_back();
  EXPECT_THROW(sale::print_calibration(c, "p"), sale::Error);
  c = small(true);
  c.q_projections.pop_back();
  EXPECT_THROW(sale::print_calibration(c, "p"), sale::Error);
  c = small(true);
  c.thresholds[0] = std::nanf("");
  EXPECT_THROW(sale::print_calibration(c, "p"), sale::Error);
}

TEST(Calibration, TheBundledOneIsGood) {
  if (!std::filesystem::exists(SALE_BUNDLED)) GTEST_SKIP() << "not in this tree";
  const auto c = sale::read_calibration(SALE_BUNDLED);
  EXPECT_EQ(c.model.layers, 8);
  EXPECT_EQ(c.model.q_heads, 4);
}

TEST(Fingerprint, IsFnv1a) {
  EXPECT_EQ(sale::Fingerprint().value(), 0xcbf29ce484222325u);
  EXPECT_EQ(sale::Fingerprint().add("a").value(), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(sale::Fingerprint().add("foobar").value(), 0x85944171f73967e8u);
  const int64_t shape[] = {2, 3};
  const std::byte bytes[100] = {};
  EXPECT_EQ(sale::Fingerprint().tensor("w", "F32", shape, bytes).value(),
            sale::Fingerprint().add(std::string("w\0F32\0", 6) + "2,3," + std::string(64, '\0')).value());
}

}  // namespace
