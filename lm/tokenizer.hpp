// BPE tokenizers of tokenizer.json: byte-level ones (Llama 3, Qwen2/2.5/3, SmolLM2, GPT-2 style) and SentencePiece's
// with byte fallback (Llama 2, Mistral). Ids are those of Hugging Face's tokenizers package.
//
// Read: added tokens, normalizers and pre-tokenizers (pieces.hpp), BPE with or without ignore_merges, byte_fallback,
// unk_token and fuse_unk, TemplateProcessing (tokens before and after), decoders of both kinds. Anything else in the
// file is refused by name.
//
// Unicode tables are PCRE2's and ICU's: a character newer than they are may be cut or composed differently.
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

#include "lm/pieces.hpp"

namespace sale::lm {

class Tokenizer {
public:
  // The file, or the tokenizer.json of a folder, or a GGUF file.
  static Tokenizer load(const std::filesystem::path& path);
  // The contents of such a file; `where` names it in messages.
  static Tokenizer parse(const Json& json, const std::string& where);

  // Text must be valid UTF-8. With special, the template's tokens (Llama's BOS) are put around it; added tokens spelled
  // in the text become their ids either way.
  std::vector<int32_t> encode(std::string_view text, bool special = true) const;
  // The bytes of the ids one after another (a token may hold part of a character). Special tokens are spelled out. A
  // space that stands before the first word only because the tokenizer puts one there is left in: see stripped().
  std::string decode(std::span<const int32_t> ids) const;
  // Decoded text without the leading space that the file's decoder takes away from a whole text.
  std::string_view stripped(std::string_view decoded) const;

  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }  // one more than the largest id
  std::optional<int32_t> id_of_added(std::string_view content) const;
  const std::string& bytes_of(int32_t id) const;
  const std::vector<int32_t>& prefix() const { return prefix_; }

private:
  struct Loader;
  struct Encoding;
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  using Words = std::unordered_map<std::string, int32_t, Hash, std::equal_to<>>;
  struct Merge {
    int32_t rank, id;
  };
  struct Added {
    std::string spelled;
    int32_t id;
    bool lstrip, rstrip;
  };
  // By first byte, longest first.
  using AddedTokens = std::map<char, std::vector<Added>>;
  using Part = std::function<void(std::string_view text, const Added* token)>;

  static void at_added(const AddedTokens& added, std::string_view text, const Part& part);
  void encode_words(std::string_view text, bool at_start, Encoding& to) const;
  void merge_word(std::string_view word, std::vector<int32_t>& out) const;
  std::vector<int32_t> characters(std::string_view word) const;

  std::vector<std::string> bytes_;              // by id; what the token stands for
  std::vector<bool> known_;                     // by id; vocabularies may have holes
  int32_t byte_id_[256] = {};                   // of the byte alone, or of <0x..> with byte fallback; -1: none
  std::unordered_map<uint64_t, Merge> merges_;  // (left id, right id)
  Words words_;                                 // as the pre-tokenizer cuts them; with ignore_merges, or by character
  AddedTokens raw_added_, normalized_added_;    // looked for before and after the normalizer
  std::map<std::string, int32_t, std::less<>> added_ids_;
  std::vector<int32_t> prefix_, suffix_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  std::optional<int32_t> unknown_;
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
  std::string decoded_space_;  // the character that a decoder turns into a space; empty: none
  int64_t strip_spaces_ = 0;   // at the start of a decoded text
};

}  // namespace sale::lm
