// Byte-level BPE from tokenizer.json (Llama 3, Qwen2/2.5, GPT-2 style).
//
// Read: added tokens, NFC normalizer, pre-tokenizers ByteLevel and Sequence[Split(Regex, Isolated), ByteLevel], BPE
// with or without ignore_merges, TemplateProcessing (tokens before and after). Anything else in the file is refused by
// name.
//
// Normal form C is not computed: where the file asks for it, text that could change under it (see nfc.hpp) is an Error
// that names the code point. Unicode tables are PCRE2's: a letter newer than they are may be cut differently.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lm/splitter.hpp"

namespace sale::lm {

class Tokenizer {
public:
  // The file, or the tokenizer.json of a folder.
  static Tokenizer load(const std::filesystem::path& path);

  // Text must be valid UTF-8. With special, the template's tokens (Llama's BOS) are put around it; added tokens spelled
  // in the text become their ids either way.
  std::vector<int32_t> encode(std::string_view text, bool special = true) const;
  // The bytes of the ids one after another (a token may hold part of a character). Special tokens are spelled out.
  std::string decode(std::span<const int32_t> ids) const;

  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }  // one more than the largest id
  std::optional<int32_t> id_of_added(std::string_view content) const;
  const std::string& bytes_of(int32_t id) const;
  const std::vector<int32_t>& prefix() const { return prefix_; }

private:
  struct Loader;
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  struct Merge {
    int32_t rank, id;
  };
  using WordCache = std::unordered_map<std::string_view, std::pair<size_t, size_t>>;  // word -> range of the output

  size_t added_at(std::string_view text, size_t position, int32_t& id) const;
  void encode_plain(std::string_view text, std::vector<int32_t>& out, WordCache& cache) const;
  void merge_word(std::string_view word, std::vector<int32_t>& out) const;

  std::vector<std::string> bytes_;  // by id; what the token stands for
  std::vector<bool> known_;         // by id; vocabularies may have holes
  int32_t byte_id_[256] = {};
  std::unordered_map<uint64_t, Merge> merges_;                             // (left id, right id)
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> words_;  // only with ignore_merges
  std::map<char, std::vector<int32_t>> added_;                             // by first byte, longest first
  std::vector<int32_t> prefix_, suffix_;
  std::optional<Splitter> splitter_;
  bool nfc_ = false, ignore_merges_ = false;
};

}  // namespace sale::lm
