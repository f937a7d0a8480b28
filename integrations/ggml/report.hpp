// What is said to the user: notices, each once, on stderr; and on request one line of JSON with what was done, when a
// context goes.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace sale::ggml {

struct Totals {
  int64_t calls = 0;
  int64_t sparse_rows = 0, dense_rows = 0, ggml_rows = 0, blind_rows = 0;  // query rows, per layer
  int64_t kept_blocks = 0, visible_blocks = 0;                             // of sparse rows
  int64_t keys_coded = 0, keys_reused = 0;
  size_t index_bytes = 0;
  double mask_s = 0, pack_s = 0, index_s = 0, select_s = 0, attend_s = 0, ggml_s = 0, audit_s = 0;
  int64_t audited = 0;
  double audit_error = 0, audit_norm = 0;  // sums of |difference| and |exact| over audited rows
  double audit_mass = 0, least_mass = 1;   // retained mass: sum and least
};

class Report {
public:
  // "stderr", a file that is appended to, or "" for none. Throws std::runtime_error when the file cannot be written.
  void open(const std::string& destination);
  bool wanted() const { return !destination_.empty(); }
  // Once per text.
  void notice(const std::string& text);
  // Why an operation stays with ggml; counted, and said once unless it is what happens all the time.
  void declined(const std::string& why, bool silent);
  void write(const Totals& totals);

private:
  std::mutex mutex_;
  std::string destination_;
  std::set<std::string> said_;
  std::map<std::string, int64_t> declined_;
};

}  // namespace sale::ggml
