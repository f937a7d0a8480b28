#include "lab/calibration_report.hpp"

#include <cmath>

#include "lab/report.hpp"
#include "lab/text.hpp"

namespace sale::lab {
namespace {

// A cell of a layer x head table: its text, and how much colour it gets, 0 .. 1.
struct Cell {
  std::string text;
  double heat;
};

template <class F>
std::string heat_table(const CalibrationFindings& f, F&& cell) {
  const auto heads = static_cast<size_t>(f.calibration->model.q_heads);
  std::string html = "<div class=\"scroll\"><table class=\"heat\">\n<tr><th></th>";
  for (size_t h = 0; h < heads; ++h) html += fmt::format("<th>head {}</th>", h);
  html += "</tr>\n";
  for (size_t i = 0; i < f.count(); ++i) {
    if (i % heads == 0) html += fmt::format("<tr><th>layer {}</th>", i / heads);
    const Cell c = cell(i);
    html += fmt::format("<td style=\"background: rgba(var(--heat), {:.2f})\">{}</td>", 0.06 + 0.6 * c.heat, c.text);
    if (i % heads == heads - 1) html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

// "dense", "local", or so many digits.
std::string words_of(float tau, int digits) {
  if (tau == 0 || tau == SALE_TAU_LOCAL) return tau == 0 ? "dense" : "local";
  return digits > 2 ? fmt::format("{:.{}f}", tau, digits) : fmt::format("{:.{}g}", tau, digits);
}

// From dense to 4 on a scale of doublings.
double heat_of(float tau) {
  return tau == 0 ? 1 : std::clamp((2 - std::log2(static_cast<double>(tau))) / 15, 0.0, 1.0);
}

std::string time_of(const CalibrationFindings& f) {
  if (f.found.dense_attention_s <= 0) return {};
  return fmt::format("attention {:.3g} s instead of {:.3g} s by the cost model ({:.3g} ns a block)",
                     f.found.attention_s, f.found.dense_attention_s, 1e9 * f.found.seconds_per_block);
}

std::string sums_of(const CalibrationFindings& f) {
  const Calibration& c = *f.calibration;
  return fmt::format("density {:.1f} %, relative L1 error {:.2f} %, retained mass {:.2f} %", 100 * c.density,
                     100 * c.relative_l1, 100 * c.retained_mass);
}

}  // namespace

std::string dense_heads(const CalibrationFindings& f) {
  std::string text;
  const auto heads = static_cast<size_t>(f.calibration->model.q_heads);
  for (size_t i = 0; i < f.count(); ++i)
    if (f.calibration->thresholds[i] == 0)
      text += fmt::format("{}layer {} head {}", text.empty() ? "" : ", ", i / heads, i % heads);
  return text;
}

std::string table_of(const CalibrationFindings& f) {
  const Calibration& c = *f.calibration;
  const auto heads = static_cast<size_t>(c.model.q_heads);
  std::string text = fmt::format("{}\n{:<8} {:<6} {:>12} {:>10} {:>12} {:>12} {:>10}\n", f.found.goal, "layer", "head",
                                 "threshold", "density", "L1 error", "of layer's", "mass");
  for (size_t i = 0; i < f.count(); ++i) {
    const sale_calibrator_head& p = f.head(i);
    text +=
        fmt::format("{:<8} {:<6} {:>12} {:>8.1f} % {:>10.2f} % {:>10.2f} % {:>8.2f} %\n", i / heads, i % heads,
                    words_of(c.thresholds[i], 6), 100 * f.density(i), 100 * p.relative, 100 * p.error, 100 * p.mass);
  }
  text += "all: " + sums_of(f) + "\n";
  if (const std::string time = time_of(f); !time.empty()) text += time + "\n";
  if (const std::string dense = dense_heads(f); !dense.empty())
    text += "dense, since no threshold is within: " + dense + "\n";
  return text;
}

std::string html_of(const CalibrationFindings& f) {
  const Calibration& c = *f.calibration;
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">\n<title>SALE calibration</title>\n<style>\n" +
      report_style() + "</style>\n</head>\n<body>\n<main>\n<h1>Calibration of " + escape_html(c.model.name) + "</h1>\n";
  html += fmt::format("<p>{}: {}.</p>\n<p>{}</p>\n", escape_html(f.found.goal), sums_of(f), escape_html(time_of(f)));
  html +=
      "<h2>Threshold of every head</h2>\n<p>Darker is lower; 0 runs densely. Layers downwards, query heads "
      "across.</p>\n";
  html += heat_table(f, [&](size_t i) { return Cell{words_of(c.thresholds[i], 2), heat_of(c.thresholds[i])}; });
  html += "<h2>Density of every head</h2>\n<p>Percent of blocks computed, all prompts.</p>\n";
  html += heat_table(f, [&](size_t i) { return Cell{fmt::format("{:.1f}", 100 * f.density(i)), f.density(i)}; });
  html += "<h2>Error of every head</h2>\n<p>Percent of its own output, L1, the worst prompt.</p>\n";
  html += heat_table(f, [&](size_t i) {
    return Cell{fmt::format("{:.1f}", 100 * f.head(i).relative), std::min(1.0, 3 * f.head(i).relative)};
  });
  html += "<h2>Prompts</h2>\n<table>\n";
  for (const CalibrationText& t : c.prompts)
    html += fmt::format("<tr><td>{}</td><td>{} tokens</td></tr>\n", escape_html(t.text), grouped(t.tokens));
  return html + fmt::format("</table>\n<p><code>{}</code></p>\n</main>\n</body>\n</html>\n", escape_html(c.command));
}

}  // namespace sale::lab
