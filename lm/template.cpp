// Reading a template: pieces of text, tags and tokens, then a tree. What it means is in template_eval.cpp.
#include "lm/template.hpp"

#include <algorithm>
#include <charconv>

namespace sale::lm {
namespace {

using Node = TemplateNode;
using Kind = Node::Kind;
constexpr size_t kMaxText = 1'000'000;
constexpr int kMaxDepth = 100;

struct Token {
  enum class Kind { name, string, number, sign, end } kind;
  std::string text;
  int line;
};
// Text, or what stands in {{ }} or {% %}.
struct Piece {
  enum class Kind { text, print, statement } kind;
  std::string text;
  int line;
};

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

class Reader {
public:
  Reader(std::string_view text, const std::string& where) : where_(where) { cut(text); }

  std::vector<Node> read() {
    std::vector<Node> body = statements({});
    if (at_ < pieces_.size()) refuse(pieces_[at_].line, "unexpected ", in_quotes(first_word(pieces_[at_])));
    return body;
  }

private:
  template <class... Parts>
  [[noreturn]] void refuse(int line, const Parts&... parts) const {
    fail(where_, ": line ", line, ": ", parts...);
  }

  // ---- pieces ----

  void cut(std::string_view text) {
    if (text.size() > kMaxText) fail(where_, ": ", text.size(), " bytes; at most ", kMaxText, " are allowed");
    if (!text.empty() && text.back() == '\n') text.remove_suffix(1);  // as Jinja does
    int line = 1;
    bool trim = false;  // white space at the start of the next text
    for (size_t position = 0; position <= text.size();) {
      size_t open = position;
      while (open < text.size() && !(text[open] == '{' && open + 1 < text.size() &&
                                     std::string_view("{%#").find(text[open + 1]) != std::string_view::npos))
        ++open;
      std::string plain(text.substr(position, open - position));
      const int plain_line = line;
      line += static_cast<int>(std::count(plain.begin(), plain.end(), '\n'));
      if (trim) plain.erase(0, std::min(plain.find_first_not_of(" \t\r\n"), plain.size()));
      if (open >= text.size()) {
        if (!plain.empty()) pieces_.push_back({Piece::Kind::text, plain, plain_line});
        return;
      }
      const char type = text[open + 1];
      const char mark = open + 2 < text.size() ? text[open + 2] : ' ';
      if (mark == '-')
        while (!plain.empty() && is_blank(plain.back())) plain.pop_back();
      else if (type != '{' && mark != '+')
        strip_line(plain, position == 0 || (trimmed_newline_ && open > 0));
      if (!plain.empty()) pieces_.push_back({Piece::Kind::text, plain, plain_line});
      const size_t begin = open + 2 + (mark == '-' || mark == '+');
      const size_t close = find_close(text, begin, type, line);
      std::string_view inner = text.substr(begin, close - begin);
      trim = !inner.empty() && inner.back() == '-';
      const bool keep = !inner.empty() && inner.back() == '+';
      if (trim || keep) inner.remove_suffix(1);
      if (type != '#')
        pieces_.push_back({type == '{' ? Piece::Kind::print : Piece::Kind::statement, std::string(inner), line});
      line += static_cast<int>(std::count(inner.begin(), inner.end(), '\n'));
      position = close + 2;
      trimmed_newline_ = false;
      if (type != '{' && !keep && position < text.size() && text[position] == '\n' && !trim) {
        ++position, ++line;
        trimmed_newline_ = true;
      }
    }
  }

  // Blanks between the start of a line and a tag.
  static void strip_line(std::string& plain, bool starts_line) {
    const size_t last = plain.find_last_not_of(" \t");
    if (last == std::string::npos ? starts_line : plain[last] == '\n')
      plain.erase(last == std::string::npos ? 0 : last + 1);
  }

  size_t find_close(std::string_view text, size_t from, char type, int line) const {
    const char last = type == '{' ? '}' : type;
    char quote = 0;
    for (size_t i = from; i + 1 < text.size(); ++i) {
      if (quote != 0) {
        if (text[i] == '\\')
          ++i;
        else if (text[i] == quote)
          quote = 0;
      } else if (type != '#' && (text[i] == '\'' || text[i] == '"')) {
        quote = text[i];
      } else if (text[i] == last && text[i + 1] == '}') {
        return i;
      }
    }
    refuse(line, "a tag is not closed");
  }

  // ---- tokens of a tag ----

