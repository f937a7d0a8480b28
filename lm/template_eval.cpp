// What a template means. Values are JSON; an undefined one is a discarded one, which prints as nothing and is false.
#include <algorithm>
#include <functional>
#include <map>

#include "lm/template.hpp"

namespace sale::lm {
namespace {

using Node = TemplateNode;
using Kind = Node::Kind;
constexpr int64_t kMaxSteps = 10'000'000;
constexpr size_t kMaxText = size_t{1} << 28;  // of the result and of every value
constexpr size_t kMaxItems = 1'000'000;

Json undefined() { return Json(Json::value_t::discarded); }
bool defined(const Json& v) { return !v.is_discarded(); }

bool truth(const Json& v) {
  if (!defined(v) || v.is_null()) return false;
  if (v.is_boolean()) return v.get<bool>();
  if (v.is_number_integer()) return v.get<int64_t>() != 0;
  if (v.is_string()) return !v.get_ref<const std::string&>().empty();
  return !v.is_structured() || !v.empty();
}

std::string stripped(std::string text, bool left, bool right, std::string_view what = " \t\r\n\v\f") {
  if (right) text.erase(text.find_last_not_of(what) + 1);
  if (left) text.erase(0, std::min(text.find_first_not_of(what), text.size()));
  return text;
}

std::string changed(std::string text, int (*change)(int)) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(change(c));
  return text;
}

Json range(int64_t from, int64_t to) {
  Json out = Json::array();
  for (int64_t i = from; i < to; ++i) out.push_back(i);
  return out;
}

class Evaluation {
public:
  Evaluation(const std::string& where, const Json& variables) : where_(where) {
    scopes_.emplace_back();
    for (const auto& [name, value] : variables.items()) scopes_.back()[name] = value;
  }

  std::string run(const std::vector<Node>& body) {
    block(body);
    return std::move(out_);
  }

private:
  using Arguments = std::vector<Json>;

  template <class... Parts>
  [[noreturn]] void refuse(const Node& node, const Parts&... parts) const {
    fail(where_, ": line ", node.line, ": ", parts...);
  }

  void block(const std::vector<Node>& body) {
    for (const Node& node : body) statement(node);
  }

  void statement(const Node& node) {
    if (++steps_ > kMaxSteps) refuse(node, "more than ", kMaxSteps, " steps");
    switch (node.kind) {
      case Kind::text: write(node, node.word); break;
      case Kind::print: write(node, text_of(node, value(node.parts[0]))); break;
      case Kind::block: block(node.parts); break;
      case Kind::if_:
        if (truth(value(node.parts[0])))
          statement(node.parts[1]);
        else if (node.parts.size() > 2)
          statement(node.parts[2]);
        break;
      case Kind::for_: loop(node); break;
      case Kind::set: scopes_.back()[node.word] = value(node.parts[0]); break;
      case Kind::set_attribute: {
        Json* object = find(node.word);
        if (object == nullptr || !object->is_object()) refuse(node, in_quotes(node.word), " is no namespace");
        (*object)[node.names[0]] = value(node.parts[0]);
        break;
      }
      case Kind::set_block: {
        std::string outer = std::move(out_);
        out_.clear();
        statement(node.parts[0]);
        std::swap(outer, out_);
        scopes_.back()[node.word] = outer;
        break;
      }
      default: refuse(node, "not a statement");
    }
  }

  void write(const Node& node, const std::string& text) {
    if (out_.size() + text.size() > kMaxText) refuse(node, "the result is too long");
    out_ += text;
  }

