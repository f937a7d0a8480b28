// The tokenizer of a GGUF file, put into tokenizer.json's form so that one reader checks and builds both.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "lm/gguf_model.hpp"
#include "lm/unicode.hpp"

namespace sale::lm {
namespace {

enum TokenType : int64_t { normal = 1, unknown, control, user_defined, unused, byte };

constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                                R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                                R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Json split(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}
Json byte_level(bool cut) { return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", cut}}; }
Json sequence(Json first, Json second) { return {{"type", "Sequence"}, {"pretokenizers", {first, second}}}; }
Json digits() { return {{"type", "Digits"}, {"individual_digits", true}}; }

// What tokenizer.ggml.pre names.
struct Pre {
  std::string_view name;
  Json (*cut)();
  bool nfc = false, whole_words = false, bos = false;
};
const Pre kPre[] = {
    {"gpt-2", [] { return byte_level(true); }},
    {"smollm", [] { return sequence(digits(), byte_level(true)); }},
    {"starcoder", [] { return sequence(digits(), byte_level(true)); }},
    {"llama-bpe", [] { return sequence(split(kLlama3), byte_level(false)); }, false, true, true},
    {"llama3", [] { return sequence(split(kLlama3), byte_level(false)); }, false, true, true},
    {"qwen2", [] { return sequence(split(kQwen2), byte_level(false)); }, true},
    {"deepseek-r1-qwen", [] { return sequence(split(kQwen2), byte_level(false)); }, true},
    {"tekken", [] { return sequence(split(kTekken), byte_level(false)); }, false, true, true},
};

class Fill {
public:
  Fill(const Json& metadata, const std::string& where)
      : all_(metadata, where), tokens_(all_.array("tokenizer.ggml.tokens")) {
    if (tokens_.empty()) fail(all_.where(), ": tokenizer.ggml.tokens is empty");
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (!tokens_[i].is_string())
        fail(all_.where(), ": tokenizer.ggml.tokens holds ", in_quotes(tokens_[i].dump()), "; strings are expected");
      const auto& token = tokens_[i].get_ref<const std::string&>();
      if (const auto [it, fresh] = ids_.emplace(token, i); !fresh)
        fail(all_.where(), ": tokenizer.ggml.tokens: ", in_quotes(token), " is ", it->second, " and ", i);
    }
  }

  Json made() {
    const std::string model = all_.text("tokenizer.ggml.model");
    if (model != "gpt2" && model != "llama")
      fail(all_.where(), ": tokenizer.ggml.model is ", in_quotes(model), "; gpt2 and llama are supported");
    json_ = {{"model", {{"type", "BPE"}}}, {"added_tokens", Json::array()}};
    read_types();
    Json& vocab = json_["model"]["vocab"] = Json::object();
    for (const auto& [token, id] : ids_) vocab[std::string(token)] = id;
    model == "gpt2" ? byte_level_model() : sentence_piece_model();
    put_around();
    return std::move(json_);
  }

private:
  void read_types() {
    types_.assign(tokens_.size(), normal);
    if (!all_.find("tokenizer.ggml.token_type")) return;
    const Json& types = all_.array("tokenizer.ggml.token_type");
    if (types.size() != tokens_.size())
      fail(all_.where(), ": tokenizer.ggml.token_type has ", types.size(), " entries for ", tokens_.size(), " tokens");
    for (size_t i = 0; i < types.size(); ++i) {
      types_[i] = as_integer(types[i], all_.where() + ": tokenizer.ggml.token_type", 0, 6);
      if (types_[i] != control && types_[i] != user_defined && types_[i] != unknown) continue;
      json_["added_tokens"].push_back(
          {{"id", i}, {"content", tokens_[i]}, {"special", types_[i] != user_defined}, {"normalized", false}});
    }
  }

  void byte_level_model() {
    const std::string name = all_.text("tokenizer.ggml.pre");
    std::string names;
    for (const Pre& pre : kPre) {
      names.append(names.empty() ? "" : ", ") += pre.name;
      if (pre.name != name) continue;
      json_["pre_tokenizer"] = pre.cut();
      json_["decoder"] = byte_level(true);
      if (pre.nfc) json_["normalizer"] = {{"type", "NFC"}};
      json_["model"]["ignore_merges"] = pre.whole_words;
      json_["model"]["merges"] = all_.array("tokenizer.ggml.merges");
      bos_ = pre.bos;
      return;
    }
    fail(all_.where(), ": tokenizer.ggml.pre is ", in_quotes(name), "; ", names, " are supported");
  }

  // Two pieces are merged where their text is a piece too, the one of the best score first: as merges, in that order.
  void sentence_piece_model() {
    const Json& scores = all_.array("tokenizer.ggml.scores");
    if (scores.size() != tokens_.size())
      fail(all_.where(), ": tokenizer.ggml.scores has ", scores.size(), " entries for ", tokens_.size(), " tokens");
    struct Way {
      double score;
      size_t left, right, cut;
      std::string_view whole;
    };
    std::vector<Way> ways;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const double score = scores[i].is_number() ? scores[i].get<double>() : NAN;
      if (!std::isfinite(score)) fail(all_.where(), ": tokenizer.ggml.scores: entry ", i, " is not a finite number");
      if (types_[i] != normal) continue;
      const std::string_view whole = tokens_[i].get_ref<const std::string&>();
      if (whole.size() > kMaxPiece) continue;
      for (size_t cut = 0; cut < whole.size();) {
        if (next_code_point(whole, cut) < 0) break;  // not text, so no character of a text leads to it
        if (cut >= whole.size()) break;
        const auto left = ids_.find(whole.substr(0, cut)), right = ids_.find(whole.substr(cut));
        if (left != ids_.end() && right != ids_.end()) ways.push_back({score, left->second, right->second, cut, whole});
      }
    }
    std::stable_sort(ways.begin(), ways.end(), [](const Way& a, const Way& b) {
      if (a.score != b.score) return a.score > b.score;
      return std::pair(a.left, a.right) < std::pair(b.left, b.right);
    });
    Json& merges = json_["model"]["merges"] = Json::array();
    for (const Way& way : ways)
      merges.push_back({std::string(way.whole.substr(0, way.cut)), std::string(way.whole.substr(way.cut))});
    const int64_t last = ssize_of(tokens_) - 1;
    json_["model"]["unk_token"] = tokens_[at(all_.integer_or("tokenizer.ggml.unknown_token_id", 0, last, 0))];
    json_["model"]["byte_fallback"] = true;
    json_["model"]["fuse_unk"] = true;
    const Json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}};
    json_["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array({replace})}};
    const bool prefix = all_.boolean_or("tokenizer.ggml.add_space_prefix", true);
    if (prefix) json_["normalizer"]["normalizers"] = Json::array({{{"type", "Prepend"}, {"prepend", kSpace}}, replace});
    Json decoders = Json::array({{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
                                 {{"type", "ByteFallback"}},
                                 {{"type", "Fuse"}}});
    if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    json_["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
    bos_ = true;
  }

  // The tokens before and after a text.
  void put_around() {
    const int64_t last = ssize_of(tokens_) - 1;
    Json single = Json::array(), special = Json::object();
    const auto put = [&](const char* wanted, bool otherwise, const char* which) {
      if (!all_.boolean_or(wanted, otherwise)) return;
      const int64_t id = all_.integer(which, 0, last);
      const Json& token = tokens_[at(id)];
      single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
      special[token.get<std::string>()] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
    };
    put("tokenizer.ggml.add_bos_token", bos_, "tokenizer.ggml.bos_token_id");
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    put("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id");
    json_["post_processor"] = {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", special}};
  }

  static constexpr const char* kSpace = "\u2581";
  static constexpr size_t kMaxPiece = 256;
  Fields all_;
  const Json& tokens_;
  std::unordered_map<std::string_view, size_t> ids_;
  std::vector<int64_t> types_;
  Json json_;
  bool bos_ = false;
};

}  // namespace

Json tokenizer_of(const Json& metadata, const std::string& where) { return Fill(metadata, where).made(); }

}  // namespace sale::lm
