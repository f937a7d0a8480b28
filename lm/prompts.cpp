#include "lm/prompts.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <tuple>

#include "lm/error.hpp"

namespace sale::lm {
namespace {

constexpr int64_t kSentenceSearch = 256;  // tokens looked at for the end of a sentence
constexpr int64_t kAnswerRoom = 24;
constexpr int kMaxFacts = 256;

constexpr std::string_view kCities[] = {
    "Lisbon",    "Oslo",     "Vienna",     "Prague",  "Dublin",   "Athens",    "Helsinki", "Warsaw",
    "Madrid",    "Naples",   "Hamburg",    "Lyon",    "Seville",  "Krakow",    "Riga",     "Sofia",
    "Cairo",     "Tunis",    "Nairobi",    "Accra",   "Dakar",    "Delhi",     "Mumbai",   "Lahore",
    "Kathmandu", "Bangkok",  "Hanoi",      "Jakarta", "Manila",   "Taipei",    "Seoul",    "Osaka",
    "Kyoto",     "Sapporo",  "Sydney",     "Perth",   "Auckland", "Vancouver", "Toronto",  "Montreal",
    "Boston",    "Chicago",  "Denver",     "Seattle", "Houston",  "Miami",     "Havana",   "Lima",
    "Quito",     "Santiago", "Montevideo", "Recife",  "Glasgow",  "Bristol",   "Oxford",   "Leeds"};
constexpr std::string_view kAdjectives[] = {"amber",  "bold",    "calm",  "dusty", "eager",  "faint", "gentle",
                                            "hidden", "icy",     "jolly", "keen",  "lucky",  "misty", "noble",
                                            "odd",    "patient", "quiet", "rapid", "silver", "tender"};
constexpr std::string_view kNouns[] = {"anchor",  "beacon", "candle", "desert", "engine",  "falcon", "garden",
                                       "harbor",  "island", "jacket", "kettle", "lantern", "marble", "needle",
                                       "orchard", "pebble", "raven",  "saddle", "timber",  "violin"};

template <size_t N>
std::string_view pick(Random& random, const std::string_view (&list)[N]) {
  return list[at(random.below(static_cast<int64_t>(N)))];
}

void check(const PromptSpec& spec) {
  if (spec.tokens < 64) fail("prompt of ", spec.tokens, " tokens; at least 64 are needed");
  if (spec.facts < 1 || spec.facts > kMaxFacts)
    fail("prompt with ", spec.facts, " facts; 1 to ", kMaxFacts, " are allowed");
  if (!spec.depths.empty() && spec.depths.size() != static_cast<size_t>(spec.facts))
    fail("prompt with ", spec.facts, " facts and ", spec.depths.size(), " depths; one depth for each is expected");
  for (double depth : spec.depths)
    if (!(depth >= 0.0 && depth <= 1.0)) fail("depth is ", depth, "; 0 to 1 is allowed");
}

double depth_of(const PromptSpec& spec, int fact) {
  return spec.depths.empty() ? (fact + 0.5) / spec.facts : spec.depths[at(fact)];
}

// `count` tokens of the text from a random place, starting on a new line where there is one. Only as much of the text
// is tokenized as is needed.
std::vector<int32_t> haystack(const Tokenizer& tokenizer, std::string_view text, int64_t count, Random& random) {
  const int64_t size = ssize_of(text);
  const auto start_at = [&](int64_t byte) {
    const size_t line = text.find('\n', at(byte));
    size_t start = line == std::string_view::npos ? at(byte) : line + 1;
    while (start < text.size() && (static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) ++start;
    return start;
  };
  // Three attempts: a random place with plenty after it, then the whole text from its start.
  for (const int64_t bytes_per_token : {8, 5, 0}) {
    const int64_t room = size - checked_mul(count, bytes_per_token, "prompt");
    if (room < 0 || (bytes_per_token && room == 0)) continue;
    const size_t start = bytes_per_token ? start_at(random.below(room)) : 0;
    size_t end = bytes_per_token ? std::min(text.size(), start + at(count * bytes_per_token)) : text.size();
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) ++end;
    std::vector<int32_t> ids = tokenizer.encode(text.substr(start, end - start), false);
    if (ssize_of(ids) < count) continue;
    ids.resize(at(count));
    return ids;
  }
  fail("the text of ", size, " bytes is too short for a prompt of ", count, " tokens");
}

bool ends_sentence(const Tokenizer& tokenizer, int32_t id) {
  std::string_view bytes = tokenizer.bytes_of(id);
  while (!bytes.empty() && (bytes.back() == '"' || bytes.back() == '\'' || bytes.back() == '\n'))
    bytes.remove_suffix(1);
  return !bytes.empty() && (bytes.back() == '.' || bytes.back() == '!' || bytes.back() == '?');
}

// The place after the first sentence that ends at `from` or a little later; `from` itself where none does.
int64_t sentence_end(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, int64_t from) {
  if (from == 0) return 0;
  for (int64_t i = from - 1; i < std::min(ssize_of(ids), from + kSentenceSearch); ++i)
    if (ends_sentence(tokenizer, ids[at(i)])) return i + 1;
  return from;
}

struct Insertion {
  Fact fact;
  std::vector<int32_t> tokens;
  double depth;
};

Prompt hide(const Tokenizer& tokenizer, std::string_view text, const PromptSpec& spec,
            std::vector<Insertion> insertions, Random& random) {
  int64_t longest = 0;
  std::vector<Piece> pieces;
  for (const Insertion& it : insertions) {
    longest = std::max(longest, ssize_of(it.fact.question));
    pieces.push_back({it.tokens, it.depth});
  }
  Hidden hidden = hide(tokenizer, text, spec.tokens - kAnswerRoom - longest, pieces, random);
  Prompt prompt{std::move(hidden.context), {}};
  for (size_t i = 0; i < insertions.size(); ++i) {
    std::tie(insertions[i].fact.begin, insertions[i].fact.end) = hidden.places[i];
    prompt.facts.push_back(std::move(insertions[i].fact));
  }
  std::stable_sort(prompt.facts.begin(), prompt.facts.end(),
                   [](const Fact& a, const Fact& b) { return a.begin < b.begin; });
  return prompt;
}

}  // namespace

uint64_t Random::next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

int64_t Random::below(int64_t n) {
  const auto range = static_cast<uint64_t>(n);
  const uint64_t fair = UINT64_MAX - UINT64_MAX % range;  // numbers from here on would favour small results
  uint64_t x = next();
  while (x >= fair) x = next();
  return static_cast<int64_t>(x % range);
}

std::string joined(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (std::string_view part : parts) text += part;
  return text;
}

std::string random_word(Random& random) {
  const std::string_view first = pick(random, kAdjectives);
  return joined({first, "-", pick(random, kNouns)});
}

std::string fresh_key(Random& random, std::set<std::string>& used) {
  for (;;) {
    std::string key = random.below(3) ? std::string(pick(random, kCities)) : random_word(random);
    if (used.insert(key).second) return key;
  }
}

double Random::fraction() { return static_cast<double>(next() >> 11) * 0x1p-53; }

std::string Random::digits(int count) {
  std::string text(1, static_cast<char>('1' + below(9)));
  while (ssize_of(text) < count) text += static_cast<char>('0' + below(10));
  return text;
}

std::string Random::hex(int count) {
  std::string text;
  while (ssize_of(text) < count) text += "0123456789abcdef"[below(16)];
  return text;
}

Hidden hide(const Tokenizer& tokenizer, std::string_view text, int64_t tokens, const std::vector<Piece>& pieces,
            Random& random) {
  int64_t taken = ssize_of(tokenizer.prefix());
  for (const Piece& p : pieces) taken += ssize_of(p.tokens);
  const int64_t left = tokens - taken;
  if (left < 1) fail("prompt of ", tokens, " tokens has no room for its facts (", taken, " tokens)");
  const std::vector<int32_t> hay = haystack(tokenizer, text, left, random);
  std::vector<size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return pieces[a].depth < pieces[b].depth; });
  Hidden hidden{tokenizer.prefix(), {}};
  hidden.places.resize(pieces.size());
  int64_t done = 0;
  const auto copy_to = [&](int64_t end) {
    hidden.context.insert(hidden.context.end(), hay.begin() + done, hay.begin() + end);
    done = end;
  };
  for (size_t i : order) {
    const Piece& p = pieces[i];
    copy_to(std::max(done, sentence_end(tokenizer, hay, static_cast<int64_t>(p.depth * static_cast<double>(left)))));
    const int64_t begin = ssize_of(hidden.context);
    hidden.context.insert(hidden.context.end(), p.tokens.begin(), p.tokens.end());
    hidden.places[i] = {begin, ssize_of(hidden.context)};
  }
  copy_to(left);
  return hidden;
}