  void loop(const Node& node) {
    Json items = value(node.parts[0]);
    if (items.is_object()) {
      Json names = Json::array();
      for (const auto& [name, item] : items.items()) names.push_back(name);
      items = std::move(names);
    }
    if (!items.is_array()) refuse(node, "a loop over ", defined(items) ? items.type_name() : "an undefined value");
    std::vector<std::string> names;
    for (size_t begin = 0; begin <= node.word.size();) {
      const size_t end = std::min(node.word.find(',', begin), node.word.size());
      names.push_back(node.word.substr(begin, end - begin));
      begin = end + 1;
    }
    const auto bind = [&](const Json& item) {
      if (names.size() == 1) return void(scopes_.back()[names[0]] = item);
      if (!item.is_array() || item.size() != names.size())
        refuse(node, "an item does not have ", names.size(), " parts");
      for (size_t i = 0; i < names.size(); ++i) scopes_.back()[names[i]] = item[i];
    };
    std::vector<Json> chosen;
    for (const Json& item : items) {
      steps_ += 10;
      scopes_.emplace_back();
      bind(item);
      if (truth(value(node.parts[1]))) chosen.push_back(item);
      scopes_.pop_back();
    }
    if (chosen.empty()) return statement(node.parts[3]);
    for (size_t i = 0; i < chosen.size(); ++i) {
      scopes_.emplace_back();
      bind(chosen[i]);
      Json& at_loop = scopes_.back()["loop"] = {{"index", i + 1},
                                                {"index0", i},
                                                {"revindex", chosen.size() - i},
                                                {"revindex0", chosen.size() - i - 1},
                                                {"first", i == 0},
                                                {"last", i + 1 == chosen.size()},
                                                {"length", chosen.size()}};
      if (i > 0) at_loop["previtem"] = chosen[i - 1];
      if (i + 1 < chosen.size()) at_loop["nextitem"] = chosen[i + 1];
      statement(node.parts[2]);
      scopes_.pop_back();
    }
  }

  Json* find(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto it = scope->find(name); it != scope->end()) return &it->second;
    return nullptr;
  }

  // ---- values ----

  std::string text_of(const Node& node, const Json& v) const {
    if (!defined(v)) return "";
    if (v.is_string()) return v.get<std::string>();
    if (v.is_number_integer()) return v.dump();
    if (v.is_boolean()) return v.get<bool>() ? "True" : "False";
    if (v.is_null()) return "None";
    refuse(node, "printing a value of type ", v.type_name(), " is not supported");
  }
  const std::string& string(const Node& node, const Json& v, std::string_view what) const {
    if (!v.is_string())
      refuse(node, what, ": ", defined(v) ? v.type_name() : "an undefined value", " instead of a string");
    return v.get_ref<const std::string&>();
  }
  int64_t number(const Node& node, const Json& v, std::string_view what) const {
    if (!v.is_number_integer())
      refuse(node, what, ": ", defined(v) ? v.type_name() : "an undefined value", " instead of a whole number");
    return v.get<int64_t>();
  }

  Json value(const Node& node) {
    if (++steps_ > kMaxSteps) refuse(node, "more than ", kMaxSteps, " steps");
    switch (node.kind) {
      case Kind::literal: return node.value;
      case Kind::name: {
        const Json* found = find(node.word);
        if (found == nullptr) return undefined();
        // It is copied, which counts.
        if (found->is_structured()) steps_ += static_cast<int64_t>(found->size()) / 16;
        if (found->is_string()) steps_ += static_cast<int64_t>(found->get_ref<const std::string&>().size()) / 256;
        return *found;
      }
      case Kind::list: {
        Json out = Json::array();
        for (const Node& part : node.parts) out.push_back(value(part));
        return out;
      }
      case Kind::dict: {
        Json out = Json::object();
        for (size_t i = 0; i < node.parts.size(); i += 2)
          out[string(node, value(node.parts[i]), "a key")] = value(node.parts[i + 1]);
        return out;
      }
      case Kind::unary: {
        const Json v = value(node.parts[0]);
        if (node.word == "not") return !truth(v);
        int64_t out = 0;
        const bool overflow = __builtin_sub_overflow(int64_t{0}, number(node, v, "-"), &out);
        return checked(node, overflow, out);
      }
      case Kind::binary: return binary(node);
      case Kind::choose:
        if (truth(value(node.parts[0]))) return value(node.parts[1]);
        return node.parts.size() > 2 ? value(node.parts[2]) : undefined();
      case Kind::attribute: return part(node, value(node.parts[0]), node.word);
      case Kind::subscript: return part(node, value(node.parts[0]), value(node.parts[1]));
      case Kind::slice: return slice(node);
      case Kind::call: return call(node);
      case Kind::filter: return filter(node);
      case Kind::test: return test(node);
      default: refuse(node, "not an expression");
    }
  }

  Json checked(const Node& node, bool overflow, int64_t result) const {
    if (overflow) refuse(node, "a number does not fit in 64 bits");
    return result;
  }

