// The texts of data/tokenizers.json, as data/make_tokenizers.py makes them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "lm/prompts.hpp"
#include "lm/unicode.hpp"
#include "support.hpp"

namespace sale::lm {

class Texts {
public:
  explicit Texts(const nlohmann::json& data) : count_(data.at("texts").get<size_t>()) {
    for (const auto& run : data.at("ranges")) ranges_.emplace_back(run[0].get<int32_t>(), run[1].get<int32_t>());
    for (const auto& part : data.at("parts")) {
      const auto text = part.get<std::string>();
      std::vector<std::string> characters;
      for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
        next_code_point(text, end);
        characters.push_back(text.substr(begin, end - begin));
      }
      parts_.push_back(std::move(characters));
    }
  }
  size_t count() const { return count_; }

  std::string operator[](size_t index) const {
    Random random(index);
    std::string text;
    const auto range = [&] { return ranges_[pick(random, ranges_.size())]; };
    for (int64_t left = 1 + random.below(8); left > 0; --left) {
      const int64_t kind = random.below(8);
      if (kind < 6) {
        const auto& part = parts_[pick(random, parts_.size())];
        size_t begin = 0, length = part.size();
        if (kind >= 4) begin = pick(random, part.size()), length = at(1 + random.below(12));
        for (size_t i = begin; i < std::min(part.size(), begin + length); ++i) text += part[i];
        continue;
      }
      auto [first, last] = range();
      for (int64_t n = 1 + random.below(6); n > 0; --n) {
        if (kind == 7) std::tie(first, last) = range();
        append(text, first + static_cast<int32_t>(random.below(last - first + 1)));
      }
    }
    return text;
  }

private:
  static size_t pick(Random& random, size_t n) { return at(random.below(static_cast<int64_t>(n))); }
  static void append(std::string& text, int32_t c) {
    const auto put = [&](int32_t byte) { text += static_cast<char>(byte); };
    if (c < 0x80) return put(c);
    if (c < 0x800) return put(0xc0 | c >> 6), put(0x80 | (c & 63));
    if (c < 0x10000) return put(0xe0 | c >> 12), put(0x80 | (c >> 6 & 63)), put(0x80 | (c & 63));
    put(0xf0 | c >> 18), put(0x80 | (c >> 12 & 63)), put(0x80 | (c >> 6 & 63)), put(0x80 | (c & 63));
  }
  size_t count_;
  std::vector<std::vector<std::string>> parts_;
  std::vector<std::pair<int32_t, int32_t>> ranges_;
};

// FNV-1a of 64 bits.
class Fnv {
public:
  void add(unsigned char byte) { value_ = (value_ ^ byte) * 0x100000001b3u; }
  void add(std::string_view bytes) {
    for (const char c : bytes) add(static_cast<unsigned char>(c));
  }
  void add(int32_t id) {
    for (int shift = 0; shift < 32; shift += 8) add(static_cast<unsigned char>(static_cast<uint32_t>(id) >> shift));
  }
  std::string text() const {
    char hex[17] = {};
    std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(value_));
    return hex;
  }

private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

// FNV-1a over the ids of each hundred texts, every text followed by -1.
template <class Encode>
std::vector<std::string> hashes_of_ids(const Texts& texts, const Encode& encode) {
  std::vector<std::string> out;
  for (size_t first = 0; first < texts.count(); first += 100) {
    Fnv hash;
    for (size_t i = first; i < first + 100; ++i) {
      for (const int32_t id : encode(texts[i])) hash.add(id);
      hash.add(-1);
    }
    out.push_back(hash.text());
  }
  return out;
}

}  // namespace sale::lm
