// Reads tokenizer.json into a Tokenizer.
#include <algorithm>
#include <set>

#include "lm/json.hpp"
#include "lm/nfc.hpp"
#include "lm/tokenizer.hpp"

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

}  // namespace

struct Tokenizer::Loader {
  Tokenizer& to;
  std::string file;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> vocab;  // as spelled in the file

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
      const auto bytes = token_bytes(spelled);
      put(id, bytes ? *bytes : spelled, what);
      if (to.ignore_merges_ && bytes) to.words_.emplace(*bytes, id);
    }
    std::vector<bool> seen(256);
    for (const auto& [spelled, id] : vocab)
      if (const auto bytes = token_bytes(spelled); bytes && bytes->size() == 1) {
        to.byte_id_[static_cast<unsigned char>(bytes->front())] = id;
        seen[static_cast<unsigned char>(bytes->front())] = true;
      }
    for (size_t b = 0; b < 256; ++b)
      if (!seen[b]) fail(file, ": vocab: byte ", b, " has no token; a byte-level vocabulary holds all 256");
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
      for (const char* option : {"single_word", "lstrip", "rstrip"})
        if (fields.boolean_or(option, false)) fail(what, ": ", option, " is not supported");
      const auto id = static_cast<int32_t>(fields.integer("id", 0, limit - 1));
      if (const auto it = vocab.find(content); it != vocab.end()) {
        if (it->second != id) fail(what, ": id ", id, "; the vocabulary gives it ", it->second);
        to.bytes_[at(id)] = content;
      }
      put(id, content, what);
      vocab.emplace(content, id);
      to.added_[content.front()].push_back(id);
    }
    for (auto& [first, ids] : to.added_)
      std::sort(ids.begin(), ids.end(),
                [&](int32_t a, int32_t b) { return to.bytes_[at(a)].size() > to.bytes_[at(b)].size(); });
  }

  void read_byte_level(const Fields& fields, bool may_cut) {
    if (fields.boolean_or("add_prefix_space", true)) fail(fields.where(), ": add_prefix_space is not supported");
    if (!fields.boolean_or("use_regex", true)) return;
    if (!may_cut) fail(fields.where(), ": use_regex after a Split is not supported");
    to.splitter_.emplace(kGpt2Pattern, fields.where());
  }

  void read_pre_tokenizer(const Fields& fields) {
    const std::string type = fields.text("type");
    if (type == "ByteLevel") {
      read_byte_level(fields, true);
    } else if (type == "Sequence") {
      const Json& parts = fields.array("pretokenizers");
      if (parts.size() != 2)
        fail(fields.where(), ": ", parts.size(), " pre-tokenizers; Split and ByteLevel are supported");
      const Fields split(parts[0], fields.where() + ": first"), bytes(parts[1], fields.where() + ": second");
      if (split.text("type") != "Split" || bytes.text("type") != "ByteLevel")
        fail(fields.where(), ": ", in_quotes(split.text("type")), " and ", in_quotes(bytes.text("type")),
             "; Split and ByteLevel are supported");
      if (split.text("behavior") != "Isolated" || split.boolean_or("invert", false))
        fail(split.where(), ": behavior ", in_quotes(split.text("behavior")), "; Isolated, not inverted, is supported");
      to.splitter_.emplace(split.object("pattern").text("Regex"), split.where());
      read_byte_level(bytes, false);
    } else {
      fail(fields.where(), ": type is ", in_quotes(type), "; ByteLevel and Sequence are supported");
    }
    if (!to.splitter_) fail(fields.where(), ": nothing cuts the text into words");
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
    if (top.find("normalizer")) {
      const std::string type = top.object("normalizer").text("type");
      if (type != "NFC") fail(file, ": normalizer is ", in_quotes(type), "; NFC or none is supported");
      to.nfc_ = true;
    }
    const Fields model = top.object("model");
    if (const std::string type = model.text_or("type", "BPE"); type != "BPE")
      fail(file, ": model.type is ", in_quotes(type), "; BPE is supported");
    if (model.boolean_or("byte_fallback", false))
      fail(file, ": model.byte_fallback (a SentencePiece tokenizer) is not supported");
    for (const char* option : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!model.text_or(option, "").empty()) fail(file, ": model.", option, " is not supported");
    to.ignore_merges_ = model.boolean_or("ignore_merges", false);
    read_vocab(model.need("vocab"));
    read_merges(model.need("merges"));
    if (top.find("added_tokens")) read_added(top.array("added_tokens"));
    read_pre_tokenizer(top.object("pre_tokenizer"));
    if (top.find("post_processor")) read_post_processor(top.object("post_processor"));
  }
};

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
  const Json json = read_json(file, kMaxFile);
  Tokenizer tokenizer;
  Loader loader{tokenizer, file.string(), {}};
  loader.read(Fields(json, file.string()));
  return tokenizer;
}

}  // namespace sale::lm