  Json part(const Node& node, const Json& whole, const Json& which) const {
    if (!defined(whole)) refuse(node, "part ", in_quotes(which.dump()), " of an undefined value");
    if (whole.is_object() && which.is_string()) {
      const auto it = whole.find(which.get_ref<const std::string&>());
      return it == whole.end() ? undefined() : *it;
    }
    if (!which.is_number_integer() || (!whole.is_array() && !whole.is_string())) return undefined();
    const auto size =
        static_cast<int64_t>(whole.is_array() ? whole.size() : whole.get_ref<const std::string&>().size());
    const int64_t index = which.get<int64_t>() < 0 ? which.get<int64_t>() + size : which.get<int64_t>();
    if (index < 0 || index >= size) return undefined();
    if (whole.is_array()) return whole[at(index)];
    return std::string(1, whole.get_ref<const std::string&>()[at(index)]);
  }

  Json slice(const Node& node) {
    const Json whole = value(node.parts[0]), from = value(node.parts[1]), to = value(node.parts[2]),
               step = value(node.parts[3]);
    if (!step.is_null() && step != 1 && step != -1) refuse(node, "slices in steps are not supported");
    const bool back = step == -1;
    if (back && (!from.is_null() || !to.is_null())) refuse(node, "slices of a part backwards are not supported");
    if (!whole.is_array() && !whole.is_string())
      refuse(node, "a slice of ", defined(whole) ? whole.type_name() : "an undefined value");
    const auto size =
        static_cast<int64_t>(whole.is_array() ? whole.size() : whole.get_ref<const std::string&>().size());
    const auto place = [&](const Json& v, int64_t otherwise) {
      if (v.is_null()) return otherwise;
      const int64_t n = number(node, v, "a slice");
      return std::clamp<int64_t>(n < 0 ? n + size : n, 0, size);
    };
    const int64_t begin = place(from, 0), end = std::max(begin, place(to, size));
    if (whole.is_string()) {
      if (back) refuse(node, "a string backwards is not supported");
      return whole.get_ref<const std::string&>().substr(at(begin), at(end - begin));
    }
    Json out(Json::array_t(whole.begin() + begin, whole.begin() + end));
    if (back) std::reverse(out.begin(), out.end());
    return out;
  }

  bool holds(const Node& node, const Json& whole, const Json& part_) const {
    if (whole.is_string())
      return whole.get_ref<const std::string&>().find(string(node, part_, "in")) != std::string::npos;
    if (whole.is_object()) return part_.is_string() && whole.contains(part_.get_ref<const std::string&>());
    if (whole.is_array()) return std::find(whole.begin(), whole.end(), part_) != whole.end();
    refuse(node, "`in` ", defined(whole) ? whole.type_name() : "an undefined value");
  }

  Json binary(const Node& node) {
    const std::string& sign = node.word;
    const Json left = value(node.parts[0]);
    if (sign == "and") return truth(left) ? value(node.parts[1]) : left;
    if (sign == "or") return truth(left) ? left : value(node.parts[1]);
    const Json right = value(node.parts[1]);
    if (sign == "==") return equal(left, right);
    if (sign == "!=") return !equal(left, right);
    if (sign == "in") return holds(node, right, left);
    if (sign == "not in") return !holds(node, right, left);
    if (sign == "~") return limited(node, text_of(node, left) + text_of(node, right));
    if (sign == "+" && left.is_string()) return limited(node, left.get<std::string>() + string(node, right, "+"));
    if (sign == "+" && left.is_array() && right.is_array()) {
      Json out = left;
      if (left.size() + right.size() > kMaxItems) refuse(node, "a list of more than ", kMaxItems, " items");
      for (const Json& item : right) out.push_back(item);
      return out;
    }
    if (left.is_string() && right.is_string() && (sign == "<" || sign == ">" || sign == "<=" || sign == ">="))
      return ordered(sign, left.get<std::string>(), right.get<std::string>());
    const int64_t a = number(node, left, sign), b = number(node, right, sign);
    int64_t out = 0;
    if (sign == "+" || sign == "-" || sign == "*") {
      const bool overflow = sign == "+"   ? __builtin_add_overflow(a, b, &out)
                            : sign == "-" ? __builtin_sub_overflow(a, b, &out)
                                          : __builtin_mul_overflow(a, b, &out);
      return checked(node, overflow, out);
    }
    if (sign == "//" || sign == "%") {
      if (b == 0 || (a == INT64_MIN && b == -1)) refuse(node, a, " ", sign, " ", b);
      const int64_t down = a / b - (a % b != 0 && (a < 0) != (b < 0));
      return sign == "%" ? a - down * b : down;
    }
    if (sign == "/") refuse(node, "/ is not supported; // is");
    return ordered(sign, a, b);
  }