  void scan(const Piece& piece) {
    static constexpr std::string_view doubles[] = {"==", "!=", "<=", ">=", "//", "**"};
    tokens_.clear();
    next_ = 0;
    const std::string& s = piece.text;
    int line = piece.line;
    for (size_t i = 0; i < s.size();) {
      const size_t start = i;
      if (is_blank(s[i])) {
        line += s[i++] == '\n';
      } else if (std::isdigit(static_cast<unsigned char>(s[i])) != 0) {
        while (i < s.size() && (is_word(s[i]) || (s[i] == '.' && i + 1 < s.size() &&
                                                  std::isdigit(static_cast<unsigned char>(s[i + 1])) != 0)))
          ++i;
        tokens_.push_back({Token::Kind::number, s.substr(start, i - start), line});
      } else if (is_word(s[i])) {
        while (i < s.size() && is_word(s[i])) ++i;
        tokens_.push_back({Token::Kind::name, s.substr(start, i - start), line});
      } else if (s[i] == '\'' || s[i] == '"') {
        tokens_.push_back({Token::Kind::string, string_at(s, i, line), line});
      } else {
        const bool two =
            std::find(std::begin(doubles), std::end(doubles), std::string_view(s).substr(i, 2)) != std::end(doubles);
        i += two ? 2 : 1;
        tokens_.push_back({Token::Kind::sign, s.substr(start, i - start), line});
      }
    }
    tokens_.push_back({Token::Kind::end, "the end of the tag", line});
  }

  std::string string_at(const std::string& s, size_t& i, int line) const {
    const char quote = s[i++];
    std::string out;
    for (; i < s.size() && s[i] != quote; ++i) {
      if (s[i] != '\\') {
        out += s[i];
        continue;
      }
      if (++i == s.size()) break;
      switch (s[i]) {
        case 'n': out += '\n'; break;
        case 't': out += '\t'; break;
        case 'r': out += '\r'; break;
        case '\\':
        case '\'':
        case '"': out += s[i]; break;
        default: refuse(line, "the escape \\", s[i], " in a string is not supported");
      }
    }
    ++i;
    return out;
  }

  const Token& peek() const { return tokens_[next_]; }
  Token take() { return tokens_[next_ + 1 < tokens_.size() ? next_++ : next_]; }
  bool is(std::string_view text) const {
    return (peek().kind == Token::Kind::sign || peek().kind == Token::Kind::name) && peek().text == text;
  }
  bool accept(std::string_view text) {
    if (!is(text)) return false;
    take();
    return true;
  }
  void expect(std::string_view text) {
    if (!accept(text)) refuse(peek().line, "'", text, "' is expected before ", in_quotes(peek().text));
  }
  std::string name() {
    if (peek().kind != Token::Kind::name) refuse(peek().line, "a name is expected before ", in_quotes(peek().text));
    return take().text;
  }
  void end() {
    if (peek().kind != Token::Kind::end) refuse(peek().line, "unexpected ", in_quotes(peek().text));
  }

  // ---- statements ----

  static std::string first_word(const Piece& piece) {
    size_t begin = piece.text.find_first_not_of(" \t\r\n"), end = begin;
    if (begin == std::string::npos) return "";
    while (end < piece.text.size() && is_word(piece.text[end])) ++end;
    return piece.text.substr(begin, end - begin);
  }

  // Up to a tag that begins with one of these words.
  std::vector<Node> statements(const std::vector<std::string_view>& stops) {
    if (++depth_ > kMaxDepth) fail(where_, ": nested deeper than ", kMaxDepth);
    std::vector<Node> out;
    while (at_ < pieces_.size()) {
      const Piece& piece = pieces_[at_];
      const std::string word = piece.kind == Piece::Kind::statement ? first_word(piece) : "";
      if (piece.kind == Piece::Kind::statement && std::find(stops.begin(), stops.end(), word) != stops.end()) break;
      ++at_;
      if (piece.kind == Piece::Kind::text) {
        out.push_back({Kind::text, piece.line, piece.text, {}, {}, {}});
        continue;
      }
      scan(piece);
      if (piece.kind == Piece::Kind::print) {
        Node print{Kind::print, piece.line, "", {}, {}, {}};
        print.parts.push_back(expression());
        end();
        out.push_back(std::move(print));
        continue;
      }
      out.push_back(statement(name(), piece.line));
    }
    --depth_;
    return out;
  }

  Node statement(const std::string& word, int line) {
    if (word == "if") return conditional(line);
    if (word == "for") return loop(line);
    if (word == "set") return assignment(line);
    if (word == "generation") {
      end();
      Node node{Kind::block, line, "", {}, statements({"endgeneration"}), {}};
      close("endgeneration", line);
      return node;
    }
    refuse(line, "the statement ", in_quotes(word), " is not supported; for, generation, if and set are");
  }