Prompt needle_prompt(const Tokenizer& tokenizer, std::string_view text, const PromptSpec& spec) {
  check(spec);
  Random random(spec.seed);
  std::set<std::string> used;
  std::vector<Insertion> insertions;
  for (int i = 0; i < spec.facts; ++i) {
    const std::string key = fresh_key(random, used), number = random.digits(7);
    Insertion it{{},
                 tokenizer.encode(joined({" The special magic number for ", key, " is ", number, "."}), false),
                 depth_of(spec, i)};
    it.fact.key = key;
    it.fact.answer = " " + number + ".";
    it.fact.question_text =
        joined({" What is the special magic number for ", key, "? The special magic number for ", key, " is"});
    it.fact.question = tokenizer.encode(it.fact.question_text, false);
    insertions.push_back(std::move(it));
  }
  return hide(tokenizer, text, spec, std::move(insertions), random);
}

Prompt passkey_prompt(const Tokenizer& tokenizer, std::string_view text, const PromptSpec& spec) {
  check(spec);
  if (spec.facts != 1) fail("pass key prompt with ", spec.facts, " facts; 1 is allowed");
  Random random(spec.seed);
  const std::string number = random.digits(5);
  Insertion it{{},
               tokenizer.encode(" The pass key is " + number + ". Remember it. " + number + " is the pass key.", false),
               depth_of(spec, 0)};
  it.fact.key = "pass key";
  it.fact.answer = " " + number + ".";
  it.fact.question_text = " What is the pass key? The pass key is";
  it.fact.question = tokenizer.encode(it.fact.question_text, false);
  std::vector<Insertion> insertions;
  insertions.push_back(std::move(it));
  return hide(tokenizer, text, spec, std::move(insertions), random);
}

