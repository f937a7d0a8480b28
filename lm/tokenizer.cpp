// Encoding and decoding; the file is read in tokenizer_file.cpp.
#include "lm/tokenizer.hpp"

#include <algorithm>
#include <queue>

#include "lm/error.hpp"
#include "lm/nfc.hpp"

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
  int32_t rank, left, left_id, right_id, merged;
  // Lowest rank first, then leftmost.
  bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
};

}  // namespace

size_t Tokenizer::added_at(std::string_view text, size_t position, int32_t& id) const {
  const auto it = added_.find(text[position]);
  if (it == added_.end()) return 0;
  for (int32_t candidate : it->second) {
    const std::string& content = bytes_[at(candidate)];
    if (text.compare(position, content.size(), content) == 0) {
      id = candidate;
      return content.size();
    }
  }
  return 0;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
  if (text.size() > static_cast<size_t>(INT32_MAX))
    fail("text of ", text.size(), " bytes; at most ", INT32_MAX, " are allowed");
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos)
    fail("text is not UTF-8 at byte ", bad);
  if (nfc_)
    if (size_t doubt = find_nfc_doubt(text); doubt != std::string_view::npos) {
      const size_t where = doubt;
      fail("the tokenizer asks for normal form C, which is not computed here: U+", std::hex,
           next_code_point(text, doubt), std::dec, " at byte ", where,
           " might change; normalise the text first, or leave the character out");
    }
  std::vector<int32_t> out;
  out.reserve(text.size() / 3 + 8);
  if (special) out = prefix_;
  WordCache cache;
  size_t done = 0;
  for (size_t position = 0; position < text.size();) {
    int32_t id = -1;
    const size_t length = added_at(text, position, id);
    if (length == 0) {
      ++position;
      continue;
    }
    encode_plain(text.substr(done, position - done), out, cache);
    out.push_back(id);
    done = position += length;
  }
  encode_plain(text.substr(done), out, cache);
  if (special) out.insert(out.end(), suffix_.begin(), suffix_.end());
  return out;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int32_t>& out, WordCache& cache) const {
  splitter_->split(text, [&](std::string_view word) {
    if (const auto it = cache.find(word); it != cache.end()) {
      const auto [begin, end] = it->second;
      for (size_t i = begin; i < end; ++i) out.push_back(out[i]);
      return;
    }
    const size_t begin = out.size();
    const auto whole = ignore_merges_ ? words_.find(word) : words_.end();
    if (whole != words_.end())
      out.push_back(whole->second);
    else
      merge_word(word, out);
    cache.emplace(word, std::pair(begin, out.size()));
  });
}

// Merges the pair of lowest rank (leftmost first) until none is left: O(n log n) with a heap of candidates, of which
// those that no longer match the list are passed over.
void Tokenizer::merge_word(std::string_view word, std::vector<int32_t>& out) const {
  const auto count = static_cast<int32_t>(word.size());
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (int32_t i = 0; i < count; ++i)
    symbols.push_back({byte_id_[static_cast<unsigned char>(word[at(i)])], i - 1, i + 1 < count ? i + 1 : -1});
  std::priority_queue<Candidate> heap;
  const auto consider = [&](int32_t left) {
    if (left < 0 || symbols[at(left)].next < 0) return;
    const int32_t left_id = symbols[at(left)].id, right_id = symbols[at(symbols[at(left)].next)].id;
    const auto it = merges_.find(pair_key(left_id, right_id));
    if (it != merges_.end()) heap.push({it->second.rank, left, left_id, right_id, it->second.id});
  };
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Symbol& left = symbols[at(best.left)];
    if (left.id != best.left_id || left.next < 0 || symbols[at(left.next)].id != best.right_id) continue;
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

std::optional<int32_t> Tokenizer::id_of_added(std::string_view content) const {
  int32_t id = -1;
  if (content.empty() || added_at(content, 0, id) != content.size()) return std::nullopt;
  return id;
}

}  // namespace sale::lm