  std::string limited(const Node& node, std::string text) const {
    if (text.size() > kMaxText) refuse(node, "a text of more than ", kMaxText, " bytes");
    return text;
  }

  static bool equal(const Json& a, const Json& b) {
    if (!defined(a) || !defined(b)) return defined(a) == defined(b);
    return a == b;
  }
  template <class T>
  static bool ordered(const std::string& sign, const T& a, const T& b) {
    return sign == "<" ? a < b : sign == ">" ? a > b : sign == "<=" ? a <= b : a >= b;
  }

  // The arguments after the first part; names are refused except where the caller takes them.
  Arguments arguments(const Node& node, size_t most, bool named = false) {
    Arguments out;
    for (size_t i = 1; i < node.parts.size(); ++i) {
      if (!named && !node.names[i - 1].empty())
        refuse(node, "the argument ", in_quotes(node.names[i - 1]), " is not supported");
      out.push_back(value(node.parts[i]));
    }
    if (out.size() > most) refuse(node, out.size(), " arguments; at most ", most, " are allowed");
    return out;
  }

  Json call(const Node& node) {
    const Node& what = node.parts[0];
    if (what.kind == Kind::attribute) return method(node, value(what.parts[0]), what.word);
    if (what.kind != Kind::name) refuse(node, "only functions and methods can be called");
    if (what.word == "namespace" || what.word == "dict") {
      Json out = Json::object();
      const Arguments given = arguments(node, 64, true);
      for (size_t i = 0; i < given.size(); ++i) out[node.names[i]] = given[i];
      return out;
    }
    if (what.word == "range") {
      const Arguments given = arguments(node, 2);
      if (given.empty()) refuse(node, "range() without a number");
      const int64_t first = given.size() == 2 ? number(node, given[0], "range") : 0,
                    last = number(node, given.back(), "range");
      if (last > first && (last > 100'000 || first < -100'000)) refuse(node, "range() beyond 100000");
      return range(first, last);
    }
    if (what.word == "raise_exception") {
      const Arguments given = arguments(node, 1);
      refuse(node, "the template says: ", given.empty() ? "" : text_of(node, given[0]));
    }
    refuse(node, "the function ", in_quotes(what.word),
           " is not supported; dict, namespace, raise_exception and range are");
  }

  Json method(const Node& node, const Json& on, const std::string& name) {
    if (on.is_object()) {
      const Arguments given = arguments(node, 2);
      if (name == "items" || name == "keys" || name == "values") return pairs(on, name);
      if (name == "get" && !given.empty()) {
        const Json found = part(node, on, given[0]);
        return defined(found) ? found : given.size() > 1 ? given[1] : Json();
      }
    }
    if (on.is_string()) {
      const auto& text = on.get_ref<const std::string&>();
      const Arguments given = arguments(node, 2);
      const auto argument = [&](size_t i) -> const std::string& {
        if (i >= given.size()) refuse(node, name, "() lacks an argument");
        return string(node, given[i], name);
      };
      if (name == "strip" || name == "lstrip" || name == "rstrip") {
        const bool left = name != "rstrip", right = name != "lstrip";
        return given.empty() ? stripped(text, left, right) : stripped(text, left, right, argument(0));
      }
      if (name == "startswith") return text.starts_with(argument(0));
      if (name == "endswith") return text.ends_with(argument(0));
      if (name == "upper") return changed(text, ::toupper);
      if (name == "lower") return changed(text, ::tolower);
      if (name == "replace") return replaced(node, text, argument(0), argument(1));
      if (name == "split" && given.size() == 1) return split(node, text, argument(0));
    }
    refuse(node, "the method ", in_quotes(name), " of ", defined(on) ? on.type_name() : "an undefined value",
           " is not supported");
  }

  static Json pairs(const Json& object, const std::string& what) {
    Json out = Json::array();
    for (const auto& [name, item] : object.items()) {
      if (what == "items")
        out.push_back(Json::array({name, item}));
      else
        out.push_back(what == "keys" ? Json(name) : item);
    }
    return out;
  }

  std::string replaced(const Node& node, const std::string& text, const std::string& what,
                       const std::string& with) const {
    if (what.empty()) refuse(node, "replacing nothing is not supported");
    std::string out;
    size_t done = 0;
    for (size_t found = 0; (found = text.find(what, done)) != std::string::npos; done = found + what.size()) {
      (out += text.substr(done, found - done)) += with;
      if (out.size() > kMaxText) refuse(node, "the result is too long");
    }
    return out += text.substr(done);
  }

