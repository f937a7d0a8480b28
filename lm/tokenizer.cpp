// Encoding and decoding; the file is read in tokenizer_file.cpp.
#include "lm/tokenizer.hpp"

#include <algorithm>
#include <queue>

#include "lm/error.hpp"

namespace sale::lm {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// A symbol of the word being merged: a doubly linked list in an array.
struct Symbol {
  int32_t id, previous, next;  // id -1: merged away
};

struct Candidate {
  int32_t rank, left, merged;
  // Lowest rank first, then leftmost.
  bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

size_t spaces_after(std::string_view text, size_t position) {
  for (size_t next = position; position < text.size(); position = next)
    if (!is_space(next_code_point(text, next))) break;
  return position;
}

// Where the run of spaces that ends at `position` begins, not before `from`.
size_t spaces_before(std::string_view text, size_t from, size_t position) {
  size_t start = position;
  while (position > from) {
    do --position;
    while (position > from && (static_cast<unsigned char>(text[position]) & 0xc0) == 0x80);
    size_t next = position;
    if (!is_space(next_code_point(text, next))) break;
    start = position;
  }
  return start;
}

}  // namespace

// One call of encode: the ids so far, and the words already merged, each a range of the ids.
struct Tokenizer::Encoding {
  explicit Encoding(const PreTokenizer& pre) : cutter(pre) {}
  std::vector<int32_t> out;
  std::unordered_map<std::string_view, std::pair<size_t, size_t>> cache;
  PreTokenizer::Cutter cutter;
  std::deque<std::string> normalized;
};

// Calls part(text, null) for every stretch between added tokens and part(its text, token) for each of them: the
// leftmost, and the longest there.
void Tokenizer::at_added(const AddedTokens& added, std::string_view text, const Part& part) {
  size_t done = 0;
  for (size_t position = 0; !added.empty() && position < text.size();) {
    const auto candidates = added.find(text[position]);
    const Added* found = nullptr;
    if (candidates != added.end())
      for (const Added& token : candidates->second)
        if (text.compare(position, token.spelled.size(), token.spelled) == 0) {
          found = &token;
          break;
        }
    if (found == nullptr) {
      ++position;
      continue;
    }
    size_t begin = position, end = position + found->spelled.size();
    if (found->lstrip) begin = spaces_before(text, done, begin);
    if (found->rstrip) end = spaces_after(text, end);
    if (begin > done) part(text.substr(done, begin - done), nullptr);
    part(text.substr(begin, end - begin), found);
    done = position = end;
  }
  if (done < text.size()) part(text.substr(done), nullptr);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
  if (text.size() > static_cast<size_t>(INT32_MAX))
    fail("text of ", text.size(), " bytes; at most ", INT32_MAX, " are allowed");
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos)
    fail("text is not UTF-8 at byte ", bad);
  Encoding to(pre_tokenizer_);
  to.out.reserve(text.size() / 3 + 8);
  if (special) to.out = prefix_;
  at_added(raw_added_, text, [&](std::string_view part, const Added* token) {
    if (token != nullptr) return to.out.push_back(token->id);
    const bool at_start = part.data() == text.data();
    if (!normalizer_.empty()) part = to.normalized.emplace_back(normalizer_(part));
    at_added(normalized_added_, part, [&](std::string_view plain, const Added* late) {
      if (late != nullptr) return to.out.push_back(late->id);
      encode_words(plain, at_start && plain.data() == part.data(), to);
    });
  });
  if (special) to.out.insert(to.out.end(), suffix_.begin(), suffix_.end());
  return std::move(to.out);
}

void Tokenizer::encode_words(std::string_view text, bool at_start, Encoding& to) const {
  std::vector<int32_t>& out = to.out;
  for (std::string_view word : to.cutter.cut(text, at_start)) {
    if (const auto it = to.cache.find(word); it != to.cache.end()) {
      const auto [begin, end] = it->second;
      for (size_t i = begin; i < end; ++i) out.push_back(out[i]);
      continue;
    }
    const size_t begin = out.size();
    const auto whole = ignore_merges_ ? words_.find(word) : words_.end();
    if (whole != words_.end())
      out.push_back(whole->second);
    else
      merge_word(word, out);
    to.cache.emplace(word, std::pair(begin, out.size()));
  }
}

