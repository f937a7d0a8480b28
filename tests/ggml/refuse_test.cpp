// What is not served, and that it is said by name.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "plugin.hpp"
#include "prompt.hpp"

using namespace fake;

namespace {

struct Case {
  const char* why;
  Shape shape;
  std::function<void(Tensor&)> change;
};

void parameter(Tensor& op, int i, float f) { std::memcpy(&op.op_params[i], &f, 4); }

}  // namespace

TEST(Refuse, OperationsByName) {
  const Case cases[] = {
      {"ALiBi", {}, [](Tensor& op) { parameter(op, 1, 8); }},
      {"soft-capped", {}, [](Tensor& op) { parameter(op, 2, 50); }},
      {"sinks", {}, [](Tensor& op) { op.src[4] = make(f32, 4, 1, 1, 1, "sinks"); }},
      {"source 6", {}, [](Tensor& op) { op.src[6] = op.src[4] = nullptr, op.src[6] = make(f32, 4, 1, 1, 1, "x"); }},
      {"sparse mask", {}, [](Tensor& op) { op.op_params[4] = 512; }},
      {"number 9", {}, [](Tensor& op) { op.op_params[9] = 1; }},
      {"scale", {}, [](Tensor& op) { parameter(op, 0, 0); }},
      {"fewer than 32", {}, [](Tensor& op) { op.src[0]->ne[1] = op.ne[2] = 31; }},
      {"no KV cache", {}, [](Tensor& op) { op.src[1]->view_src = nullptr; }},
      {"no KV cache", {}, [](Tensor& op) { std::strcpy(op.src[1]->view_src->name, "cache_k_lx"); }},
      {"q4_0", {.k_type = q4_0, .v_type = q4_0}, {}},
      {"head dimension 40", {.dim = 40}, {}},
      {"head dimension 512", {.dim = 512}, {}},
      {"head dimension 48",
       {.k_type = q8_0, .v_type = q8_0, .dim = 96},
       [](Tensor& op) {
         for (int i = 0; i < 3; ++i) op.src[i]->ne[0] = 48;
       }},
      {"64 and 32", {}, [](Tensor& op) { op.src[2]->ne[0] = 32; }},
      {"K of type f16 with V of type f32", {.v_type = f32}, {}},
      {"do not fit", {}, [](Tensor& op) { op.src[0]->ne[2] = 5; }},
      {"do not fit", {}, [](Tensor& op) { op.src[2]->ne[1] -= 1; }},
      {"unusual strides", {}, [](Tensor& op) { op.src[2]->nb[0] = 4; }},
      {"plain f32", {}, [](Tensor& op) { op.src[0]->type = f16; }},
      {"a mask of", {}, [](Tensor& op) { op.src[3]->ne[2] = 4; }},
      {"a mask of", {}, [](Tensor& op) { op.src[3]->ne[1] = 10; }},
      {"a mask with unusual", {}, [](Tensor& op) { op.src[3]->nb[1] += 2; }},
      {"without Q", {}, [](Tensor& op) { op.src[1] = nullptr; }},
  };
  for (const Case& c : cases) {
    Session session;
    Prompt prompt(c.shape, 256);
    Tensor* op = prompt.causal(64, 0, 256);
    if (c.change) c.change(*op);
    EXPECT_FALSE(session.claims(op)) << c.why;
    // Something must be computed for the statistics to appear.
    Prompt served({}, 256);
    session.compute(served.causal(64, 0, 256));
    EXPECT_NE(session.end()["declined"].dump().find(c.why), std::string::npos) << c.why;
  }
}

TEST(Refuse, OtherOperationsExceptThoseWithoutWork) {
  const Session session;
  EXPECT_FALSE(session.claims(operation(op_multiply, f32, 8, 8, 1, 1)));
  EXPECT_TRUE(session.claims(operation(op_view, f32, 8, 8, 1, 1)));
}

// ---- loading, each time in a program of its own ----------------------------------------------------------------

