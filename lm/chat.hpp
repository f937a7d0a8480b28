// How a chat model is spoken to: its chat template, from chat_template.jinja, tokenizer_config.json or a GGUF file.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "lm/template.hpp"

namespace sale::lm {

class Chat {
public:
  // A folder or a GGUF file. An Error where there is no template.
  static Chat load(const std::filesystem::path& path);

  // One message of the user's, up to where the answer begins; special tokens are spelled out, those at the start too.
  std::string ask(std::string_view message) const;
  // The same, cut in two where the question begins: the message is text + question, the first part ends with the text.
  std::pair<std::string, std::string> ask(std::string_view text, std::string_view question) const;

private:
  Chat(Template form, std::string bos, std::string eos)
      : form_(std::move(form)), bos_(std::move(bos)), eos_(std::move(eos)) {}
  Template form_;
  std::string bos_, eos_;
};

}  // namespace sale::lm
