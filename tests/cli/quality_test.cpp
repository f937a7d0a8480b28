// Subcommands that calibrate and evaluate, on short prompts.
#include <algorithm>
#include <cmath>

#include "program.hpp"

namespace sale_test {
namespace {

const std::string moby = "--data models/text/moby_dick.txt --tokens 4k --json-prompts 0 --rows 8";

TEST(CliQuality, BadInputIsRefusedInOneLine) {
  const Folder folder;
  const std::string out = " --out " + folder / "x";
  refused("calibrate --data /absent" + out, 2, "/absent: no such file");
  refused("calibrate --tokens 1m" + out, 2, "--tokens: 1m is not in 4096 .. 131072");
  refused("calibrate --tokens 2k" + out, 2, "--tokens: 2k is not in");
  std::ofstream(folder / "short.txt") << "Not much of a text.\n";
  refused("calibrate --tokens 4k --data " + folder / "short.txt" + out, 2, "short.txt has 6 tokens; --tokens asks for");
  refused("calibrate --needles 1" + out, 2, "--needles: 1, but there is no --data");
  refused("calibrate --json-prompts 0" + out, 2, "nothing to calibrate on");
  refused("calibrate --paper 0.4 --budget 0.1" + out, 2, "--paper: a goal of its own");
  refused("calibrate --error 2" + out, 2, "--error");
  refused("project --data models/text/moby_dick.txt --tokens 4k --rank 40 --out /tmp/x.json", 2, "--rank: 40");
  refused("eval --lengths 1m" + out, 2, "--lengths: 1m is not in 2048 .. 131072");
  refused("eval --tasks poem" + out, 2, "poem");
  refused("eval --text /absent" + out, 2, "/absent: no such file");
  refused("eval --calibration /absent" + out, 2, "/absent: no such file");
  refused("audit --tokens 1k", 2, "--tokens: 1k is not in 2048 .. 65536");
  refused("audit --rows 0", 2, "--rows");
  refused("run --tokens 2k --guard -1", 2, "--guard");
  refused("run --tokens 2k --audit 70000", 2, "--audit");
}

TEST(CliQuality, ProjectCalibrateRun) {
  const Folder folder;
  const std::string text = "--data models/text/moby_dick.txt --tokens 4k --json-prompts 0 --quiet";
  Said s = sale("project " + text + " --rank 32 --out " + folder / "p.json" + " --json " + folder / "p_said.json");
  ASSERT_EQ(s.code, 0) << s.err;
  Json j = json_at(folder / "p_said.json", "project");
  EXPECT_EQ(j.at("energy_left_out_of_layers").size(), 8u);
  EXPECT_EQ(j.at("estimator"), "int8:32");
  s = sale("calibrate " + text + " --budget 0.1 --error 0.1 --time 0.3 --rows 8 --calibration " + folder / "p.json" +
           " --out " + folder / "c.json" + " --json " + folder / "c_said.json");
  ASSERT_EQ(s.code, 0) << s.err;
  j = json_at(folder / "c_said.json", "calibrate");
  ASSERT_EQ(j.at("results").size(), 3u);
  for (const Json& r : j.at("results")) {
    EXPECT_EQ(r.at("thresholds").size(), 32u);
    EXPECT_LT(r.at("density").get<double>(), 1);
    EXPECT_GT(r.at("seconds_per_block").get<double>(), 0);
    EXPECT_GT(r.at("dense_attention_s").get<double>(), r.at("attention_s").get<double>());
  }
  EXPECT_LE(j.at("results")[1].at("relative_l1_error").get<double>(), 0.12) << "every head within 0.1, but for grids";
  const std::string page = contents(folder / "c_0.html");
  EXPECT_NE(page.find("Threshold of every head"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder / "c.json.progress")) << "left behind";

  const std::string calibration = folder / "c_0.json";
  s = sale("perplexity --tokens 3k --quiet --most 20 --calibration " + calibration + " --json " + folder / "x.json");
  EXPECT_EQ(s.code, 0) << s.out << s.err;
  EXPECT_LT(json_at(folder / "x.json", "perplexity").at("density").get<double>(), 1);
  refused("run --tokens 2k --estimator int8:64 --calibration " + calibration, 2, "int8:32");
  Json other = Json::parse(contents(calibration));
  other["model"]["fingerprint"] = "0000000000000000";
  std::ofstream(folder / "other.json") << other.dump();
  refused("run --tokens 2k --calibration " + folder / "other.json", 2, "fingerprint 0000000000000000");
  refused("eval --lengths 2k --out " + folder / "e --calibration " + folder / "other.json", 2, "fingerprint 0000");
}

TEST(CliQuality, ThePapersProcedureHalves) {
  const Folder folder;
  const Said s = sale("calibrate --paper 0.3 --json-prompts 1 --tokens 4k --rows 8 --quiet --estimator int4 --out " +
                      folder / "c.json --json " + folder / "j.json");
  ASSERT_EQ(s.code, 0) << s.err;
  bool lowered = false, kept = false;
  const Json j = json_at(folder / "j.json", "calibrate");
  for (const Json& t : j.at("results")[0].at("thresholds")) {
    const double tau = t.get<double>(), halvings = std::log2(0.008 / tau);
    kept = kept || std::fabs(halvings) < 1e-6, lowered = lowered || tau == 0 || halvings > 0.5;
    EXPECT_TRUE(tau == 0 || std::fabs(halvings - std::round(halvings)) < 1e-5) << tau;
    EXPECT_TRUE(tau == 0 || tau >= 0.0001) << tau;
  }
  EXPECT_TRUE(lowered && kept) << "a limit that tells no heads apart tests nothing";
}

// The calibration cannot be written: what was measured is kept, and the next run measures nothing. What it then says of
// an error that no threshold reaches.
TEST(CliQuality, InterruptedCalibrationGoesOnAndUnreachableErrorsAreSaid) {
  const Folder folder;
  const std::string out = folder / "c.json", rest = moby + " --error 0 --out " + out;
  std::filesystem::create_directories(out);
  Said s = sale("calibrate " + rest);
  EXPECT_EQ(s.code, 2) << s.err;
  EXPECT_NE(s.err.find("measuring 1 of 1"), std::string::npos) << s.err;
  refused("calibrate --seed 2 --quiet " + rest, 2, "c.json.progress is of other work (command: ");
  std::filesystem::remove(out);
  std::ofstream(out + ".progress", std::ios::app) << "{\"tries\": [[";  // cut off
  s = sale("calibrate " + rest);
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_EQ(s.err, "") << "nothing was left to measure";
  EXPECT_TRUE(std::filesystem::exists(out));
  EXPECT_TRUE(s.says("dense, since no threshold is within: layer 0 head 0, "));
}

TEST(CliQuality, EvalAnswersAndGoesOnWhereItWas) {
  const Folder folder;
  const std::string command =
      "eval --tasks multikey keyvalue perplexity --lengths 2k --prompts 20 --contexts 1 --out " + folder / "e";
  Said s = sale(command);
  ASSERT_EQ(s.code, 0) << s.err;
  const Json j = json_at(folder / "e/eval.json", "eval");
  ASSERT_EQ(j.at("results").size(), 2u);
  const Json &dense = j.at("results")[0], &sparse = j.at("results")[1];
  EXPECT_EQ(dense.at("side"), "dense");
  for (const char* task : {"multikey", "keyvalue"}) {
    EXPECT_EQ(dense.at("tasks").at(task).at("questions"), 20);
    EXPECT_GE(dense.at("tasks").at(task).at("accuracy").get<double>(), 0.9) << task;
    EXPECT_GE(sparse.at("tasks").at(task).at("accuracy").get<double>(), 0.9) << task;
  }
  EXPECT_LT(sparse.at("density").get<double>(), 1);
  EXPECT_NEAR(sparse.at("perplexity").get<double>() / dense.at("perplexity").get<double>(), 1, 0.1);
  EXPECT_EQ(dense.at("perplexity_by_eighth").size(), 8u);
  EXPECT_NE(contents(folder / "e/needles-dense.svg").find("<svg"), std::string::npos);

  const std::string results = contents(folder / "e/results.jsonl");
  EXPECT_EQ(std::count(results.begin(), results.end(), '\n'), 5) << "settings and four sittings";
  std::ofstream(folder / "e/results.jsonl") << results.substr(0, results.size() - 20);  // cut off in its last line
  s = sale(command);
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_EQ(std::count(s.err.begin(), s.err.end(), '\n'), 1) << "one sitting had to be done again: " << s.err;
  EXPECT_EQ(json_at(folder / "e/eval.json", "eval").at("results")[1].at("tasks"), sparse.at("tasks"));
  refused(command + " --seed 2", 2, "results.jsonl is of other work (seed: 1 there, 2 now)");
}

TEST(CliQuality, GuardMakesHeadsDenserAndSaysSo) {
  const Folder folder;
  const std::string common = "run --tokens 3k --calibration none --tau 0.2 --quiet --json " + folder / "r.json";
  Said s = sale(common + " --audit 64");
  ASSERT_EQ(s.code, 0) << s.err;
  const Json before = json_at(folder / "r.json", "run").at("sale");
  EXPECT_FALSE(before.contains("guard"));
  EXPECT_EQ(before.at("audit").at("rows"), 64 * 32);
  const double worst = before.at("audit").at("relative_l1_error_worst_head").get<double>();
  s = sale(common + " --guard 0.1");
  ASSERT_EQ(s.code, 0) << s.err;
  EXPECT_TRUE(s.says("guard: layer ")) << s.out;
  const Json after = json_at(folder / "r.json", "run").at("sale");
  EXPECT_GT(worst, 0.2);
  EXPECT_LE(after.at("audit").at("relative_l1_error_worst_head").get<double>(), 0.1);
  EXPECT_GT(after.at("density").get<double>(), before.at("density").get<double>());
  for (const Json& step : after.at("guard")) {
    EXPECT_GT(step.at("audited_error").get<double>(), 0.1);
    EXPECT_LT(step.at("next_tau").get<double>(), step.at("tau").get<double>());
  }
}

TEST(CliQuality, AuditsTellTheError) {
  const Folder folder;
  const Said s = sale("audit --tokens 2k --rows 64 512 --seeds 1 --quiet --json " + folder / "a.json");
  ASSERT_EQ(s.code, 0) << s.err;
  const Json j = json_at(folder / "a.json", "audit");
  EXPECT_EQ(j.at("error_of_heads").size(), 32u);
  ASSERT_EQ(j.at("rows").size(), 2u);
  EXPECT_LT(j.at("rows")[1].at("off_median").get<double>(), 0.1);
  EXPECT_LT(j.at("rows")[1].at("off_median").get<double>(), j.at("rows")[0].at("off_median").get<double>());
}

}  // namespace
}  // namespace sale_test
