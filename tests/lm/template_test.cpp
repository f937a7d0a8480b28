#include "lm/template.hpp"

#include "lm/chat.hpp"
#include "support.hpp"

namespace sale::lm {
namespace {

std::string render(std::string_view text, const Json& variables = Json::object()) {
  return Template(text, "here").render(variables);
}

// What Jinja (trim_blocks, lstrip_blocks) makes of each, run by hand once.
TEST(Template, AsJinja) {
  const Json v = {{"n", 3}, {"s", "Ab c"}, {"l", {1, 2, 3}}, {"d", {{"k", "v"}, {"n", nullptr}}}, {"e", ""}};
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"a{{ n }}b", "a3b"},
      {"{{ 'x\\n' + s ~ n }}", "x\nAb c3"},
      {"{{ \"it's\" }}", "it's"},
      {"{{ missing }}|{{ e }}|{{ none }}|{{ true }}", "||None|True"},
      {"  {% if n == 3 %}\n  yes\n  {% endif %}\nend\n", "  yes\nend"},
      {"a  {%- if n %} b {%- endif -%}  c", "a bc"},
      {"x {% if n %}y{% endif %}\nz", "x yz"},
      {"x\n{{ n }}\ny", "x\n3\ny"},
      {"{# gone #}\nleft", "left"},
      {"{% if n > 3 %}a{% elif n >= 3 and not e %}b{% else %}c{% endif %}", "b"},
      {"{% for i in l %}{{ i }}{{ ',' if not loop.last }}{% endfor %}", "1,2,3"},
      {"{% for i in l if i != 2 %}{{ loop.index0 }}{{ i }}{% else %}no{% endfor %}", "0113"},
      {"{% for i in [] %}x{% else %}none{% endfor %}", "none"},
      {"{% for k, x in d.items() %}{{ k }}={{ x }};{% endfor %}", "k=v;n=None;"},
      {"{% set a = 1 %}{% for i in l %}{% set a = i %}{% endfor %}{{ a }}", "1"},
      {"{% set ns = namespace(a=1) %}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "7"},
      {"{% set b %}[{{ n }}]{% endset %}{{ b }}{{ b }}", "[3][3]"},
      {"{{ d.k }}{{ d['k'] }}{{ d.nope is defined }}{{ d.n is none }}", "vvFalseTrue"},
      {"{{ l[0] }}{{ l[-1] }}{{ l[1:] | length }}{{ s[:2] }}{{ l[::-1][0] }}", "132Ab3"},
      {"{{ s | upper }}{{ s.lower() }}{{ ' x ' | trim }}{{ s.split(' ')[1] }}", "AB Cab cxc"},
      {"{{ 'b' in s }}{{ 2 not in l }}{{ 'k' in d }}", "TrueFalseTrue"},
      {"{{ s is string }}{{ l is string }}{{ d is mapping }}{{ n is not none }}", "TrueFalseTrueTrue"},
      {"{{ -7 // 2 }}{{ -7 % 2 }}{{ 2 * 3 - 1 }}", "-415"},
      {"{{ missing | default('x') }}{{ e | default('y') }}", "x"},
      {"{{ l | join('-') }}{{ s.replace('b', 'B') }}{{ s.startswith('A') }}", "1-2-3AB cTrue"},
      {"{% for m in l %}{% if loop.first %}{{ loop.length }}{% endif %}{% endfor %}", "3"},
      {"{% generation %}x{% endgeneration %}", "x"},
      {"{{ '}}' }}{{ '%}' }}", "}}%}"},
      {"{{ (1 if e else 2) + 1 }}", "3"},
      {"{{ range(3) | length }}{{ d.get('z', 5) }}", "35"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(render(text, v), expected) << text;
}

TEST(Template, WhatIsNotInTheSubsetIsRefusedByName) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"{% macro f() %}{% endmacro %}", {"here", "line 1", "macro", "for, generation, if and set"}},
      {"\n\n{% include 'x' %}", {"line 3", "include"}},
      {"{{ x | tojson }}", {"filter", "tojson"}},
      {"{{ f(1) }}", {"function", "'f'"}},
      {"{{ 'a'.center(3) }}", {"method", "center"}},
      {"{{ x is odd }}", {"test", "odd"}},
      {"{{ x.y }}", {"undefined"}},
      {"{{ 'a' + 1 }}", {"number", "string"}},
      {"{{ 1 / 2 }}", {"/", "//"}},
      {"{{ 1 // 0 }}", {"1 // 0"}},
      {"{{ 9223372036854775807 + 1 }}", {"64 bits"}},
      {"{{ 1.5 }}", {"1.5"}},
      {"{{ '\\x41' }}", {"escape"}},
      {"{{ (1, 2) }}", {"tuples"}},
      {"{{ 1 < 2 < 3 }}", {"chained"}},
      {"{% for i in 3 %}{% endfor %}", {"loop over number"}},
      {"{{ raise_exception('no system role') }}", {"the template says", "no system role"}},
      {"{% if x %}", {"endif"}},
      {"{% endif %}", {"endif", "not supported"}},
      {"{{ 1 ", {"not closed"}},
      {"{{ }}", {"expression"}},
      {"{{ [1 }}", {"']'"}},
      {"{{ 1 2 }}", {"unexpected"}},
      {"{{ " + std::string(5000, '(') + " }}", {"nested"}},
      {"{{ " + std::string(5000, '-') + "1 }}", {"expression"}},
      {"{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", {"steps"}},
      {std::string(2'000'000, 'x'), {"2000000 bytes"}},
  };
  for (const auto& [text, words] : cases) {
    SCOPED_TRACE(text.substr(0, 60));
    expect_error([&, &text = text] { render(text); }, words);
  }
}

TEST(Chat, OfAFolderAndOfAGguf) {
  const Scratch scratch;
  expect_error([&] { Chat::load(kModelDir); }, {"no chat template"});
  const std::string form =
      "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}{% if "
      "add_generation_prompt %}<|assistant|>{% endif %}";
  scratch.write("tokenizer_config.json", Json{{"chat_template", form}, {"eos_token", {{"content", "</s>"}}}}.dump());
  const Chat chat = Chat::load(scratch.path());
  EXPECT_EQ(chat.ask("hello "), "<|user|>hello</s><|assistant|>");
  EXPECT_EQ(chat.ask("text ", "why?"), (std::pair<std::string, std::string>("<|user|>text ", "why?</s><|assistant|>")));
  scratch.write(
      "tokenizer_config.json",
      Json{{"chat_template", {{{"name", "tools"}, {"template", "x"}}, {{"name", "default"}, {"template", form}}}}}
          .dump());
  EXPECT_EQ(Chat::load(scratch.path()).ask("a"), "<|user|>a<|assistant|>");
  scratch.write("chat_template.jinja", "{{ messages[0].content }}{{ messages[0].content }}");
  expect_error([&] { Chat::load(scratch.path()).ask("a", "b"); }, {"once"});
  EXPECT_EQ(Chat::load(kDataDir / "tiny_llama.gguf").ask("a"), "<s>[user] a\n[assistant] ");
}

}  // namespace
}  // namespace sale::lm
