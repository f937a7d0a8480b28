// The table on stdout.
#include "lab/answers.hpp"

#include <fmt/format.h>

#include "lab/text.hpp"

namespace sale::lab {
namespace {

std::string seconds(double s) {
  return s >= 100 ? fmt::format("{:.0f} s", s)
         : s >= 1 ? fmt::format("{:.1f} s", s)
                  : fmt::format("{:.0f} ms", 1000 * s);
}
std::string times(double dense, double sale) { return sale > 0 ? fmt::format("{:.2f}x", dense / sale) : ""; }

struct Table {
  std::string text;
  bool both;
  void row(const std::string& name, const std::string& dense, const std::string& sale, const std::string& note = "") {
    if (both)
      text += fmt::format("{:<26} {:>12} {:>12}  {}\n", name, dense, sale, note);
    else
      text += fmt::format("{:<26} {:>12}  {}\n", name, sale, note);
  }
};

void add_times(Table& t, const Findings& f) {
  const auto dense = [&](double Outcome::* part) { return f.dense ? seconds((*f.dense).*part) : ""; };
  const auto gain = [&](double Outcome::* part) { return f.dense ? times((*f.dense).*part, f.sale.*part) : ""; };
  t.row("prefill", dense(&Outcome::prefill_s), seconds(f.sale.prefill_s), gain(&Outcome::prefill_s));
  t.row("attention", dense(&Outcome::attention_s), seconds(f.sale.attention_s), gain(&Outcome::attention_s));
  const AttentionTotals& s = f.sale.totals;
  t.row("  index", "", seconds(s.index_s));
  t.row("  select", "", seconds(s.select_s));
  t.row("  attend", f.dense ? seconds(f.dense->totals.attend_s) : "", seconds(s.attend_s),
        f.dense ? times(f.dense->totals.attend_s, s.attend_s) : "");
}

void add_quality(Table& t, const Findings& f) {
  if (const HeadErrors e = audited(f.sale.totals); e.rows > 0)
    t.row("audited L1 error", "", fmt::format("{:.2f} %", 100 * e.mean),
          fmt::format("mean over heads; worst head {:.1f} %; {} rows, {}", 100 * e.worst, grouped(e.rows),
                      seconds(f.sale.totals.audit_s)));
  t.row("density", "100 %", fmt::format("{:.1f} %", 100 * f.sale.totals.density()), "kept blocks of 64 x 32");
  if (f.quality == nullptr) return;
  t.row("relative L1 error", "", fmt::format("{:.2f} %", 100 * f.quality->relative_l1()),
        fmt::format("mean over heads; worst head {:.1f} %", 100 * f.quality->worst_relative_l1()));
  t.row("retained mass", "", fmt::format("{:.2f} %", 100 * f.quality->retained_mass()),
        fmt::format("{} rows against double precision", grouped(f.quality->rows())));
}

std::string with_verdict(const Answer& a) {
  return show(a.text, 28) + (a.right.has_value() ? *a.right ? " ok" : " WRONG" : "");
}

std::string what_is_asked(const Question& q) { return q.fact ? q.fact->key : show(q.text, 34); }

}  // namespace

HeadErrors audited(const AttentionTotals& totals) {
  HeadErrors e;
  for (const sale_head_audit& a : totals.audits) {
    e.rows += a.rows;
    e.mean += relative_l1(a) / static_cast<double>(totals.audits.size());
    e.worst = std::max(e.worst, relative_l1(a));
  }
  return e;
}

std::string table_of(const Findings& f) {
  Table t{"", f.dense.has_value()};
  t.text = fmt::format("{}, {} tokens of {}\n{}, {} threads, estimator {}, {}\n\n", f.model,
                       grouped(static_cast<int64_t>(f.task->context.size())), f.prompt, f.sale.backend, f.threads,
                       f.estimator, f.thresholds);
  t.row("", "dense", "SALE");
  add_times(t, f);
  add_quality(t, f);
  if (!f.task->questions.empty()) {
    const auto line = [&](const std::string& q, const std::string& expected, const std::string& dense,
                          const std::string& sale) {
      std::string text = fmt::format("{:<26} {:<12}", q, expected);
      if (f.dense) text += fmt::format(" {:<22}", dense);
      t.text += text + " " + sale + "\n";
    };
    t.text += "\n";
    line("asked for", "expected", "dense", "SALE");
    for (size_t i = 0; i < f.task->questions.size(); ++i) {
      const Question& q = f.task->questions[i];
      line(what_is_asked(q), q.fact ? show(q.fact->answer, 28) : "", f.dense ? with_verdict(f.dense->answers[i]) : "",
           with_verdict(f.sale.answers[i]));
    }
  }
  return t.text;
}

}  // namespace sale::lab
