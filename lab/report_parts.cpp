#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <numeric>

#include "lab/report.hpp"
#include "lab/text.hpp"

namespace sale::lab {

std::string report_style() {
  return R"css(:root { --bg: #fbfbf9; --fg: #1c1d20; --soft: #62656c; --line: #dcdcd6; --card: #ffffff;
  --rest: #b9bcc4; --index: #8a5fc0; --select: #d9772b; --attend: #2f6fd0; --good: #1c7c45; --bad: #b3261e; --heat: 47, 111, 208; }
@media (prefers-color-scheme: dark) { :root { --bg: #15161a; --fg: #e9e9e6; --soft: #9da1a9; --line: #33353c; --card: #1d1f24;
  --rest: #5a5e68; --index: #b08be0; --select: #eb9652; --attend: #6aa0f2; --good: #69c98f; --bad: #f2857d; --heat: 106, 160, 242; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { color: var(--soft); margin: .2rem 0 .8rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .8rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; } .tile span { color: var(--soft); font-size: .85rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--fg); font: 13px system-ui, sans-serif; }
svg .soft { fill: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; color: var(--soft); margin-top: .3rem; }
.key i { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .35em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .facts th { width: 6.5rem; color: var(--soft); font-weight: 400; }
td.good { color: var(--good); } td.bad { color: var(--bad); font-weight: 600; }
.heat { width: auto; } .heat td, .heat th { text-align: center; min-width: 3.2rem; border: 2px solid var(--bg); font-variant-numeric: tabular-nums; }
.heat th { color: var(--soft); font-weight: 400; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); border-radius: .3rem; }
figcaption { font-size: .85rem; color: var(--soft); }
)css";
}

namespace {

struct Part {
  const char *name, *colour;
  double seconds;
};

std::array<Part, 4> parts_of(const Outcome& o) {
  return {{{"rest of the model", "rest", std::max(0.0, o.prefill_s - o.attention_s)},
           {"index", "index", o.totals.index_s},
           {"select", "select", o.totals.select_s},
           {"attend", "attend", o.totals.attend_s}}};
}

std::string bar(const char* name, const Outcome& o, double longest, int y) {
  constexpr double left = 52, width = 470;
  std::string svg = fmt::format("<text x=\"0\" y=\"{}\">{}</text>\n", y + 19, name);
  double x = left;
  for (const Part& p : parts_of(o)) {
    const double w = width * p.seconds / longest;
    svg += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"28\" fill=\"var(--{})\"><title>{}: {:.2f} "
        "s</title></rect>\n",
        x, y, w, p.colour, p.name, p.seconds);
    x += w;
  }
  return svg + fmt::format("<text class=\"soft\" x=\"{:.1f}\" y=\"{}\">{:.1f} s</text>\n", x + 6, y + 19, o.prefill_s);
}

}  // namespace

std::string time_bars(const Findings& f) {
  const double longest = std::max({f.sale.prefill_s, f.dense ? f.dense->prefill_s : 0.0, 1e-9});
  std::string svg =
      fmt::format("<svg viewBox=\"0 0 600 {}\" role=\"img\" aria-label=\"prefill time\">\n", f.dense ? 78 : 38);
  if (f.dense) svg += bar("Dense", *f.dense, longest, 4);
  svg += bar("SALE", f.sale, longest, f.dense ? 42 : 4) + "</svg>\n<div class=\"key\">";
  for (const Part& p : parts_of(f.sale))
    svg += fmt::format("<span><i style=\"background: var(--{})\"></i>{} {:.2f} s</span>", p.colour, p.name, p.seconds);
  return svg + "</div>\n";
}

std::string answers_table(const Findings& f) {
  if (f.task->questions.empty()) return "";
  const auto cell = [](const Answer& a) {
    const char* kind = a.right.has_value() ? *a.right ? " class=\"good\"" : " class=\"bad\"" : "";
    return fmt::format("<td{}>{}{}</td>", kind, escape_html(a.text), a.right.has_value() ? *a.right ? " ✓" : " ✗" : "");
  };
  std::string html = "<div class=\"scroll\"><table>\n<tr><th>Question</th><th>Expected</th>";
  html += f.dense ? "<th>Dense</th><th>SALE</th></tr>\n" : "<th>SALE</th></tr>\n";
  for (size_t i = 0; i < f.task->questions.size(); ++i) {
    const Question& q = f.task->questions[i];
    html += fmt::format("<tr><td>{}</td><td>{}</td>", escape_html(q.text), q.fact ? escape_html(q.fact->answer) : "");
    if (f.dense) html += cell(f.dense->answers[i]);
    html += cell(f.sale.answers[i]) + "</tr>\n";
  }
  return html + "</table></div>\n";
}

std::string heat_table(const Findings& f) {
  const auto heads = static_cast<size_t>(f.config->q_heads), layers = static_cast<size_t>(f.config->layers);
  std::string html = "<div class=\"scroll\"><table class=\"heat\">\n<tr><th></th>";
  for (size_t h = 0; h < heads; ++h) html += fmt::format("<th>head {}</th>", h);
  html += "</tr>\n";
  for (size_t l = 0; l < layers; ++l) {
    html += fmt::format("<tr><th>layer {}</th>", l);
    for (size_t h = 0; h < heads; ++h) {
      const double density = f.sale.totals.density(l * heads + h);
      html += fmt::format("<td style=\"background: rgba(var(--heat), {:.2f})\">{:.1f}</td>", 0.06 + 0.6 * density,
                          100 * density);
    }
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

namespace {

struct Choice {
  size_t head;
  std::string why;
};

// The head that finds the facts with the fewest blocks, the sparsest, the middle and the densest; no head twice.
std::vector<Choice> choose(const Findings& f) {
  std::vector<size_t> order(f.sale.totals.heads.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return f.sale.totals.density(a) < f.sale.totals.density(b); });
  std::vector<Choice> chosen;
  const auto add = [&](size_t head, std::string why) {
    if (std::none_of(chosen.begin(), chosen.end(), [&](const Choice& c) { return c.head == head; }))
      chosen.push_back({head, std::move(why)});
  };
  if (f.finders != nullptr && f.finders->asked() > 0) {
    const auto best = std::max_element(order.begin(), order.end(),
                                       [&](size_t a, size_t b) { return f.finders->found(a) < f.finders->found(b); });
    add(*best,
        fmt::format("kept the answer's block when asked, {} of {} times", f.finders->found(*best), f.finders->asked()));
  }
  add(order.front(), "the sparsest head");
  add(order[order.size() / 2], "the middle head");
  add(order.back(), "the densest head");
  return chosen;
}

}  // namespace

std::string head_pictures(const Findings& f) {
  if (f.pictures == nullptr) return "";
  const auto tokens = static_cast<int64_t>(f.task->context.size());
  std::vector<KeyMark> marks;
  for (const Question& q : f.task->questions)
    if (q.fact) marks.push_back({q.fact->begin, q.fact->end});
  std::string html = "<div class=\"pictures\">\n";
  for (const Choice& c : choose(f)) {
    const auto heads = static_cast<size_t>(f.config->q_heads);
    const std::string name = fmt::format("layer {}, head {}", c.head / heads, c.head % heads);
    html += fmt::format(
        "<figure><img alt=\"kept blocks of {}\" src=\"data:image/png;base64,{}\">\n<figcaption>{}: {:.1f} % kept; "
        "{}</figcaption></figure>\n",
        name, base64(png_of(f.pictures->head(c.head), marks, tokens)), name, 100 * f.sale.totals.density(c.head),
        c.why);
  }
  return html + "</div>\n";
}

}  // namespace sale::lab