// What a word starts as: its characters, or bytes of the byte alphabet. One without a token becomes the tokens of its
// bytes (byte fallback), or the unknown token, or nothing; in the order that tokenizers makes of them.
std::vector<int32_t> Tokenizer::characters(std::string_view word) const {
  std::vector<int32_t> ids;
  ids.reserve(word.size());
  bool waiting = false;  // an unknown token that may still take in the next
  const auto unknown = [&] {
    if (!unknown_) return;
    if (waiting && !fuse_unknown_) ids.push_back(*unknown_);
    waiting = true;
  };
  const auto known = [&](int32_t id) {
    if (waiting) ids.push_back(*unknown_);
    waiting = false;
    ids.push_back(id);
  };
  for (size_t begin = 0, end = 0; begin < word.size(); begin = end) {
    if (pre_tokenizer_.byte_level()) {
      const int32_t id = byte_id_[static_cast<unsigned char>(word[end++])];
      id >= 0 ? known(id) : unknown();
      continue;
    }
    next_code_point(word, end);
    const std::string_view character = word.substr(begin, end - begin);
    if (const auto it = words_.find(character); it != words_.end()) {
      known(it->second);
      continue;
    }
    const auto id_of = [&](char c) { return byte_id_[static_cast<unsigned char>(c)]; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), [&](char c) { return id_of(c) >= 0; }))
      for (const char c : character) ids.push_back(id_of(c));
    else
      unknown();
  }
  if (waiting) ids.push_back(*unknown_);
  return ids;
}

// Merges the pair of lowest rank (leftmost first) until none is left: O(n log n) with a heap of candidates, of which
// those that no longer match the list are passed over.
void Tokenizer::merge_word(std::string_view word, std::vector<int32_t>& out) const {
  const std::vector<int32_t> ids = characters(word);
  const auto count = static_cast<int32_t>(ids.size());
  std::vector<Symbol> symbols;
  symbols.reserve(ids.size());
  for (int32_t i = 0; i < count; ++i) symbols.push_back({ids[at(i)], i - 1, i + 1 < count ? i + 1 : -1});
  std::priority_queue<Candidate> heap;
  const auto merge_at = [&](int32_t left) {
    return merges_.find(pair_key(symbols[at(left)].id, symbols[at(symbols[at(left)].next)].id));
  };
  const auto consider = [&](int32_t left) {
    if (left < 0 || symbols[at(left)].next < 0) return;
    if (const auto it = merge_at(left); it != merges_.end()) heap.push({it->second.rank, left, it->second.id});
  };
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Symbol& left = symbols[at(best.left)];
    if (left.id < 0 || left.next < 0) continue;
    // The pair may be another by now; it is merged all the same when the same token comes out (as tokenizers does).
    if (const auto it = merge_at(best.left); it == merges_.end() || it->second.id != best.merged) continue;
    Symbol& right = symbols[at(left.next)];
    left.id = best.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[at(left.next)].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (int32_t i = count ? 0 : -1; i >= 0; i = symbols[at(i)].next) out.push_back(symbols[at(i)].id);
}

const std::string& Tokenizer::bytes_of(int32_t id) const {
  if (id < 0 || id >= size() || !known_[at(id)]) fail("token id ", id, " is not in the vocabulary (", size(), " ids)");
  return bytes_[at(id)];
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (int32_t id : ids) text += bytes_of(id);
  return text;
}

std::string_view Tokenizer::stripped(std::string_view decoded) const {
  for (int64_t i = 0; i < strip_spaces_ && decoded.starts_with(' '); ++i) decoded.remove_prefix(1);
  return decoded;
}

std::optional<int32_t> Tokenizer::id_of_added(std::string_view content) const {
  const auto it = added_ids_.find(content);
  if (it == added_ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace sale::lm
