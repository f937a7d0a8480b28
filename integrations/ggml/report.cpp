#include "report.hpp"

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace sale::ggml {
namespace {

constexpr size_t most_texts = 256;

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

}  // namespace

void Report::open(const std::string& destination) {
  if (!destination.empty() && destination != "stderr" && !std::ofstream(destination, std::ios::app))
    throw std::runtime_error("stats: " + destination + " cannot be written");
  destination_ = destination;
}

void Report::notice(const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (said_.size() < most_texts && said_.insert(text).second) std::fprintf(stderr, "sale: %s\n", text.c_str());
}

void Report::declined(const std::string& why, bool silent) {
  {
    const std::lock_guard lock(mutex_);
    if (declined_.size() < most_texts || declined_.contains(why)) ++declined_[why];
  }
  if (!silent) notice("attention stays with ggml: " + why);
}

void Report::write(const Totals& t) {
  const std::lock_guard lock(mutex_);
  if (destination_.empty()) return;
  nlohmann::ordered_json json = {
      {"schema", 1},
      {"calls", t.calls},
      {"rows", {{"sparse", t.sparse_rows}, {"dense", t.dense_rows}, {"ggml", t.ggml_rows}, {"blind", t.blind_rows}}},
      {"density",
       t.visible_blocks > 0 ? ratio(static_cast<double>(t.kept_blocks), static_cast<double>(t.visible_blocks)) : 1.0},
      {"keys", {{"coded", t.keys_coded}, {"reused", t.keys_reused}}},
      {"index_bytes", t.index_bytes},
      {"seconds",
       {{"mask", t.mask_s},
        {"pack", t.pack_s},
        {"index", t.index_s},
        {"select", t.select_s},
        {"attend", t.attend_s},
        {"ggml", t.ggml_s},
        {"audit", t.audit_s}}},
      {"declined", declined_}};
  if (t.audited > 0)
    json["audit"] = {{"rows", t.audited},
                     {"relative_l1", ratio(t.audit_error, t.audit_norm)},
                     {"retained_mass", ratio(t.audit_mass, static_cast<double>(t.audited))},
                     {"least_mass", t.least_mass}};
  const std::string line = json.dump() + "\n";
  if (destination_ == "stderr")
    std::fputs(line.c_str(), stderr);
  else
    std::ofstream(destination_, std::ios::app) << line;
}

}  // namespace sale::ggml
