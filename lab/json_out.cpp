#include "lab/answers.hpp"
#include "lab/text.hpp"

namespace sale::lab {

Json json_head(const std::string& command) {
  Json j;
  j["schema"] = json_schema;
  j["command"] = command;
  j["library"] = sale_version();
  j["machine"] = sale_machine();
  return j;
}

void write_json(const std::filesystem::path& path, const Json& json) {
  write_text(path, json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

namespace {

Json side_of(const Outcome& o) {
  Json j;
  j["prefill_s"] = o.prefill_s;
  j["attention_s"] = o.attention_s;
  j["index_s"] = o.totals.index_s;
  j["select_s"] = o.totals.select_s;
  j["attend_s"] = o.totals.attend_s;
  j["questions_s"] = o.questions_s;
  return j;
}

Json answers_of(const Findings& f) {
  Json answers = Json::array();
  for (size_t i = 0; i < f.task->questions.size(); ++i) {
    const Question& q = f.task->questions[i];
    Json a;
    a["question"] = q.text;
    a["expected"] = q.fact ? Json(q.fact->answer) : Json(nullptr);
    a["dense"] = f.dense ? Json(f.dense->answers[i].text) : Json(nullptr);
    a["sale"] = f.sale.answers[i].text;
    if (q.fact) a["tokens_at"] = {q.fact->begin, q.fact->end};
    answers.push_back(a);
  }
  return answers;
}

}  // namespace

Json json_of(const Findings& f) {
  Json j = json_head(f.title);
  j["model"] = f.model;
  j["prompt"] = f.prompt;
  j["tokens"] = f.task->context.size();
  j["backend"] = f.sale.backend;
  j["threads"] = f.threads;
  j["estimator"] = f.estimator;
  j["calibration"] = f.calibration;
  j["thresholds"] = f.thresholds;
  if (f.dense) j["dense"] = side_of(*f.dense);
  Json sale = side_of(f.sale);
  sale["density"] = f.sale.totals.density();
  Json heads = Json::array();
  for (size_t h = 0; h < f.sale.totals.heads.size(); ++h) heads.push_back(f.sale.totals.density(h));
  sale["density_of_heads"] = heads;
  if (const HeadErrors e = audited(f.sale.totals); e.rows > 0) {
    sale["audit"] = {{"rows", e.rows},
                     {"seconds", f.sale.totals.audit_s},
                     {"relative_l1_error", e.mean},
                     {"relative_l1_error_worst_head", e.worst}};
    Json errors = Json::array();
    for (const sale_head_audit& a : f.sale.totals.audits) errors.push_back(relative_l1(a));
    sale["audit"]["relative_l1_error_of_heads"] = errors;
  }
  Json guard = Json::array();
  for (const GuardStep& s : f.sale.guard)
    guard.push_back(
        {{"layer", s.layer}, {"head", s.head}, {"tau", s.tau}, {"audited_error", s.error}, {"next_tau", s.next_tau}});
  if (!guard.empty()) sale["guard"] = guard;
  j["sale"] = sale;
  if (f.quality != nullptr) {
    j["relative_l1_error"] = f.quality->relative_l1();
    j["relative_l1_error_worst_head"] = f.quality->worst_relative_l1();
    j["retained_mass"] = f.quality->retained_mass();
    j["retained_mass_least_row"] = f.quality->least_mass();
    j["rows_measured"] = f.quality->rows();
  }
  j["answers"] = answers_of(f);
  return j;
}

void write_report(const std::filesystem::path& folder, const Findings& f) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);  // a failure shows when the files are written
  write_text(folder / "report.html", html_of(f));
  write_json(folder / "report.json", json_of(f));
}

}  // namespace sale::lab
