// What the subcommands that take problem lines share.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "answers.hpp"
#include "case/instance.hpp"
#include "command.hpp"

namespace sale::cli {

// A plan without key indexes, and its workspace once there is something to run.
class CasePlan {
public:
  // backend "": what the options say.
  CasePlan(const sale_problem& problem, sale_options options, const std::string& backend, bool dense = false);
  const sale_plan* get() const { return handle_.get(); }
  const Workspace& workspace() {
    workspace_.need(sale_plan_workspace(handle_.get()).total);
    return workspace_;
  }

private:
  struct Free {
    void operator()(sale_plan* p) const { sale_plan_destroy(p); }
  };
  std::unique_ptr<sale_plan, Free> handle_;
  Workspace workspace_;
};

std::string joined(const std::vector<std::string>& words);
// The problem line on the command line, or those of --file.
std::vector<std::string> lines_of(const std::vector<std::string>& words, const std::string& file);
void add_line_options(CLI::App& command, std::vector<std::string>& words, std::string& file);

// Backends to go through for a line: --backend, else the line's own, else every usable one. Those that refuse the
// problem are named with their reason in `refused`.
struct BackendChoice {
  std::vector<std::string> usable;
  std::vector<std::pair<std::string, std::string>> refused;  // name, why not
};
BackendChoice backends_for(const sale_case::Instance& in, const std::string& forced);

}  // namespace sale::cli
