// Subcommands that run the bundled model, on short prompts.
#include "program.hpp"

namespace sale_test {
namespace {

TEST(CliModel, BadInputIsRefusedInOneLine) {
  refused("run --model /absent", 2, "/absent");
  refused("run --prompt-file /absent", 2, "/absent: no such file");
  refused("run --prompt-file models/text/middlemarch.txt", 2, "--prompt-file: models/text/middlemarch.txt has ");
  refused("run --tokens many", 2, "--tokens: 'many' is not a count");
  refused("run --tokens 1m", 2, "--tokens: 1m is not in 16 .. 131072");
  refused("run --tokens 4k --question why", 2, "--question: only with --prompt-file");
  refused("run --tokens 4k --estimator int3", 2, "'int3' is not an estimator");
  refused("run --tokens 4k --calibration none --estimator int8:32", 2, "int8:32 needs projections");
  refused("run --tokens 4k --calibration /absent", 2, "/absent: no such file");
  refused("run --tokens 4k --calibration models/tiny-llama-128k/config.json", 2, "config.json");
  refused("run --build poem", 2, "poem");
  refused("demo --tau -1", 2, "--tau");
  refused("run --tokens 4k --backend best --quiet", 2, "best");
  refused("perplexity --tokens 4k --text /absent", 2, "/absent: no such file");
  refused("replay --model /absent", 2, "/absent");
  refused("replay --factor -1", 2, "--factor");
  refused("replay --repeats 0", 2, "--repeats");
  refused("replay --tokens 5", 2, "--tokens: 5 is not in 16 .. 131072");
  refused("mask --layer 9 --tokens 2k --out /tmp/x.png", 2, "--layer: 9 is not in 0 .. 7");
}

TEST(CliModel, WhereThereIsNoGpu) {
  if (!sale("info", "SALE_HIDE=sm90").says("SALE_HIDE takes it away")) GTEST_SKIP() << "built without CUDA";
  for (const char* command : {"run --tokens 2k", "demo --tokens 2k", "replay --tokens 1k", "perplexity --tokens 2k",
                              "mask --tokens 2k --out /tmp/x.png"}) {
    const Said s = sale(std::string(command) + " --quiet --backend sm90 --compute fp8", "SALE_HIDE=sm90");
    EXPECT_EQ(s.code, 3) << command << s.err;
    EXPECT_EQ(s.err, "sale: sm90: SALE_HIDE takes it away\n") << command;
  }
}

// The bundled model as a GGUF file: same answers, and a line that says how to calibrate it.
TEST(CliModel, GgufFile) {
  const Folder folder;
  const std::string file = folder / "tiny.gguf";
  const std::string convert =
      "cd '" SALE_SOURCE "' && python3 scripts/gguf.py convert models/tiny-llama-128k '" + file + "' >/dev/null";
  ASSERT_EQ(std::system(convert.c_str()), 0);
  const Said s = sale("run --quiet --tokens 2k --facts 2 --model " + file + " --json " + folder / "run.json");
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_NE(s.err.find("has no calibration"), std::string::npos) << s.err;
  EXPECT_NE(s.err.find("sale calibrate --model " + file), std::string::npos) << s.err;
  EXPECT_NE(s.err.find(folder / "tiny.calibration.json"), std::string::npos) << s.err;
  for (const Json& a : json_at(folder / "run.json", "run").at("answers")) EXPECT_EQ(a.at("sale"), a.at("expected"));
  const std::string cut = folder / "cut.gguf";
  std::ofstream(cut, std::ios::binary) << contents(file).substr(0, 1'000'000);
  refused("run --tokens 2k --model " + cut, 2, "cut short");
}

// A folder with a chat template: its text around prompt and question, whole answers on stdout as they come.
TEST(CliModel, Chat) {
  const Folder folder;
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"})
    std::filesystem::create_symlink(std::filesystem::path(SALE_SOURCE "/models/tiny-llama-128k") / name, folder / name);
  const std::string model = "--quiet --calibration none --model " + folder / "";
  refused("run --chat --question why " + model, 2, "no chat template");
  std::ofstream(folder / "tokenizer_config.json")
      << R"({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})";
  std::ofstream(folder / "a.txt") << "The magic word is needle-one.\n";
  std::ofstream(folder / "b.txt") << "The ship sailed at noon.\n";
  const Said s =
      sale("run --chat --new-tokens 40 --question 'The ship' --question 'The magic word' --prompt-file " +
           folder / "a.txt" + " --prompt-file - --json " + folder / "run.json " + model + " <" + folder / "b.txt");
  EXPECT_EQ(s.code, 0) << s.err;
  const Json j = json_at(folder / "run.json", "run");
  EXPECT_EQ(j.at("prompt"), "a.txt, standard input");
  ASSERT_EQ(j.at("answers").size(), 2u);
  size_t from = 0;
  for (const Json& a : j.at("answers")) {
    from = s.out.find("> " + a.at("question").get<std::string>() + "\n" + a.at("sale").get<std::string>(), from);
    EXPECT_NE(from, std::string::npos) << s.out;
  }
  refused("run --chat --tokens 2k " + model, 2, "--chat: only with --prompt-file or --question");
}

TEST(CliModel, DemoAnswersAndReports) {
  const Folder folder;
  const Said s = sale("demo --tokens 4k --quiet --report " + folder / "demo");
  EXPECT_EQ(s.code, 0) << s.out << s.err;
  EXPECT_EQ(s.err, "");
  const Json j = json_at(folder / "demo/report.json", "demo");
  for (const char* name : {"tokens", "backend", "machine", "relative_l1_error", "retained_mass"})
    EXPECT_TRUE(j.contains(name)) << name;
  for (const char* name : {"prefill_s", "attention_s"}) EXPECT_GT(j.at("dense").at(name).get<double>(), 0) << name;
  for (const char* name : {"prefill_s", "attention_s", "index_s", "select_s", "attend_s", "density"})
    EXPECT_GT(j.at("sale").at(name).get<double>(), 0) << name;
  ASSERT_EQ(j.at("answers").size(), 5u);
  for (const Json& a : j.at("answers")) {
    EXPECT_EQ(a.at("dense"), a.at("expected"));
    EXPECT_EQ(a.at("sale"), a.at("expected"));
  }
  const std::string html = contents(folder / "demo/report.html");
  EXPECT_NE(html.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_NE(html.find("data:image/png;base64,"), std::string::npos);
  EXPECT_EQ(html.find("http://"), std::string::npos);
  EXPECT_EQ(html.find("https://"), std::string::npos);
}

// A threshold that keeps the sink and the neighbourhood alone. (Decoded densely, the model would still find the
// needles.)
TEST(CliModel, WrongAnswersDecideTheDemo) {
  const Folder folder;
  EXPECT_EQ(
      sale("demo --tokens 4k --quiet --calibration none --tau 1000000 --sparse-decode --report " + folder / "demo")
          .code,
      1);
}

TEST(CliModel, ChunksAndTauZeroChangeNoAnswer) {
  const Folder folder;
  for (const char* extra : {"--chunk 700", "--calibration none --tau 0", "--calibration none --estimator int4",
                            "--sparse-decode", "--build json", "--build passkey --compare"}) {
    const Said s = sale(std::string("run --tokens 3k --quiet --json ") + folder / "r.json " + extra);
    EXPECT_EQ(s.code, 0) << extra << s.err;
    for (const Json& a : json_at(folder / "r.json", "run").at("answers"))
      EXPECT_EQ(a.at("sale"), a.at("expected")) << extra;
  }
}

TEST(CliModel, OwnPromptAndQuestions) {
  const Folder folder;
  const Said s = sale(
      "run --prompt-file models/text/moby_dick.txt --tokens 2k --quiet --new-tokens 8 --question ' The whale' "
      "--question ' He said' --json " +
      folder / "r.json");
  EXPECT_EQ(s.code, 0) << s.err;
  const Json j = json_at(folder / "r.json", "run");
  EXPECT_EQ(j.at("answers").size(), 2u);
  EXPECT_TRUE(j.at("answers")[0].at("expected").is_null());
}

TEST(CliModel, ReplayOnTheCpu) {
  const Folder folder;
  const Said s =
      sale("replay --tokens 1200 --repeats 1 --factor 1 --factor 1000 --calibration none --tau 0.004 --quiet --json " +
           folder / "r.json");
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_EQ(s.err, "");
  EXPECT_TRUE(s.says("| attention | thresholds |"));
  const Json j = json_at(folder / "r.json", "replay");
  EXPECT_GT(j.at("tokens").get<int64_t>(), 1024) << "shorter prompts run dense";
  EXPECT_GT(j.at("dense_s").get<double>(), 0);
  ASSERT_EQ(j.at("rows").size(), 2u);
  const Json &low = j.at("rows")[0], &high = j.at("rows")[1];
  EXPECT_LT(high.at("density").get<double>(), low.at("density").get<double>());
  EXPECT_LT(low.at("density").get<double>(), 1);
  EXPECT_LT(low.at("relative_l1").get<double>(), 0.2);
  for (const char* name : {"select_s", "attend_s", "total_s"}) EXPECT_GT(low.at(name).get<double>(), 0) << name;
}

TEST(CliModel, MaskOfAPrompt) {
  const Folder folder;
  const Said s =
      sale("mask --tokens 2k --quiet --layer 6 --head 3 --out " + folder / "m.svg" + " --json " + folder / "m.json");
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_EQ(json_at(folder / "m.json", "mask").at("density_of_heads").size(), 32u);
  EXPECT_TRUE(s.says("layer"));
  EXPECT_FALSE(contents(folder / "m.svg").empty());
}

}  // namespace
}  // namespace sale_test