  Json split(const Node& node, const std::string& text, const std::string& at_) const {
    if (at_.empty()) refuse(node, "splitting at nothing");
    Json out = Json::array();
    size_t done = 0;
    for (size_t found = 0; (found = text.find(at_, done)) != std::string::npos; done = found + at_.size())
      out.push_back(text.substr(done, found - done));
    out.push_back(text.substr(done));
    return out;
  }

  Json filter(const Node& node) {
    const std::string& name = node.word;
    const Json on = value(node.parts[0]);
    const Arguments given = arguments(node, 2);
    if (name == "default" || name == "d") return defined(on) ? on : given.empty() ? Json("") : given[0];
    if (name == "length" || name == "count") {
      if (!on.is_string() && !on.is_structured())
        refuse(node, "the length of ", defined(on) ? on.type_name() : "an undefined value");
      if (!on.is_string()) return on.size();
      const auto& text = on.get_ref<const std::string&>();
      return std::count_if(text.begin(), text.end(),
                           [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
    }
    if (name == "string") return text_of(node, on);
    if (name == "trim") return stripped(string(node, on, name), true, true);
    if (name == "upper") return changed(string(node, on, name), ::toupper);
    if (name == "lower") return changed(string(node, on, name), ::tolower);
    if (name == "replace" && given.size() == 2)
      return replaced(node, string(node, on, name), string(node, given[0], name), string(node, given[1], name));
    if (name == "join") {
      std::string out;
      if (!on.is_array()) refuse(node, "join of ", defined(on) ? on.type_name() : "an undefined value");
      for (size_t i = 0; i < on.size(); ++i) {
        if (i > 0 && !given.empty()) out += string(node, given[0], name);
        out = limited(node, std::move(out) + text_of(node, on[i]));
      }
      return out;
    }
    if (name == "list" && on.is_array()) return on;
    if ((name == "first" || name == "last") && on.is_array()) return part(node, on, name == "first" ? 0 : -1);
    if (name == "items" && on.is_object()) return pairs(on, name);
    refuse(node, "the filter ", in_quotes(name), " of ", defined(on) ? on.type_name() : "an undefined value",
           " is not supported");
  }

  Json test(const Node& node) {
    static const std::map<std::string_view, bool (*)(const Json&)> tests = {
        {"defined", [](const Json& v) { return defined(v); }},
        {"undefined", [](const Json& v) { return !defined(v); }},
        {"none", [](const Json& v) { return v.is_null(); }},
        {"string", [](const Json& v) { return v.is_string(); }},
        {"mapping", [](const Json& v) { return v.is_object(); }},
        {"number", [](const Json& v) { return v.is_number() || v.is_boolean(); }},
        {"integer", [](const Json& v) { return v.is_number_integer(); }},
        {"boolean", [](const Json& v) { return v.is_boolean(); }},
        {"true", [](const Json& v) { return v.is_boolean() && v.get<bool>(); }},
        {"false", [](const Json& v) { return v.is_boolean() && !v.get<bool>(); }},
        {"iterable", [](const Json& v) { return v.is_string() || v.is_structured(); }},
        {"sequence", [](const Json& v) { return v.is_string() || v.is_structured(); }},
    };
    const Json on = value(node.parts[0]);
    const Arguments given = arguments(node, 1);
    if (given.size() == 1 && (node.word == "equalto" || node.word == "eq")) return equal(on, given[0]);
    if (given.size() == 1 && node.word == "in") return holds(node, given[0], on);
    if (given.size() == 1 && node.word == "divisibleby") {
      const int64_t by = number(node, given[0], node.word);
      if (by <= 0) refuse(node, "divisibleby(", by, ")");
      return number(node, on, node.word) % by == 0;
    }
    const auto it = tests.find(node.word);
    if (it == tests.end() || !given.empty()) refuse(node, "the test ", in_quotes(node.word), " is not supported");
    return it->second(on);
  }

  const std::string& where_;
  std::vector<std::map<std::string, Json>> scopes_;
  std::string out_;
  int64_t steps_ = 0;
};

}  // namespace

std::string Template::render(const Json& variables) const { return Evaluation(where_, variables).run(*body_); }

}  // namespace sale::lm
