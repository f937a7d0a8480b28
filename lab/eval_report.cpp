// What an evaluation found: Markdown, JSON and pictures.
#include <algorithm>
#include <cmath>

#include "lab/eval.hpp"
#include "lab/text.hpp"

namespace sale::lab {
namespace {

struct Score {
  double sum = 0;
  int64_t questions = 0, contexts = 0;
  double mean() const { return sum / static_cast<double>(std::max<int64_t>(questions, 1)); }
};

template <class F>
void each(const Done& done, const std::string& side, int64_t tokens, F&& f) {
  for (const auto& [key, s] : done)
    if (s.side == side && s.tokens == tokens) f(s);
}

Score score_of(const Done& done, const std::string& side, int64_t tokens, const std::string& task) {
  Score score;
  each(done, side, tokens, [&](const Sitting& s) {
    bool any = false;
    for (const Sitting::Mark& m : s.marks)
      if (m.task == task) score.sum += m.score, ++score.questions, any = true;
    score.contexts += any;
  });
  return score;
}

// Perplexity of part `part` of eight, or of all.
double perplexity_of(const Done& done, const std::string& side, int64_t tokens, int part = -1) {
  double sum = 0;
  int64_t count = 0;
  each(done, side, tokens, [&](const Sitting& s) {
    for (int i = 0; i < 8; ++i)
      if (part < 0 || i == part)
        sum += s.losses[static_cast<size_t>(i)].sum, count += s.losses[static_cast<size_t>(i)].count;
  });
  return count > 0 ? std::exp(sum / static_cast<double>(count)) : 0;
}

struct Times {
  Sitting mean;  // its times and density
  int64_t contexts = 0;
};
Times times_of(const Done& done, const std::string& side, int64_t tokens) {
  constexpr double Sitting::* parts[] = {&Sitting::prefill_s, &Sitting::attention_s, &Sitting::index_s,
                                         &Sitting::select_s,  &Sitting::attend_s,    &Sitting::first_token_s,
                                         &Sitting::density};
  Times t;
  t.mean.density = 0;
  each(done, side, tokens, [&](const Sitting& s) {
    ++t.contexts;
    for (auto part : parts) t.mean.*part += s.*part;
  });
  for (auto part : parts) t.mean.*part /= static_cast<double>(std::max<int64_t>(t.contexts, 1));
  return t;
}

std::string seconds(double s) { return s >= 10 ? fmt::format("{:.1f} s", s) : fmt::format("{:.2f} s", s); }

std::string row(const std::vector<std::string>& cells) { return fmt::format("| {} |\n", fmt::join(cells, " | ")); }
std::string head(const std::vector<std::string>& cells) {
  std::string rule = "|";
  for (size_t i = 0; i < cells.size(); ++i) rule += "---|";
  return row(cells) + rule + "\n";
}

std::string accuracy_table(const EvalPlan& plan, const Done& done) {
  std::vector<std::string> names{"task", "tokens", "questions (contexts)"};
  names.insert(names.end(), plan.sides.begin(), plan.sides.end());
  std::string text = head(names);
  for (const std::string& task : plan.tasks)
    for (int64_t tokens : plan.lengths) {
      const Score n = score_of(done, plan.sides[0], tokens, task);
      if (n.questions == 0) continue;
      std::vector<std::string> cells{task, tokens_name(tokens), fmt::format("{} ({})", n.questions, n.contexts)};
      for (const std::string& side : plan.sides)
        cells.push_back(fmt::format("{:.1f} %", 100 * score_of(done, side, tokens, task).mean()));
      text += row(cells);
    }
  return text;
}

std::string perplexity_cells(const EvalPlan& plan, const Done& done, int64_t tokens, int part,
                             std::vector<std::string> cells) {
  const double dense = perplexity_of(done, plan.sides[0], tokens, part);
  if (dense == 0) return {};
  cells.push_back(fmt::format("{:.3f}", dense));
  for (size_t i = 1; i < plan.sides.size(); ++i) {
    const double p = perplexity_of(done, plan.sides[i], tokens, part);
    cells.push_back(fmt::format("{:.3f} ({:+.2f} %)", p, 100 * (p / dense - 1)));
  }
  return row(cells);
}

std::string perplexity_table(const EvalPlan& plan, const Done& done) {
  std::vector<std::string> names{"tokens", "of the context"};
  names.insert(names.end(), plan.sides.begin(), plan.sides.end());
  std::string rows;
  for (int64_t tokens : plan.lengths) rows += perplexity_cells(plan, done, tokens, -1, {tokens_name(tokens), "all"});
  for (int part = 0; part < 8; ++part)
    rows += perplexity_cells(plan, done, plan.lengths.back(), part,
                             {tokens_name(plan.lengths.back()), fmt::format("eighth {}", part + 1)});
  return rows.empty() ? rows : head(names) + rows;
}

std::string time_table(const EvalPlan& plan, const Done& done) {
  std::string text = head({"tokens", "side", "density", "attention", "index", "select", "attend", "rest of the model",
                           "first token", "attention, faster"});
  for (int64_t tokens : plan.lengths) {
    const Times dense = times_of(done, plan.sides[0], tokens);
    for (const std::string& side : plan.sides) {
      const Times t = times_of(done, side, tokens);
      if (t.contexts == 0) continue;
      const Sitting& m = t.mean;
      const double parts = m.index_s + m.select_s + m.attend_s, reference = dense.mean.attend_s;
      text +=
          row({tokens_name(tokens), side, fmt::format("{:.1f} %", 100 * m.density), seconds(parts), seconds(m.index_s),
               seconds(m.select_s), seconds(m.attend_s), seconds(m.prefill_s - parts), seconds(m.first_token_s),
               side == plan.sides[0] || parts == 0 ? "" : fmt::format("{:.1f}x", reference / parts)});
    }
  }
  return text;
}

constexpr int depths = 10;
Score at_depth(const Done& done, const std::string& side, int64_t tokens, int depth) {
  Score score;
  each(done, side, tokens, [&](const Sitting& s) {
    for (const Sitting::Mark& m : s.marks) {
      if (m.task != "single" && m.task != "multikey") continue;
      if (std::min(depths - 1, static_cast<int>(m.depth * depths)) == depth) score.sum += m.score, ++score.questions;
    }
  });
  return score;
}

}  // namespace

std::string markdown_of(const EvalPlan& plan, const Done& done, const Json& settings) {
  std::string text = fmt::format("# Evaluation of {}\n\n`{}`, {} {}; {}.\n\n", settings.at("model").get<std::string>(),
                                 settings.at("command").get<std::string>(), "SALE", sale_version(), today());
  text += std::string(sale_machine()) + "\n\n";
  text +=
      "A question is asked from the cache of its context; questions that share a context are counted one by one. "
      "Right, of all questions (tasks with several answers: share of the answers found).\n\n";
  text += accuracy_table(plan, done);
  if (const std::string table = perplexity_table(plan, done); !table.empty())
    text += "\nPerplexity of the text around the facts (tokens of facts left out):\n\n" + table;
  text += "\nSeconds of the prefill, mean over contexts. First token: prefill and the first question.\n\n";
  return text + time_table(plan, done);
}

Json summary_of(const EvalPlan& plan, const Done& done) {
  Json rows = Json::array();
  for (int64_t tokens : plan.lengths)
    for (const std::string& side : plan.sides) {
      const Times t = times_of(done, side, tokens);
      if (t.contexts == 0) continue;
      Json r{{"tokens", tokens}, {"side", side}, {"contexts", t.contexts}};
      r["density"] = t.mean.density, r["prefill_s"] = t.mean.prefill_s, r["attention_s"] = t.mean.attention_s;
      r["index_s"] = t.mean.index_s, r["select_s"] = t.mean.select_s, r["attend_s"] = t.mean.attend_s;
      r["first_token_s"] = t.mean.first_token_s;
      for (const std::string& task : plan.tasks)
        if (const Score s = score_of(done, side, tokens, task); s.questions > 0)
          r["tasks"][task] = {{"questions", s.questions}, {"contexts", s.contexts}, {"accuracy", s.mean()}};
      if (const double p = perplexity_of(done, side, tokens); p > 0) {
        r["perplexity"] = p;
        for (int part = 0; part < 8; ++part)
          r["perplexity_by_eighth"].push_back(perplexity_of(done, side, tokens, part));
      }
      rows.push_back(r);
    }
  return rows;
}

std::string heatmap_of(const EvalPlan& plan, const Done& done, const std::string& side) {
  constexpr int cell = 46, left = 64, top = 42;
  const int wide = left + depths * cell, high = top + static_cast<int>(plan.lengths.size()) * cell + 8;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"4\" y=\"16\">{}: needles found, by "
      "depth</text>\n",
      wide + 8, high, escape_html(side));
  for (int d = 0; d < depths; ++d)
    svg += fmt::format("<text x=\"{}\" y=\"36\" text-anchor=\"middle\">{} %</text>\n", left + d * cell + cell / 2,
                       (2 * d + 1) * 100 / (2 * depths));
  for (size_t l = 0; l < plan.lengths.size(); ++l) {
    const int y = top + static_cast<int>(l) * cell;
    svg += fmt::format("<text x=\"4\" y=\"{}\">{}</text>\n", y + cell / 2 + 5, tokens_name(plan.lengths[l]));
    for (int d = 0; d < depths; ++d) {
      const Score s = at_depth(done, side, plan.lengths[l], d);
      const double share = s.mean();
      // Red at 0, green at 1, grey where nobody asked.
      const std::string colour = s.questions == 0 ? "#ddd" : fmt::format("hsl({:.0f},60%,70%)", 120 * share);
      svg += fmt::format(
          "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"><title>{} of {}</title></rect>\n"
          "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
          left + d * cell, y, cell - 2, cell - 2, colour, s.sum, s.questions, left + d * cell + cell / 2 - 1,
          y + cell / 2 + 5, s.questions == 0 ? "" : fmt::format("{:.0f}", 100 * share));
    }
  }
  return svg + "</svg>\n";
}

}  // namespace sale::lab