Prompt json_prompt(const Tokenizer& tokenizer, const PromptSpec& spec) {
  check(spec);
  Random random(spec.seed);
  const auto encode = [&](const std::string& piece) { return tokenizer.encode(piece, false); };
  struct Pair {
    std::string key, value;
    int64_t begin, end;
  };
  Prompt prompt{tokenizer.prefix(), {}};
  const auto append = [&](const std::vector<int32_t>& ids) {
    prompt.context.insert(prompt.context.end(), ids.begin(), ids.end());
  };
  append(encode("JSON data:\n"));
  const int64_t first = ssize_of(prompt.context);
  const int64_t question_room = ssize_of(encode("Key: \"\"\nValue: \"")) + 8,
                room = spec.tokens - question_room - kAnswerRoom - 4;
  std::vector<Pair> pairs;
  std::set<std::string> used;
  // A line at a time: the pre-tokenizer cuts between '",\n' and ' "', so the ids are those of the whole text.
  const auto line = [&](const Pair& pair, const char* end) {
    return encode((pair.begin == first ? "{\"" : " \"") + pair.key + "\": \"" + pair.value + end);
  };
  for (;;) {
    Pair pair{random.hex(8), random.hex(8), ssize_of(prompt.context), 0};
    if (!used.insert(pair.key).second) continue;
    const auto ids = line(pair, "\",\n");
    if (ssize_of(prompt.context) + ssize_of(ids) > room) break;
    append(ids);
    pair.end = ssize_of(prompt.context);
    pairs.push_back(std::move(pair));
  }
  if (ssize_of(pairs) < spec.facts)
    fail("prompt of ", spec.tokens, " tokens holds ", pairs.size(), " JSON pairs; ", spec.facts, " are asked for");
  prompt.context.resize(at(pairs.back().begin));
  append(line(pairs.back(), "\"}\n\n"));
  pairs.back().end = ssize_of(prompt.context);
  for (int i = 0; i < spec.facts; ++i) {
    const double depth = depth_of(spec, i);
    const Pair& pair =
        pairs[std::min(pairs.size() - 1, static_cast<size_t>(depth * static_cast<double>(pairs.size())))];
    Fact fact{pair.key, pair.value + "\"", pair.begin, pair.end, {}, "Key: \"" + pair.key + "\"\nValue: \""};
    fact.question = encode(fact.question_text);
    prompt.facts.push_back(std::move(fact));
  }
  return prompt;
}

bool answers(const Fact& fact, std::string_view generated) { return generated.starts_with(fact.answer); }

}  // namespace sale::lm
