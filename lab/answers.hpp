// A finished run or comparison, and how it is shown: table, JSON, report.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "lab/picture.hpp"
#include "lab/quality.hpp"
#include "lab/session.hpp"

namespace sale::lab {

using Json = nlohmann::ordered_json;

struct Findings {
  std::string title, model, prompt, estimator, calibration, thresholds;
  const Task* task = nullptr;
  const lm::Config* config = nullptr;
  int threads = 0;
  Outcome sale;
  std::optional<Outcome> dense;
  const Quality* quality = nullptr;  // each may be absent
  const Pictures* pictures = nullptr;
  const Finders* finders = nullptr;
};

// Relative L1 errors of heads, by audit.
struct HeadErrors {
  double mean = 0, worst = 0;
  int64_t rows = 0;
};
HeadErrors audited(const AttentionTotals& totals);

// The one table.
std::string table_of(const Findings& f);
Json json_of(const Findings& f);
// Self-contained HTML.
std::string html_of(const Findings& f);
// report.html and report.json.
void write_report(const std::filesystem::path& folder, const Findings& f);

// json_out.cpp. Every --json begins so: "schema", "command", "library", "machine". docs/program.md lists the rest; a
// field that goes or changes its meaning raises the number, a new one does not.
constexpr int json_schema = 1;
Json json_head(const std::string& command);
void write_json(const std::filesystem::path& path, const Json& json);

}  // namespace sale::lab