  void close(std::string_view word, int line) {
    if (at_ == pieces_.size()) refuse(line, "'", word, "' is missing");
    scan(pieces_[at_++]);
    expect(word);
    end();
  }

  // parts: condition, block, and what else: another condition, or a block, or nothing.
  Node conditional(int line) {
    if (++depth_ > kMaxDepth) fail(where_, ": nested deeper than ", kMaxDepth);
    Node node{Kind::if_, line, "", {}, {}, {}};
    node.parts.push_back(expression());
    end();
    node.parts.push_back({Kind::block, line, "", {}, statements({"elif", "else", "endif"}), {}});
    if (at_ == pieces_.size()) refuse(line, "'endif' is missing");
    if (first_word(pieces_[at_]) == "elif") {
      scan(pieces_[at_]);
      const int next_line = pieces_[at_++].line;
      expect("elif");
      node.parts.push_back(conditional(next_line));
    } else {
      if (first_word(pieces_[at_]) == "else") {
        close("else", line);
        node.parts.push_back({Kind::block, line, "", {}, statements({"endif"}), {}});
      }
      close("endif", line);
    }
    --depth_;
    return node;
  }

  // parts: what is gone over, the condition (or true), block, block when there was nothing.
  Node loop(int line) {
    Node node{Kind::for_, line, name(), {}, {}, {}};
    while (accept(",")) node.word.append(",").append(name());
    expect("in");
    node.parts.push_back(either());
    node.parts.push_back(accept("if") ? expression() : Node{Kind::literal, line, "", true, {}, {}});
    if (accept("recursive")) refuse(line, "recursive loops are not supported");
    end();
    node.parts.push_back({Kind::block, line, "", {}, statements({"else", "endfor"}), {}});
    node.parts.push_back({Kind::block, line, "", {}, {}, {}});
    if (at_ < pieces_.size() && first_word(pieces_[at_]) == "else") {
      close("else", line);
      node.parts.back().parts = statements({"endfor"});
    }
    close("endfor", line);
    return node;
  }

  Node assignment(int line) {
    Node node{Kind::set, line, name(), {}, {}, {}};
    if (accept(".")) {
      node.kind = Kind::set_attribute;
      node.names.push_back(name());
    }
    if (node.kind == Kind::set && peek().kind == Token::Kind::end) {
      node.kind = Kind::set_block;
      node.parts.push_back({Kind::block, line, "", {}, statements({"endset"}), {}});
      close("endset", line);
      return node;
    }
    expect("=");
    node.parts.push_back(expression());
    end();
    return node;
  }

  // ---- expressions ----

  Node two(std::string word, Node left, Node right) const {
    Node node{Kind::binary, left.line, std::move(word), {}, {}, {}};
    node.parts.push_back(std::move(left));
    node.parts.push_back(std::move(right));
    return node;
  }

  Node expression() {
    if (++depth_ > kMaxDepth) fail(where_, ": nested deeper than ", kMaxDepth);
    Node node = either();
    if (accept("if")) {
      Node choice{Kind::choose, node.line, "", {}, {}, {}};
      choice.parts.push_back(either());
      choice.parts.push_back(std::move(node));
      if (accept("else")) choice.parts.push_back(expression());
      node = std::move(choice);
    }
    --depth_;
    return node;
  }

  Node either() {
    Node node = both();
    while (accept("or")) node = two("or", std::move(node), both());
    return node;
  }
  Node both() {
    Node node = negated();
    while (accept("and")) node = two("and", std::move(node), negated());
    return node;
  }
  Node negated() {
    if (!is("not")) return compared();
    if (++depth_ > kMaxDepth) fail(where_, ": nested deeper than ", kMaxDepth);
    Node node{Kind::unary, take().line, "not", {}, {}, {}};
    node.parts.push_back(negated());
    --depth_;
    return node;
  }
  Node compared() {
    Node node = summed();
    int chained = 0;
    for (;;) {
      std::string sign;
      if (is("not") && tokens_[next_ + 1].text == "in") take(), sign = "not in", take();
      for (const char* s : {"==", "!=", "<=", ">=", "<", ">", "in"})
        if (sign.empty() && accept(s)) sign = s;
      if (sign.empty()) return node;
      if (++chained > 1) refuse(peek().line, "chained comparisons are not supported");
      node = two(sign, std::move(node), summed());
    }
  }
  Node summed() {
    Node node = multiplied();
    for (;;) {
      std::string sign;
      for (const char* s : {"+", "-", "~"})
        if (sign.empty() && accept(s)) sign = s;
      if (sign.empty()) return node;
      node = two(sign, std::move(node), multiplied());
    }
  }
  Node multiplied() {
    Node node = signed_();
    for (;;) {
      std::string sign;
      for (const char* s : {"*", "//", "/", "%"})
        if (sign.empty() && accept(s)) sign = s;
      if (sign.empty()) return node;
      node = two(sign, std::move(node), signed_());
    }
  }
  Node signed_() {
    if (!is("-")) return followed(primary());
    Node node{Kind::unary, take().line, "-", {}, {}, {}};
    node.parts.push_back(followed(primary()));
    return node;
  }

