// What the subcommands share: how they are added, how they fail, what they leave with.
#pragma once

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "lab/refuse.hpp"
#include "sale/sale.hpp"

namespace sale::cli {

using namespace lab;

enum Exit { good = 0, check_failed = 1, bad_input = 2, unsupported = 3, internal_error = 4 };

// A subcommand adds itself to the program and leaves its work in `action`, which runs once everything is parsed.
using Action = std::function<int()>;
void add_run(CLI::App& program, Action& action);
void add_demo(CLI::App& program, Action& action);
void add_info(CLI::App& program, Action& action);
void add_check(CLI::App& program, Action& action);
void add_bench(CLI::App& program, Action& action);
void add_explain(CLI::App& program, Action& action);
void add_mask(CLI::App& program, Action& action);
void add_project(CLI::App& program, Action& action);
void add_calibrate(CLI::App& program, Action& action);
void add_perplexity(CLI::App& program, Action& action);
void add_replay(CLI::App& program, Action& action);
void add_eval(CLI::App& program, Action& action);
void add_audit(CLI::App& program, Action& action);
void add_adopt(CLI::App& program, Action& action);

}  // namespace sale::cli
