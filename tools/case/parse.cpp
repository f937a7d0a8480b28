// The words of a problem line: one table says how each is read, written and explained.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <set>
#include <span>

#include "case/case.hpp"

namespace sale_case {
namespace {

using Text = std::string_view;

constexpr std::array layouts{"bhld", "blhd", "padded", "packed", "fused"};
constexpr std::array datas{"normal",  "real-like", "integers", "constant", "zeros", "zero-rows",
                           "outlier", "large",     "tiny",     "denormal", "huge",  "nan-q",
                           "nan-k",   "nan-v",     "inf-q",    "inf-k",    "inf-v"};
constexpr std::array dtypes{"f32", "f16", "bf16"};
constexpr std::array computes{"exact", "int8", "fp8", "f16"};

// Digits, then nothing, k or m. Empty on anything else, or beyond `most`.
std::optional<int64_t> number(Text t, int64_t most) {
  int64_t unit = 1;
  if (!t.empty() && (t.back() == 'k' || t.back() == 'm')) {
    unit = t.back() == 'k' ? 1024 : 1024 * 1024;
    t.remove_suffix(1);
  }
  if (t.empty() || t.size() > 19 || t.find_first_not_of("0123456789") != Text::npos) return {};
  int64_t n = 0;
  if (std::from_chars(t.data(), t.data() + t.size(), n).ec != std::errc{}) return {};
  if (n > most / unit) return {};
  return n * unit;
}

std::optional<float> real(Text t) {
  // strtof alone would also take hexadecimal numbers, "inf" and leading blanks.
  if (t.empty() || t.size() > 40 || t.find_first_not_of("0123456789.eE+-") != Text::npos) return {};
  const std::string s(t);
  char* end = nullptr;
  const float x = std::strtof(s.c_str(), &end);
  if (end != s.c_str() + s.size() || !std::isfinite(x) || x < 0) return {};
  return x;
}

template <class T, class Read>
bool list(Text t, std::vector<T>& to, Read read) {
  to.clear();
  while (true) {
    const size_t comma = t.find(',');
    const std::optional<T> item = read(t.substr(0, comma));
    if (!item || to.size() == 65536) return false;
    to.push_back(*item);
    if (comma == Text::npos) return true;
    t.remove_prefix(comma + 1);
  }
}

template <class T>
bool assign(std::optional<int64_t> n, T& to) {
  if (n) to = static_cast<T>(*n);
  return n.has_value();
}

template <class E>
bool choose(Text t, std::span<const char* const> names, E& to) {
  for (size_t i = 0; i < names.size(); ++i)
    if (t == names[i]) {
      to = static_cast<E>(i);
      return true;
    }
  return false;
}

bool flag(Text t, bool& to) {
  to = t == "1";
  return t == "0" || t == "1";
}

std::string join(std::span<const char* const> names) {
  std::string s;
  for (const char* n : names) s += (s.empty() ? "" : ", ") + std::string(n);
  return s;
}

// Shortest text that reads back as the same float.
std::string shortest(float x) {
  char s[48];
  const auto r = std::to_chars(s, s + sizeof s, x);
  return {s, r.ptr};
}

std::string sized(int64_t n) { return n >= 1024 && n % 1024 == 0 ? std::to_string(n / 1024) + "k" : std::to_string(n); }

template <class T, class Write>
std::string joined(const std::vector<T>& items, Write write) {
  std::string s;
  for (const T& i : items) {
    if (!s.empty()) s += ',';
    s += write(i);
  }
  return s;
}

std::optional<int64_t> offset(Text t) { return t == "auto" ? SALE_AUTO : number(t, INT64_MAX); }
std::string offset_text(int64_t n) { return n == SALE_AUTO ? "auto" : sized(n); }
std::optional<int64_t> tokens(Text t) { return number(t, INT64_MAX); }

bool read_estimator(Text t, Case& c) {
  const size_t colon = t.find(':');
  const std::string format(t.substr(0, colon));
  if (sale_format_from_name(format.c_str(), &c.format) != SALE_OK || format != sale_format_name(c.format)) return false;
  c.rank = 0;
  if (colon == Text::npos) return true;
  const auto rank = number(t.substr(colon + 1), INT32_MAX);
  return rank && *rank > 0 && assign(rank, c.rank);
}

std::string estimator_text(const Case& c) {
  std::string s = sale_format_name(c.format);
  if (c.rank != 0) s.append(":").append(std::to_string(c.rank));
  return s;
}

bool read_backend(Text t, Case& c) {
  const Text letters = "abcdefghijklmnopqrstuvwxyz0123456789-_";
  if (t.empty() || t.size() > 40 || t.find_first_not_of(letters) != Text::npos) return false;
  c.backend = t;
  return true;
}

bool one_tau(Text t, Case& c) {
  const auto x = real(t);
  if (x) c.taus = {*x};
  return x.has_value();
}

constexpr const char* count = "digits, with k (1024) or m (1048576)";
constexpr const char* counts = "one number per sequence, with commas between";

// write: empty text leaves the word out.
struct Word {
  const char* key;
  std::string allowed;
  bool (*read)(Text, Case&);
  std::string (*write)(const Case&);
};

const std::vector<Word>& words() {
  static const std::vector<Word> table{
      {"batch", "digits", [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.batch); },
       [](const Case& c) { return std::to_string(c.batch); }},
      {"qheads", "digits, a multiple of kvheads",
       [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.q_heads); },
       [](const Case& c) { return std::to_string(c.q_heads); }},
      {"kvheads", "digits", [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.kv_heads); },
       [](const Case& c) { return std::to_string(c.kv_heads); }},
      {"q", count, [](Text t, Case& c) { return assign(tokens(t), c.q_len); },
       [](const Case& c) { return c.q_lens.empty() ? sized(c.q_len) : ""; }},
      {"k", count, [](Text t, Case& c) { return assign(tokens(t), c.k_len); },
       [](const Case& c) { return c.k_lens.empty() ? sized(c.k_len) : ""; }},
      {"qlens", counts, [](Text t, Case& c) { return list(t, c.q_lens, tokens); },
       [](const Case& c) { return joined(c.q_lens, sized); }},
      {"klens", counts, [](Text t, Case& c) { return list(t, c.k_lens, tokens); },
       [](const Case& c) { return joined(c.k_lens, sized); }},
      {"offset", std::string("auto, or ") + count, [](Text t, Case& c) { return assign(offset(t), c.q_offset); },
       [](const Case& c) { return c.q_offsets.empty() ? offset_text(c.q_offset) : ""; }},
      {"offsets", "auto or a number per sequence, with commas between",
       [](Text t, Case& c) { return list(t, c.q_offsets, offset); },
       [](const Case& c) { return joined(c.q_offsets, offset_text); }},
      {"d", "digits, a multiple of 16", [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.head_dim); },
       [](const Case& c) { return std::to_string(c.head_dim); }},
      {"type", join(dtypes), [](Text t, Case& c) { return choose(t, dtypes, c.dtype); },
       [](const Case& c) { return std::string(name(c.dtype)); }},
      {"scale", "a number > 0, or 0 for 1/sqrt(d)",
       [](Text t, Case& c) {
         const auto x = real(t);
         if (x) c.scale = *x;
         return x.has_value();
       },
       [](const Case& c) { return c.scale != 0 ? shortest(c.scale) : ""; }},
      {"tau", "a number >= 0; 0 is dense", one_tau,
       [](const Case& c) { return c.taus.size() == 1 ? shortest(c.taus[0]) : ""; }},
      {"taus", "one number >= 0 per query head, with commas between",
       [](Text t, Case& c) { return list(t, c.taus, real); },
       [](const Case& c) { return c.taus.size() > 1 ? joined(c.taus, shortest) : ""; }},
      {"estimator", "int8, int4, fp4 or fp8, also with :RANK", read_estimator, estimator_text},
      {"compute", join(computes), [](Text t, Case& c) { return choose(t, computes, c.compute); },
       [](const Case& c) { return std::string(computes[static_cast<size_t>(c.compute)]); }},
      {"compensate", "0, 1", [](Text t, Case& c) { return flag(t, c.compensate); },
       [](const Case& c) { return std::string(c.compensate ? "1" : ""); }},
      {"sink", "digits", [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.sink); },
       [](const Case& c) { return std::to_string(c.sink); }},
      {"local", "digits", [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.local); },
       [](const Case& c) { return std::to_string(c.local); }},
      {"window", std::string(count) + "; 0 is none", [](Text t, Case& c) { return assign(tokens(t), c.window); },
       [](const Case& c) { return c.window != 0 ? sized(c.window) : ""; }},
      {"windowsink", "0, 1: the sink stays in sight", [](Text t, Case& c) { return flag(t, c.window_sink); },
       [](const Case& c) { return std::string(c.window_sink ? "1" : ""); }},
      {"densebelow", count, [](Text t, Case& c) { return assign(tokens(t), c.dense_below); },
       [](const Case& c) { return sized(c.dense_below); }},
      {"index", "0, 1", [](Text t, Case& c) { return flag(t, c.with_index); },
       [](const Case& c) { return std::string(c.with_index ? "1" : ""); }},
      {"page", "digits, a multiple of 16: keys and values in pages of so many keys; devices only",
       [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.page_size); },
       [](const Case& c) { return c.page_size != 0 ? std::to_string(c.page_size) : ""; }},
      {"layout", join(layouts), [](Text t, Case& c) { return choose(t, layouts, c.layout); },
       [](const Case& c) { return std::string(name(c.layout)); }},
      {"data", join(datas), [](Text t, Case& c) { return choose(t, datas, c.data); },
       [](const Case& c) { return std::string(name(c.data)); }},
      {"seed", "digits", [](Text t, Case& c) { return assign(number(t, INT64_MAX), c.seed); },
       [](const Case& c) { return std::to_string(c.seed); }},
      {"backend", "a backend's name", read_backend, [](const Case& c) { return c.backend; }},
      {"threads", "digits; 0 is one per CPU", [](Text t, Case& c) { return assign(number(t, INT32_MAX), c.threads); },
       [](const Case& c) { return c.threads != 0 ? std::to_string(c.threads) : ""; }},
  };
  return table;
}

