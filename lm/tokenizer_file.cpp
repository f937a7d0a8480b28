// Reads tokenizer.json into a Tokenizer.
#include <algorithm>
#include <set>

#include "lm/gguf_model.hpp"
#include "lm/json.hpp"
#include "lm/tokenizer.hpp"
#include "lm/unicode.hpp"

namespace sale::lm {
namespace {

constexpr int64_t kMaxFile = 64'000'000;
constexpr int64_t kMaxIds = 1 << 22;
constexpr size_t kMaxAdded = 65'536;
constexpr size_t kMaxToken = 4'096;

// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 on. Byte of a code point, or -1.
int byte_of(int32_t code) {
  static const std::vector<int> table = [] {
    std::vector<int> t(256 + 68, -1);
    int next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      t[at(itself ? b : next++)] = b;
    }
    return t;
  }();
  return code < ssize_of(table) ? table[at(code)] : -1;
}

// The bytes a vocabulary entry stands for; nothing where it is not written in the byte alphabet.
std::optional<std::string> token_bytes(std::string_view entry) {
  std::string bytes;
  for (size_t position = 0; position < entry.size();) {
    const int byte = byte_of(next_code_point(entry, position));
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

// <0x41> is the byte 0x41 of a vocabulary with byte fallback; -1 for anything else.
int hex_byte(std::string_view spelled) {
  static constexpr std::string_view digits = "0123456789ABCDEF";
  if (spelled.size() != 6 || !spelled.starts_with("<0x") || spelled.back() != '>') return -1;
  const size_t high = digits.find(spelled[3]), low = digits.find(spelled[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return static_cast<int>(16 * high + low);
}

}  // namespace

struct Tokenizer::Loader {
  Tokenizer& to;
  std::string file;
  Words vocab;                 // as spelled in the file
  bool decodes_bytes = false;  // <0x41> stands for a byte in decoded text

  void put(int32_t id, std::string bytes, const std::string& what) {
    if (at(id) >= to.bytes_.size()) {
      to.bytes_.resize(at(id) + 1);
      to.known_.resize(at(id) + 1);
    }
    if (to.known_[at(id)] && to.bytes_[at(id)] != bytes)
      fail(what, ": id ", id, " is already taken by ", in_quotes(to.bytes_[at(id)]));
    to.known_[at(id)] = true;
    to.bytes_[at(id)] = std::move(bytes);
  }

  int32_t id_of(std::string_view spelled, const std::string& what) const {
    const auto it = vocab.find(spelled);
    if (it == vocab.end()) fail(what, ": the token ", in_quotes(spelled), " is not in the vocabulary");
    return it->second;
  }

  // Ids may not be sparse to the point where a small file makes a large table.
  int64_t id_limit(size_t tokens) const {
    return std::min<int64_t>(kMaxIds, 4 * static_cast<int64_t>(tokens) + 65'536);
  }

  void read_vocab(const Json& json) {
    if (!json.is_object() || json.empty()) fail(file, ": model.vocab is not an object with tokens");
    const int64_t limit = id_limit(json.size());
    for (const auto& [spelled, value] : json.items()) {
      const std::string what = file + ": vocab " + in_quotes(spelled);
      if (spelled.empty() || spelled.size() > kMaxToken)
        fail(what, ": ", spelled.size(), " bytes; 1 to ", kMaxToken, " are allowed");
      const auto id = static_cast<int32_t>(as_integer(value, what, 0, limit - 1));
      vocab.emplace(spelled, id);
      if (to.pre_tokenizer_.byte_level()) {
        const auto bytes = token_bytes(spelled);
        put(id, bytes ? *bytes : spelled, what);
        if (to.ignore_merges_ && bytes) to.words_.emplace(*bytes, id);
        if (bytes && bytes->size() == 1) to.byte_id_[static_cast<unsigned char>(bytes->front())] = id;
      } else {
        put(id, decoded(spelled), what);
        to.words_.emplace(spelled, id);
        if (const int byte = hex_byte(spelled); byte >= 0) to.byte_id_[byte] = id;
      }
    }
    // Bytes without a token are what tokenizers makes of them: the unknown token, or nothing.
  }

  // What a token of characters stands for.
  std::string decoded(const std::string& spelled) const {
    if (const int byte = hex_byte(spelled); byte >= 0 && decodes_bytes) return std::string(1, static_cast<char>(byte));
    return to.decoded_space_.empty() ? spelled : replaced(spelled, to.decoded_space_, " ");
  }

  void read_merges(const Json& json) {
    if (!json.is_array()) fail(file, ": model.merges is not an array");
    if (json.size() > static_cast<size_t>(kMaxIds))
      fail(file, ": model.merges has ", json.size(), " rows; at most ", kMaxIds, " are allowed");
    for (size_t i = 0; i < json.size(); ++i) {
      const std::string what = file + ": merge " + std::to_string(i);
      const auto [left, right] = parse_merge(json[i], what);
      const auto key = static_cast<uint64_t>(id_of(left, what)) << 32 | static_cast<uint64_t>(id_of(right, what));
      to.merges_.insert_or_assign(key, Merge{static_cast<int32_t>(i), id_of(left + right, what)});
    }
  }

  static std::pair<std::string, std::string> parse_merge(const Json& json, const std::string& what) {
    if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string())
      return {json[0].get<std::string>(), json[1].get<std::string>()};
    const std::string text = json.is_string() ? json.get<std::string>() : "";
    const size_t space = text.find(' ');
    if (space == std::string::npos || space == 0 || space + 1 == text.size() ||
        text.find(' ', space + 1) != std::string::npos)
      fail(what, " is ", in_quotes(json.dump()), "; \"a b\" or [\"a\", \"b\"] is expected");
    return {text.substr(0, space), text.substr(space + 1)};
  }

  void read_added(const Json& json) {
    if (json.size() > kMaxAdded)
      fail(file, ": added_tokens has ", json.size(), " entries; at most ", kMaxAdded, " are allowed");
    const int64_t limit = id_limit(json.size() + vocab.size());
    for (const Json& entry : json) {
      const Fields fields(entry, file + ": added_tokens");
      const std::string content = fields.text("content"), what = file + ": added token " + in_quotes(content);
      if (content.empty() || content.size() > kMaxToken)
        fail(what, ": ", content.size(), " bytes; 1 to ", kMaxToken, " are allowed");
      if (fields.boolean_or("single_word", false)) fail(what, ": single_word is not supported");
      const auto id = static_cast<int32_t>(fields.integer("id", 0, limit - 1));
      const bool late = fields.boolean_or("normalized", !fields.boolean_or("special", false));
      const std::string spelled = late ? to.normalizer_(content) : content;
      const std::string text = late && !to.pre_tokenizer_.byte_level() ? decoded(spelled) : content;
      if (const auto it = vocab.find(content); it != vocab.end()) {
        if (it->second != id) fail(what, ": id ", id, "; the vocabulary gives it ", it->second);
        to.bytes_[at(id)] = text;
      }
      put(id, text, what);
      vocab.emplace(content, id);
      to.added_ids_.emplace(content, id);
      if (spelled.empty()) fail(what, ": nothing is left of it when it is normalized");
      (late ? to.normalized_added_ : to.raw_added_)[spelled.front()].push_back(
          {spelled, id, fields.boolean_or("lstrip", false), fields.boolean_or("rstrip", false)});
    }
    for (AddedTokens* added : {&to.raw_added_, &to.normalized_added_})
      for (auto& [first, tokens] : *added)
        std::stable_sort(tokens.begin(), tokens.end(),
                         [](const Added& a, const Added& b) { return a.spelled.size() > b.spelled.size(); });
  }

  // What the decoder says of tokens that are not in the byte alphabet.
  void read_decoder(const Fields& fields, bool within = false) {
    const std::string type = fields.text("type");
    if (type == "Sequence" && !within) {
      const Json& parts = fields.array("decoders");
      if (parts.size() > 8) fail(fields.where(), ": ", parts.size(), " decoders; at most 8 are allowed");
      for (const Json& part : parts) read_decoder({part, fields.where()}, true);
    } else if (type == "ByteLevel") {
      if (!to.pre_tokenizer_.byte_level())
        fail(fields.where(), ": ByteLevel, but the pre_tokenizer has none: nothing says how text becomes bytes");
    } else if (type == "ByteFallback") {
      decodes_bytes = true;
    } else if (type == "Replace" || type == "Metaspace") {
      const bool replace = type == "Replace";
      const std::string what = replace ? fields.object("pattern").text("String") : fields.text("replacement");
      const std::string with = replace ? fields.text("content") : " ";
      if (what.empty() || with != " " || !to.decoded_space_.empty())
        fail(fields.where(), ": ", in_quotes(what), " becomes ", in_quotes(with),
             "; one text that becomes a space is supported");
      to.decoded_space_ = what;
      const std::string scheme =
          fields.text_or("prepend_scheme", fields.boolean_or("add_prefix_space", true) ? "always" : "never");
      if (!replace && scheme != "never") to.strip_spaces_ = 1;
    } else if (type == "Strip") {
      if (fields.text("content") != " " || fields.integer("stop", 0, 1000) != 0)
        fail(fields.where(), ": Strip of spaces at the start is supported");
      to.strip_spaces_ = fields.integer("start", 0, 1000);
    } else if (type != "Fuse") {
      fail(fields.where(), ": type is ", in_quotes(type),
           "; ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip and a Sequence of these are supported");
    }
  }

  void read_post_processor(const Fields& fields) {
    const std::string type = fields.text("type");
    if (type == "Sequence") {
      const Json& parts = fields.array("processors");
      if (parts.size() > 8) fail(fields.where(), ": ", parts.size(), " processors; at most 8 are allowed");
      for (const Json& part : parts) read_post_processor({part, fields.where()});
    } else if (type == "TemplateProcessing") {
      read_template(fields);
    } else if (type != "ByteLevel") {
      fail(fields.where(), ": type is ", in_quotes(type), "; ByteLevel, TemplateProcessing and Sequence are supported");
    }
  }

  void read_template(const Fields& fields) {
    bool after = false;
    for (const Json& step : fields.array("single")) {
      const Fields item(step, fields.where() + ": single");
      if (item.find("Sequence")) {
        if (after) fail(item.where(), ": the text is used twice");
        after = true;
        continue;
      }
      const Fields special = fields.object("special_tokens").object(item.object("SpecialToken").text("id"));
      for (const Json& id : special.array("ids")) {
        const auto value = static_cast<int32_t>(as_integer(id, special.where() + ": ids", 0, to.size() - 1));
        to.bytes_of(value);
        (after ? to.suffix_ : to.prefix_).push_back(value);
      }
    }
    if (to.prefix_.size() + to.suffix_.size() > 16) fail(fields.where(), ": more than 16 tokens around the text");
  }

  void read(const Fields& top) {
    const Fields model = top.object("model");
    if (const std::string type = model.text_or("type", "BPE"); type != "BPE")
      fail(file, ": model.type is ", in_quotes(type), "; BPE is supported");
    for (const char* option : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!model.text_or(option, "").empty()) fail(file, ": model.", option, " is not supported");
    if (model.number_or("dropout", 0, 1, 0) != 0) fail(file, ": model.dropout is not supported");
    to.ignore_merges_ = model.boolean_or("ignore_merges", false);
    to.byte_fallback_ = model.boolean_or("byte_fallback", false);
    to.fuse_unknown_ = model.boolean_or("fuse_unk", false);
    if (top.find("normalizer")) to.normalizer_ = Normalizer(top.object("normalizer"));
    if (top.find("pre_tokenizer")) to.pre_tokenizer_ = PreTokenizer(top.object("pre_tokenizer"));
    if (top.find("decoder")) read_decoder(top.object("decoder"));
    if (to.byte_fallback_ && to.pre_tokenizer_.byte_level())
      fail(file, ": model.byte_fallback with a ByteLevel pre_tokenizer is not supported");
    std::fill(std::begin(to.byte_id_), std::end(to.byte_id_), -1);
    read_vocab(model.need("vocab"));
    if (const std::string unknown = model.text_or("unk_token", ""); !unknown.empty())
      to.unknown_ = id_of(unknown, file + ": model.unk_token");
    read_merges(model.need("merges"));
    if (top.find("added_tokens")) read_added(top.array("added_tokens"));
    if (top.find("post_processor")) read_post_processor(top.object("post_processor"));
  }
};

Tokenizer Tokenizer::parse(const Json& json, const std::string& where) {
  Tokenizer tokenizer;
  Loader loader{tokenizer, where, {}};
  loader.read(Fields(json, where));
  return tokenizer;
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  if (is_gguf(path)) {
    const Gguf file = Gguf::open(path);
    return parse(tokenizer_of(file.metadata(), file.where()), file.where());
  }
  const auto file = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
  return parse(read_json(file, kMaxFile), file.string());
}

}  // namespace sale::lm