  Node primary() {
    const Token token = take();
    Node node{Kind::literal, token.line, "", {}, {}, {}};
    if (token.kind == Token::Kind::string) {
      node.value = token.text;
      while (peek().kind == Token::Kind::string) node.value = node.value.get<std::string>() + take().text;
    } else if (token.kind == Token::Kind::number) {
      int64_t whole = 0;
      const char* last = token.text.data() + token.text.size();
      const auto [stop, error] = std::from_chars(token.text.data(), last, whole);
      if (error != std::errc() || stop != last)
        refuse(token.line, "the number ", in_quotes(token.text), " is not supported");
      node.value = whole;
    } else if (token.text == "true" || token.text == "True") {
      node.value = true;
    } else if (token.text == "false" || token.text == "False") {
      node.value = false;
    } else if (token.kind == Token::Kind::name && token.text != "none" && token.text != "None") {
      node.kind = Kind::name;
      node.word = token.text;
    } else if (token.text == "(") {
      node = expression();
      if (is(",")) refuse(token.line, "tuples are not supported");
      expect(")");
    } else if (token.text == "[") {
      node.kind = Kind::list;
      while (!is("]")) {
        node.parts.push_back(expression());
        if (!accept(",")) break;
      }
      expect("]");
    } else if (token.text == "{") {
      node.kind = Kind::dict;
      while (!is("}")) {
        node.parts.push_back(expression());
        expect(":");
        node.parts.push_back(expression());
        if (!accept(",")) break;
      }
      expect("}");
    } else if (token.kind != Token::Kind::name) {
      refuse(token.line, "an expression is expected before ", in_quotes(token.text));
    }
    return node;
  }

  Node on(Kind kind, Node node, std::string word) const {
    Node out{kind, node.line, std::move(word), {}, {}, {}};
    out.parts.push_back(std::move(node));
    return out;
  }

  // Arguments in parentheses, after "(".
  void arguments(Node& node) {
    while (!is(")")) {
      const bool named = peek().kind == Token::Kind::name && tokens_[next_ + 1].text == "=";
      node.names.push_back(named ? name() : "");
      if (named) take();
      node.parts.push_back(expression());
      if (!accept(",")) break;
    }
    expect(")");
  }

  Node followed(Node node) {
    for (int length = 0;; ++length) {
      if (length > kMaxDepth) fail(where_, ": nested deeper than ", kMaxDepth);
      if (accept(".")) {
        node = on(Kind::attribute, std::move(node), name());
      } else if (accept("(")) {
        node = on(Kind::call, std::move(node), "");
        arguments(node);
      } else if (accept("|")) {
        node = on(Kind::filter, std::move(node), name());
        if (accept("(")) arguments(node);
      } else if (accept("is")) {
        const bool no = accept("not");
        node = on(Kind::test, std::move(node), name());
        if (accept("(")) arguments(node);
        if (no) node = on(Kind::unary, std::move(node), "not");
      } else if (accept("[")) {
        node = subscript(std::move(node));
      } else {
        return node;
      }
    }
  }

  Node subscript(Node node) {
    const int line = node.line;
    const Node none{Kind::literal, line, "", nullptr, {}, {}};
    Node first = is(":") ? none : expression();
    if (!accept(":")) {
      Node out = on(Kind::subscript, std::move(node), "");
      out.parts.push_back(std::move(first));
      expect("]");
      return out;
    }
    Node out = on(Kind::slice, std::move(node), "");
    out.parts.push_back(std::move(first));
    out.parts.push_back(is("]") || is(":") ? none : expression());
    out.parts.push_back(accept(":") && !is("]") ? expression() : none);
    expect("]");
    return out;
  }

  const std::string& where_;
  std::vector<Piece> pieces_;
  std::vector<Token> tokens_;
  size_t at_ = 0, next_ = 0;
  int depth_ = 0;
  bool trimmed_newline_ = false;
};

}  // namespace

Template::Template(std::string_view text, std::string where) : where_(std::move(where)) {
  body_ = std::make_shared<const std::vector<Node>>(Reader(text, where_).read());
}

}  // namespace sale::lm