[[noreturn]] void refuse(Text word, const std::string& why) {
  throw Error(std::string(word.substr(0, 80)) + ": " + why);
}

void read_word(Text word, Case& c, std::set<Text>& seen) {
  const size_t equals = word.find('=');
  const Text key = word.substr(0, equals);
  for (const Word& w : words()) {
    if (key != w.key) continue;
    if (equals == Text::npos) refuse(word, "no value; write " + std::string(w.key) + "=VALUE, allowed: " + w.allowed);
    if (!seen.insert(key).second) refuse(word, "given twice");
    if (!w.read(word.substr(equals + 1), c))
      refuse(word, "not a value for " + std::string(w.key) + "; allowed: " + w.allowed);
    return;
  }
  std::string keys;
  for (const Word& w : words()) keys += (keys.empty() ? "" : ", ") + std::string(w.key);
  refuse(word, "no such word; there are " + keys);
}

void exclude(const std::set<Text>& seen, Text one, Text many) {
  if (seen.count(one) && seen.count(many)) refuse(many, "given together with " + std::string(one));
}

// What one word leaves out, another says.
void complete(Case& c, const std::set<Text>& seen) {
  exclude(seen, "q", "qlens");
  exclude(seen, "k", "klens");
  exclude(seen, "offset", "offsets");
  exclude(seen, "tau", "taus");
  if (!seen.count("kvheads")) c.kv_heads = c.q_heads;
  if (!seen.count("qheads")) c.q_heads = c.kv_heads;
  if (!c.q_lens.empty()) c.q_len = *std::max_element(c.q_lens.begin(), c.q_lens.end());
  if (!c.k_lens.empty()) c.k_len = *std::max_element(c.k_lens.begin(), c.k_lens.end());
  const bool q = seen.count("q") || seen.count("qlens"), k = seen.count("k") || seen.count("klens");
  if (!q && k) {
    c.q_len = c.k_len;
    c.q_lens = c.k_lens;
  } else if (q && !k) {
    c.k_len = c.q_len;
    c.k_lens = c.q_lens;
  }
  const auto per_sequence = [&](const char* key, size_t n) {
    if (n != 0 && n != static_cast<size_t>(c.batch))
      refuse(key, std::to_string(n) + " numbers for batch=" + std::to_string(c.batch));
  };
  per_sequence("qlens", c.q_lens.size());
  per_sequence("klens", c.k_lens.size());
  per_sequence("offsets", c.q_offsets.size());
  if (c.taus.size() != 1 && c.taus.size() != static_cast<size_t>(c.q_heads))
    refuse("taus", std::to_string(c.taus.size()) + " numbers for qheads=" + std::to_string(c.q_heads));
  // A list of one is the same as the number: one spelling each, so that printing is canonical.
  if (!c.q_offsets.empty()) c.q_offset = SALE_AUTO;
}

}  // namespace

const char* name(Layout l) { return layouts[static_cast<size_t>(l)]; }
const char* name(Data d) { return datas[static_cast<size_t>(d)]; }
const char* name(sale_dtype t) { return dtypes[static_cast<size_t>(t)]; }

Case parse(std::string_view line) {
  Case c;
  std::set<Text> seen;
  while (true) {
    const size_t begin = line.find_first_not_of(" \t\n\r");
    if (begin == Text::npos) break;
    line.remove_prefix(begin);
    const size_t end = std::min(line.find_first_of(" \t\n\r"), line.size());
    read_word(line.substr(0, end), c, seen);
    line.remove_prefix(end);
  }
  complete(c, seen);
  return c;
}

std::string print(const Case& c) {
  std::string s;
  for (const Word& w : words()) {
    const std::string value = w.write(c);
    if (value.empty()) continue;
    if (!s.empty()) s += ' ';
    s.append(w.key).append("=").append(value);
  }
  return s;
}

std::string grammar() {
  std::string s;
  for (const Word& w : words())
    s += std::string(w.key) + "=" + std::string(12 - std::string(w.key).size(), ' ') + w.allowed + "\n";
  return s;
}

}  // namespace sale_case
