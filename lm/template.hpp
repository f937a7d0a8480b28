// A strict subset of Jinja, as much as chat templates of the supported families use.
//
// Statements: if, for (over lists and numbers, with `if` and `else`), set, generation. Expressions: literals,
// arithmetic, comparisons, `in`, `and`, `or`, `not`, `x if y else z`, attributes, subscripts and slices, the filters,
// tests, methods and functions listed in template_eval.cpp. Blocks are trimmed as transformers has it (trim_blocks,
// lstrip_blocks). What is not in the subset is refused by name: a statement when the template is read, anything else
// when it is reached.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lm/json.hpp"

namespace sale::lm {

// One node of an expression or a statement.
struct TemplateNode {
  enum class Kind {
    text,
    print,
    if_,
    for_,
    set,
    set_attribute,
    set_block,
    block,  // statements
    literal,
    name,
    list,
    dict,
    unary,
    binary,
    choose,
    attribute,
    subscript,
    slice,
    call,
    filter,
    test
  };
  Kind kind;
  int line;
  std::string word;  // text, name, operator, attribute, filter, test; for_: the variables, separated by commas
  Json value;        // literal
  std::vector<TemplateNode> parts;
  std::vector<std::string> names;  // call, filter, test: of each argument; empty when it has none
};

class Template {
public:
  // `where` names the source in messages.
  Template(std::string_view text, std::string where);
  // variables: an object. Names that it lacks are undefined, as in Jinja.
  std::string render(const Json& variables) const;

private:
  std::string where_;
  std::shared_ptr<const std::vector<TemplateNode>> body_;
};

}  // namespace sale::lm