namespace {

struct Loaded {
  bool good;
  std::string said;
};

Loaded load(const std::string& environment, int version = 2) {
  const std::string command =
      environment + " " SALE_GGML_TEST " --load " + std::to_string(version) + " 2>&1; echo \"status $?\"";
  FILE* pipe = popen(command.c_str(), "r");
  std::string said;
  for (int c; (c = std::fgetc(pipe)) != EOF;) said += static_cast<char>(c);
  pclose(pipe);
  return {said.find("status 0\n") != std::string::npos, said};
}

std::string file(const std::string& name, const std::string& text) {
  const std::string path = std::string(SALE_GGML_SCRATCH) + "/" + name;
  std::ofstream(path) << text;
  return path;
}

void expect_refused(const Loaded& l, const std::string& why) {
  EXPECT_FALSE(l.good) << why;
  EXPECT_NE(l.said.find(why), std::string::npos) << why << "\nwas not in\n" << l.said;
  EXPECT_EQ(l.said.find("sale: not loaded: "), 0u) << l.said;
  EXPECT_EQ(std::count(l.said.begin(), l.said.end(), '\n'), 2) << l.said;  // one line, and the status
}

}  // namespace

TEST(Load, InterfaceVersions) {
  EXPECT_TRUE(load("", 2).good);
  EXPECT_TRUE(load("", 3).good);
  for (int version : {1, 4}) expect_refused(load("", version), "interface version " + std::to_string(version));
}

TEST(Load, WrongSettings) {
  const std::pair<const char*, const char*> variables[] = {
      {"SALE_GGML_TAU=-1", "SALE_GGML_TAU"},
      {"SALE_GGML_TAU=nan", "SALE_GGML_TAU"},
      {"SALE_GGML_TAU=much", "SALE_GGML_TAU: \"much\""},
      {"SALE_GGML_ESTIMATOR=int2", "\"int8\", \"int4\" or \"fp4\""},
      {"SALE_GGML_COMPUTE=1", "SALE_GGML_COMPUTE"},
      {"SALE_GGML_DENSE_BELOW=1.5", "whole number"},
      {"SALE_GGML_MIN_ROWS=1", "SALE_GGML_MIN_ROWS"},
      {"SALE_GGML_ANY_KEYS=2", "true or false"},
      {"SALE_GGML_BACKEND=fast", "fast"},
      {"SALE_BACKEND=fast", "fast"},
      {"SALE_GGML_THRESHOLD=0.01", "SALE_GGML_THRESHOLD is not a setting"},
      {"SALE_GGML_Tau=0.01", "SALE_GGML_Tau is not a setting"},
      {"SALE_GGML_=1", "SALE_GGML_ is not a setting"},
      {"SALE_GGML_CONFIGURATION=", "SALE_GGML_CONFIGURATION is not a setting"},
      {"SALE_GGML_CALIBRATION=/nowhere/c.json", "does not exist"},
      {"SALE_GGML_CONFIG=/nowhere/c.json", "cannot be read"},
  };
  for (const auto& [set, why] : variables) expect_refused(load(set), why);
}

TEST(Load, WrongFiles) {
  const std::pair<const char*, const char*> files[] = {
      {"", "not a JSON object"},
      {"[1]", "not a JSON object"},
      {"{\"tau\": 0.004", "not a JSON object"},
      {"{\"taus\": 1}", "taus is not a setting"},
      {"{\"tau\": \"0.1\"}", "tau: \"0.1\" is not a number"},
      {"{\"tau\": 1e99}", "tau"},
      {"{\"min_rows\": 1e300}", "min_rows"},
      {"{\"backend\": \"\"}", "backend"},
      {"{\"calibration\": \"missing.json\"}", "missing.json does not exist"},
      {"{\"calibration\": \"config.json\"}", "schema is missing"},
  };
  for (const auto& [text, why] : files) expect_refused(load("SALE_GGML_CONFIG=" + file("config.json", text)), why);
  expect_refused(load("SALE_GGML_CONFIG=" + file("config.json", std::string(2 << 20, ' '))), "2097152 bytes");
  const std::string good = file("config.json", "{\"tau\": 0.01, \"min_rows\": 64, \"audit\": 2, \"any_keys\": true}");
  EXPECT_TRUE(load("SALE_GGML_CONFIG=" + good).good);
  // The environment wins, also when it is wrong.
  expect_refused(load("SALE_GGML_CONFIG=" + good + " SALE_GGML_AUDIT=-2"), "SALE_GGML_AUDIT");
}
