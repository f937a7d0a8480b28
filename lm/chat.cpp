#include "lm/chat.hpp"

#include "lm/gguf.hpp"

namespace sale::lm {
namespace {

constexpr int64_t kMaxFile = 64'000'000;

// A special token is a string, or an object with its content.
std::string content_of(const Fields& fields, std::string_view name) {
  const Json* token = fields.find(name);
  if (token == nullptr) return "";
  return token->is_object() ? fields.object(name).text("content") : fields.text(name);
}

// One template, or several by name, of which "default" is meant.
std::string template_of(const Fields& fields) {
  const Json* given = fields.find("chat_template");
  if (given == nullptr) return "";
  if (!given->is_array()) return fields.text("chat_template");
  for (const Json& one : *given) {
    const Fields named(one, fields.where() + ": chat_template");
    if (named.text("name") == "default") return named.text("template");
  }
  fail(fields.where(), ": chat_template has none of the name 'default'");
}

[[noreturn]] void absent(const std::string& where) {
  fail(where, ": this model has no chat template; ask it without --chat");
}

}  // namespace

Chat Chat::load(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (is_gguf(path)) {
    const Gguf file = Gguf::open(path);
    const Fields all(file.metadata(), file.where());
    const std::string form = all.text_or("tokenizer.chat_template", "");
    if (form.empty()) absent(file.where());
    const auto token = [&](const char* name) -> std::string {
      if (!all.find(name)) return "";
      const Json& tokens = all.array("tokenizer.ggml.tokens");
      const Json& text = tokens[at(all.integer(name, 0, ssize_of(tokens) - 1))];
      return text.is_string() ? text.get<std::string>() : "";
    };
    return {Template(form, file.where() + ": tokenizer.chat_template"), token("tokenizer.ggml.bos_token_id"),
            token("tokenizer.ggml.eos_token_id")};
  }
  const fs::path config = path / "tokenizer_config.json", own = path / "chat_template.jinja";
  const Json json = fs::exists(config) ? read_json(config, kMaxFile) : Json::object();
  const Fields fields(json, config.string());
  const bool apart = fs::exists(own);
  const std::string form = apart ? read_file(own, kMaxFile) : template_of(fields);
  if (form.empty()) absent(path.string());
  return {Template(form, apart ? own.string() : config.string() + ": chat_template"), content_of(fields, "bos_token"),
          content_of(fields, "eos_token")};
}

std::string Chat::ask(std::string_view message) const {
  const Json messages = Json::array({{{"role", "user"}, {"content", std::string(message)}}});
  return form_.render(
      {{"messages", messages}, {"add_generation_prompt", true}, {"bos_token", bos_}, {"eos_token", eos_}});
}

// The cut is found by rendering a mark in the question's place; what stands before it must not depend on the question.
std::pair<std::string, std::string> Chat::ask(std::string_view text, std::string_view question) const {
  static constexpr std::string_view mark = "\U000F5A1E\U000F5A1F\U000F5A1E";
  if (text.find(mark) != std::string_view::npos) fail("the prompt holds the private-use characters U+F5A1E U+F5A1F");
  const std::string before(text);
  const std::string whole = ask(before + std::string(mark));
  const size_t cut = whole.find(mark);
  if (cut == std::string::npos || whole.find(mark, cut + 1) != std::string::npos)
    fail("the chat template does not put the user's message into the prompt once");
  return {whole.substr(0, cut), std::string(question) + whole.substr(cut + mark.size())};
}

}  // namespace sale::lm
