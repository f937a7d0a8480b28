// The report as one HTML file: nothing is loaded from elsewhere.
#include "lab/report.hpp"

#include <fmt/format.h>

#include "lab/text.hpp"

namespace sale::lab {
namespace {

std::string tile(const std::string& figure, const std::string& words) {
  return fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escape_html(figure), escape_html(words));
}

std::string headline(const Findings& f) {
  std::string html = "<div class=\"tiles\">\n";
  if (f.dense && f.sale.attention_s > 0) {
    html +=
        tile(fmt::format("{:.1f}×", f.dense->attention_s / f.sale.attention_s),
             fmt::format("faster attention: {:.1f} s instead of {:.1f} s", f.sale.attention_s, f.dense->attention_s));
    html += tile(fmt::format("{:.1f}×", f.dense->prefill_s / f.sale.prefill_s),
                 fmt::format("faster prefill: {:.1f} s instead of {:.1f} s", f.sale.prefill_s, f.dense->prefill_s));
  }
  html += tile(fmt::format("{:.1f} %", 100 * f.sale.totals.density()), "of the blocks computed");
  if (f.quality != nullptr) {
    html += tile(fmt::format("{:.1f} %", 100 * f.quality->relative_l1()), "relative L1 error of the attention output");
    html += tile(fmt::format("{:.1f} %", 100 * f.quality->retained_mass()), "of the attention mass retained");
  }
  size_t right = 0, known = 0;
  for (const Answer& a : f.sale.answers) known += a.right.has_value(), right += a.right.value_or(false);
  if (known > 0) html += tile(fmt::format("{} of {}", right, known), "answers right with SALE");
  return html + "</div>\n";
}

std::string facts(const Findings& f) {
  std::string html = "<table class=\"facts\">\n";
  const auto row = [&](const char* name, const std::string& value) {
    html += fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", name, escape_html(value));
  };
  row("Model", fmt::format("{}: {} layers, {} query heads, {} KV heads of {}", f.model, f.config->layers,
                           f.config->q_heads, f.config->kv_heads, f.config->head_dim));
  row("Prompt", fmt::format("{} tokens of {}", grouped(static_cast<int64_t>(f.task->context.size())), f.prompt));
  row("Backend", fmt::format("{}, {} threads", f.sale.backend, f.threads));
  row("Machine", sale_machine());
  row("Estimator", f.estimator + ", " + f.thresholds + (f.calibration == "none" ? "" : " (" + f.calibration + ")"));
  if (f.quality != nullptr)
    row("Quality",
        fmt::format("{} sampled rows against exact attention in double precision; worst head {:.1f} % L1 error, worst "
                    "row keeps {:.1f} % of its mass",
                    grouped(f.quality->rows()), 100 * f.quality->worst_relative_l1(), 100 * f.quality->least_mass()));
  row("Library", std::string("SALE ") + sale_version() + ", " + today());
  return html + "</table>\n";
}

std::string section(const char* title, const std::string& body, const char* words = "") {
  if (body.empty()) return "";
  const std::string text = *words == '\0' ? "" : fmt::format("<p>{}</p>\n", words);
  return fmt::format("<section>\n<h2>{}</h2>\n{}{}</section>\n", title, text, body);
}

}  // namespace

std::string html_of(const Findings& f) {
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>SALE report</title>\n<style>\n";
  html += report_style() + "</style>\n</head>\n<body>\n<main>\n<h1>SALE on " +
          escape_html(grouped(static_cast<int64_t>(f.task->context.size()))) + " tokens</h1>\n";
  html += headline(f);
  html += section("Where the time goes", time_bars(f),
                  "Seconds of prefill. The rest of the model is the same work both ways.");
  html += section("What was hidden, and what was found", answers_table(f),
                  "Greedy decoding after the same prompt, each question from the same cache.");
  html += section("Density of every head", heat_table(f),
                  "Share of 64 × 32 blocks that were computed, in percent: layers downwards, query heads across.");
  html += section("Which blocks were kept", head_pictures(f),
                  "Queries downwards, keys across; darker means more blocks kept. Orange columns: the keys where the "
                  "answers are hidden.");
  html += section("Details", facts(f));
  return html + "</main>\n</body>\n</html>\n";
}

}  // namespace sale::lab
