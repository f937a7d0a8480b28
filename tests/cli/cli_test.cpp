// Subcommands that need no model.
#include "program.hpp"

namespace sale_test {
namespace {

TEST(Cli, HelpAndVersion) {
  EXPECT_EQ(sale("--help").code, 0);
  EXPECT_TRUE(sale("--help").says("Exit codes: 0 good, 1 a check failed, 2 bad usage"));
  EXPECT_TRUE(sale("--version").says("sale "));
  for (const char* command : {"run", "demo", "info", "check", "bench", "explain", "mask", "project", "calibrate",
                              "perplexity", "replay", "eval", "audit", "adopt"}) {
    const Said s = sale(std::string(command) + " --help");
    EXPECT_EQ(s.code, 0) << command;
    EXPECT_TRUE(s.says("--json")) << command;
    const size_t at = s.out.find("Exit codes:");
    EXPECT_NE(at, std::string::npos) << command;
    EXPECT_EQ(s.out.find("Exit codes:", at + 1), std::string::npos) << command << ": printed twice";
  }
}

TEST(Cli, BadUsageIsRefusedInOneLine) {
  refused("", 2, "subcommand");
  refused("walk", 2, "'walk' is not a subcommand");
  refused("info --loud", 2, "--loud");
  refused("check", 2, "give a problem line");
  refused("check k=2k --file x", 2, "one of the two");
  refused("check --file /absent", 2, "/absent: no such file");
  refused("check --file /tmp", 2, "/tmp: not a file");
  refused("check k=2k colour=red", 2, "colour=red");
  refused("check k=0", 2, "=0");
  refused("explain k=2k d=24", 2, "head_dim: 24");
  refused("explain k=9999999m", 2, "q_len");
  refused("bench k=2k --backend best", 2, "'best' is not a backend");
  refused("bench k=2k --repeats 0", 2, "--repeats");
  refused("bench k=2k --baseline /absent", 2, "/absent: no such file");
  refused("mask k=2k --out picture.bmp", 2, "picture.bmp");
  refused("mask k=2k --head 5 --out /tmp/x.png", 2, "--head: 5 is not in 0 .. 0");
  refused("info --json /absent/folder/x.json", 2, "/absent/folder/x.json: cannot be written");
}

// Every option that takes a number with a point, of every command: ranges do not see NaN.
TEST(Cli, NumbersThatAreNotFinite) {
  int options = 0;
  for (const std::string command : {"run", "demo", "info", "check", "bench", "explain", "mask", "project", "calibrate",
                                    "perplexity", "replay", "eval", "audit"}) {
    std::istringstream help(sale(command + " --help").out);
    for (std::string line; std::getline(help, line);) {
      const size_t name = line.find("--"), type = line.find(" FLOAT");
      if (name == std::string::npos || type == std::string::npos) continue;
      ++options;
      const std::string option = line.substr(name, line.find_first_of(" ,=", name) - name);
      const bool writes = command == "project" || command == "calibrate" || command == "eval";
      const std::string needed = command == "bench" ? " k=2k " : writes ? " --out /absent/c.json " : " ";
      for (const char* value : {"nan", "-nan", "NAN", "inf", "-inf"})
        refused(command + needed + option + " " + value, 2, option);
    }
  }
  EXPECT_GE(options, 8);
  refused("check k=2k tau=nan", 2, "tau");
  refused("explain k=2k scale=nan", 2, "scale");
}

// A problem that is wrong for every backend is wrong in the same words everywhere, not in those of the first backend.
TEST(Cli, WhatIsWrongIsSaidByAllCommands) {
  const Folder folder;
  const std::string picture = " --out " + (folder / "m.png");
  for (const auto& [line, named] : {std::pair<std::string, std::string>{"d=65", "head_dim: 65"},
                                    {"k=2k d=24", "head_dim: 24"},
                                    {"k=2k qheads=3 kvheads=2", "q_heads: 3"},
                                    {"k=2k sink=33", "sink: 33"},
                                    {"k=2k estimator=int8:24", "rank: 24"}})
    for (const std::string command : {"check ", "bench ", "explain ", "mask "})
      refused(command + line + (command == "mask " ? picture : ""), 2, named);
}

// What is printed goes to a full disk.
TEST(Cli, ResultsThatCannotBeWritten) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  for (const char* command :
       {"info", "info --table", "explain d=64", "check k=300", "--help", "--version", "run --help"}) {
    const Said s = sale(command, "", "/dev/full");
    EXPECT_EQ(s.code, 2) << command;
    EXPECT_NE(s.err.find("standard output: cannot be written"), std::string::npos) << command << ": " << s.err;
  }
}

TEST(Cli, UnusableBackendIsUnsupported) {
  const Said info = sale("info", "SALE_HIDE=avx512");
  const Said s = sale("check k=2k --backend avx512", "SALE_HIDE=avx512");
  if (!info.says("SALE_HIDE=")) GTEST_SKIP() << "this machine has nothing to hide";
  EXPECT_EQ(s.code, 3) << s.err;
}

// Parsed like any other backend, and refused for what is missing.
TEST(Cli, WhereThereIsNoGpu) {
  const Folder folder;
  ASSERT_EQ(sale("info --json " + folder / "i.json").code, 0);
  const Json info = json_at(folder / "i.json", "info");
  std::string gpu;  // the first of the list that scans FP8
  for (const Json& b : info.at("backends")) {
    if (b.at("on_device") == true && b.at("usable") == true) GTEST_SKIP() << "there is one";
    if (gpu.empty() && b.at("format") == "fp8") gpu = b.at("name");
  }
  const std::string cpu = info.at("backends").back().at("name");
  const std::string line = "qheads=2 kvheads=1 k=2k d=128 estimator=fp8:28 compute=fp8 compensate=1";
  refused("check " + line + " --backend " + gpu, 3, gpu + ": ");
  refused("check " + line + " backend=" + gpu, 3, gpu + ": ");
  refused("bench " + line + " --backend " + gpu, 3, gpu + ": ");
  refused("mask " + line + " --backend " + gpu + " --out " + folder / "m.png", 3, gpu + ": ");
  refused("explain " + line + " backend=" + gpu, 3, gpu);
  // Nor does a CPU take what only GPUs have.
  refused("check " + line + " --backend " + cpu, 3, cpu + ": ");
  refused("bench k=2k compute=fp8 --backend " + cpu, 3, "SALE_COMPUTE_FP8");
  refused("bench k=2k compute=f16 --backend " + cpu, 3, "SALE_COMPUTE_F16");
  refused("mask k=2k compensate=1 compute=int8 --backend " + cpu + " --out " + folder / "m.png", 3, "compensate");
  EXPECT_FALSE(std::filesystem::exists(folder / "m.png"));
}

TEST(Cli, Info) {
  const Folder folder;
  const Said s = sale("info --json " + folder / "i.json");
  EXPECT_EQ(s.code, 0);
  const Json j = json_at(folder / "i.json", "info");
  const Json& last = j.at("backends").back();
  const std::string name = last.at("name");
  EXPECT_TRUE(s.says(name));
  EXPECT_EQ(last.at("usable"), true);
  EXPECT_EQ(last.at("on_device"), false);
  EXPECT_EQ(last.at("q_block"), 64);
  EXPECT_EQ(last.at("format"), "int8");
  for (const Json& row : j.at("support")) {
    if (row.at("backend") == name && row.at("estimator") == "int4") {
      const bool of_gpus = row.at("products") == "fp8" || row.at("products") == "f16";
      EXPECT_EQ(row.at("head_dims").size(), of_gpus ? 0u : 11u) << row;
    }
  }
  const Said table = sale("info --table --json " + folder / "t.json");
  EXPECT_EQ(json_at(folder / "t.json", "info"), j);
  EXPECT_EQ(table.code, 0);
  EXPECT_TRUE(table.says("| " + name + " | f32, f16, bf16 | exact, int8 |"));
}

TEST(Cli, Explain) {
  const Folder folder;
  const Said s =
      sale("explain batch=2 qheads=32 kvheads=8 k=1m d=128 type=bf16 estimator=int8:64 --json " + folder / "e.json");
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_TRUE(s.says("workspace"));
  const Json p = json_at(folder / "e.json", "explain").at("problems")[0];
  EXPECT_GT(p.at("key_index_bytes").get<int64_t>(), 0);
  EXPECT_EQ(p.at("workspace_bytes").get<int64_t>(),
            p.at("table_bytes").get<int64_t>() + p.at("key_index_bytes").get<int64_t>() +
                p.at("selection_bytes").get<int64_t>() + p.at("scratch_bytes").get<int64_t>());
}

TEST(Cli, Check) {
  const Folder folder;
  std::ofstream(folder / "lines")
      << "# two lines\nqheads=2 kvheads=1 k=1500 d=32 type=bf16 tau=0.02\n\nk=1100 q=300 d=64 type=f32 data=nan-v\n";
  const Said s = sale("check --file " + folder / "lines" + " --json " + folder / "c.json");
  EXPECT_EQ(s.code, 0) << s.out << s.err;
  EXPECT_TRUE(s.says("0 failed"));
  const Json j = json_at(folder / "c.json", "check");
  EXPECT_GE(j.at("rows").size(), 2u);
  for (const Json& row : j.at("rows")) EXPECT_EQ(row.at("good"), true);
  EXPECT_TRUE(sale("check k=1100 d=32 --backend portable").says("1 runs, 0 failed"));
}

TEST(Cli, Bench) {
  const Folder folder;
  const std::string line = "qheads=2 kvheads=1 k=1100 d=32 type=bf16 --backend portable --repeats 3 --quiet";
  const Said s = sale("bench " + line + " --json " + folder / "b.json");
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_EQ(s.err, "");
  EXPECT_EQ(s.out.rfind("| problem |", 0), 0u);
  const Json row = json_at(folder / "b.json", "bench").at("rows")[0];
  EXPECT_EQ(row.at("sale_samples_s").size(), 3u);
  EXPECT_GT(row.at("sale_s").get<double>(), 0);
  EXPECT_TRUE(sale("bench " + line + " --baseline " + folder / "b.json").says("against baseline"));
  std::ofstream(folder / "not") << "{\"schema\": 1}";
  refused("bench " + line + " --baseline " + folder / "not", 2, "was not written by sale bench");
}

TEST(Cli, Mask) {
  const Folder folder;
  const Said s =
      sale("mask qheads=2 kvheads=1 k=4k d=32 --head 1 --out " + folder / "m.png" + " --json " + folder / "m.json");
  EXPECT_EQ(s.code, 0) << s.err;
  EXPECT_EQ(contents(folder / "m.png").substr(1, 3), "PNG");
  EXPECT_EQ(json_at(folder / "m.json", "mask").at("density_of_heads").size(), 2u);
  EXPECT_EQ(sale("mask k=4k d=32 --out " + folder / "m.svg").code, 0);
  EXPECT_EQ(contents(folder / "m.svg").rfind("<svg", 0), 0u);
}

}  // namespace
}  // namespace sale_test
