#include "zeropage/base/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "zeropage/base/error.h"

namespace zeropage::json {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// Bytes of the well-formed UTF-8 character at the front of `text`; 0 when there is none (Unicode, table 3-7).
int utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto in = [&](std::size_t i, unsigned low, unsigned high) { return byte(i) >= low && byte(i) <= high; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return in(1, 0x80, 0xBF) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const bool second = in(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
    return second && in(2, 0x80, 0xBF) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const bool second = in(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
    return second && in(2, 0x80, 0xBF) && in(3, 0x80, 0xBF) ? 4 : 0;
  }
  return 0;
}

void append_utf8(std::string& out, unsigned point) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((point >> shift) & 0x3F)); };
  if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    out += static_cast<char>(0xC0 | (point >> 6));
    tail(0);
  } else if (point < 0x10000) {
    out += static_cast<char>(0xE0 | (point >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0 | (point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& origin) : text_(text), origin_(origin) {}

  Node document() {
    if (text_.size() > kMaxDocumentBytes) {
      fail(fmt::format("expected at most {} bytes, got {}; is this the right file?", kMaxDocumentBytes, text_.size()));
    }
    if (text_.substr(0, 3) == "\xEF\xBB\xBF") at_ = 3;
    skip_blanks();
    if (done()) fail("expected a JSON object, got an empty text; write {} for all defaults");
    Node node = value(0);
    skip_blanks();
    if (!done()) fail(fmt::format("expected the end of the text, got {}", here()));
    return node;
  }

 private:
  bool done() const { return at_ >= text_.size(); }
  char peek() const { return done() ? '\0' : text_[at_]; }
  bool take(char c) {
    if (done() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  std::string here() const { return done() ? "the end of the text" : quote(text_.substr(at_, 1)); }

  [[noreturn]] void fail(const std::string& what) const {
    std::string path;
    for (const std::string& name : path_) path += (path.empty() ? "" : ".") + name;
    throw ConfigError(fmt::format("{}:{}: {}{}", origin_, line_, path.empty() ? "" : printable(path) + ": ", what));
  }

  void skip_blanks() {
    while (!done()) {
      const char c = text_[at_];
      if (c == '\n') ++line_;
      if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        ++at_;
      } else if (c == '#' || text_.substr(at_, 2) == "//") {
        while (!done() && text_[at_] != '\n') ++at_;
      } else if (text_.substr(at_, 2) == "/*") {
        skip_block_comment();
      } else {
        return;
      }
    }
  }

  void skip_block_comment() {
    const std::size_t end = text_.find("*/", at_ + 2);
    if (end == std::string_view::npos)
      fail("expected */ at the end of the comment that starts here, got the end of the text");
    for (; at_ < end + 2; ++at_) line_ += text_[at_] == '\n';
  }

  Node value(int depth) {
    if (depth > kMaxDepth) fail(fmt::format("expected at most {} nested values, got more", kMaxDepth));
    Node node;
    node.line = line_;
    const char c = peek();
    if (take('{')) {
      object(node, depth);
    } else if (take('[')) {
      array(node, depth);
    } else if (c == '"') {
      node.kind = Kind::kString;
      node.text = string();
    } else if (c == '-' || is_digit(c)) {
      number(node);
    } else {
      word(node);
    }
    return node;
  }

  void object(Node& node, int depth) {
    node.kind = Kind::kObject;
    std::unordered_map<std::string, int> seen;
    skip_blanks();
    while (!take('}')) {
      if (!node.members.empty()) {
        if (!take(',')) fail(fmt::format("expected , or }} after a value, got {}", here()));
        skip_blanks();
        if (peek() == '}') fail("expected another key after the comma, got }; remove the comma");
      }
      if (peek() != '"') fail(fmt::format("expected a key in double quotes, got {}", here()));
      const int line = line_;
      std::string name = string();
      path_.push_back(name);
      const auto [first, is_new] = seen.emplace(name, line);
      if (!is_new)
        fail(fmt::format("expected each key once, got this key on line {} already; remove one", first->second));
      skip_blanks();
      if (!take(':')) fail(fmt::format("expected : after the key, got {}", here()));
      skip_blanks();
      node.members.push_back({std::move(name), line, value(depth + 1)});
      path_.pop_back();
      skip_blanks();
    }
  }

  void array(Node& node, int depth) {
    node.kind = Kind::kArray;
    skip_blanks();
    while (!take(']')) {
      if (!node.items.empty()) {
        if (!take(',')) fail(fmt::format("expected , or ] after a value, got {}", here()));
        skip_blanks();
        if (peek() == ']') fail("expected another value after the comma, got ]; remove the comma");
      }
      node.items.push_back(value(depth + 1));
      skip_blanks();
    }
  }

  std::string string() {
    std::string out;
    ++at_;  // the opening quote
    while (!take('"')) {
      if (done() || peek() == '\n') fail("expected \" at the end of a string, got the end of the line");
      if (static_cast<unsigned char>(peek()) < 0x20)
        fail("expected text, got a control character; write it as \\u00XX");
      if (take('\\')) {
        escape(out);
        continue;
      }
      const int length = utf8_length(text_.substr(at_));
      if (length == 0) fail("expected UTF-8 text, got other bytes; save the file as UTF-8");
      out.append(text_.substr(at_, static_cast<std::size_t>(length)));
      at_ += static_cast<std::size_t>(length);
    }
    return out;
  }

  void escape(std::string& out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt";
    static constexpr std::string_view kMeant = "\"\\/\b\f\n\r\t";
    const std::size_t index = done() ? std::string_view::npos : kNames.find(peek());
    if (index != std::string_view::npos) {
      ++at_;
      out += kMeant[index];
      return;
    }
    if (!take('u'))
      fail(fmt::format("expected one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX, got \\ and {}", here()));
    unsigned point = hex4();
    if (point >= 0xD800 && point <= 0xDBFF && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const unsigned low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("expected the second half of a surrogate pair after \\uD8XX");
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    } else if (point >= 0xD800 && point <= 0xDFFF) {
      fail("expected a whole surrogate pair, got half of one");
    }
    append_utf8(out, point);
  }

  unsigned hex4() {
    unsigned point = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), point, 16);
    if (error != std::errc() || end != digits.data() + 4) fail("expected four hexadecimal digits after \\u");
    at_ += 4;
    return point;
  }

  void digits(const char* where) {
    if (!is_digit(peek())) fail(fmt::format("expected a digit {} of a number, got {}", where, here()));
    while (is_digit(peek())) ++at_;
  }

  void number(Node& node) {
    const std::size_t start = at_;
    const bool negative = take('-');
    if (negative && peek() == 'I') {
      word(node);
      node.text = "-" + node.text;
      return;
    }
    if (!take('0')) digits("at the start");
    if (is_digit(peek())) fail("expected a number without leading zeros");
    if (take('.')) digits("after the point");
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      digits("in the exponent");
    }
    node.kind = Kind::kNumber;
    node.text = text_.substr(start, at_ - start);
    const char* first = node.text.data();
    const char* last = first + node.text.size();
    if (std::from_chars(first, last, node.number).ec != std::errc()) {
      fail(fmt::format("expected a number that a double can hold, got {}", quote(node.text)));
    }
    std::int64_t exact = 0;
    if (const auto [end, error] = std::from_chars(first, last, exact); error == std::errc() && end == last) {
      node.integer = exact;
    } else if (std::trunc(node.number) == node.number && std::abs(node.number) < 0x1p63) {
      node.integer = static_cast<std::int64_t>(node.number);
    }
  }

  void word(Node& node) {
    const std::size_t start = at_;
    while (is_letter(peek())) ++at_;
    const std::string_view text = text_.substr(start, at_ - start);
    if (text == "true" || text == "false") {
      node.kind = Kind::kBool;
      node.boolean = text == "true";
    } else if (text == "null") {
      node.kind = Kind::kNull;
    } else if (text == "NaN" || text == "Infinity") {
      node.kind = Kind::kNotFinite;
      node.text = text;
    } else if (text.empty()) {
      fail(fmt::format("expected a value, got {}", here()));
    } else {
      const bool python = text == "True" || text == "False" || text == "None";
      fail(fmt::format("expected a value, got {}; {}", quote(text),
                       python ? "JSON writes true, false and null" : "text needs double quotes"));
    }
  }

  std::string_view text_;
  const std::string& origin_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<std::string> path_;
};

}  // namespace

Node parse(std::string_view text, const std::string& origin) { return Parser(text, origin).document(); }

std::string escaped(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const int length = utf8_length(text.substr(at));
    const unsigned char c = static_cast<unsigned char>(text[at]);
    const bool control =
        c < 0x20 || c == 0x7F || (length == 2 && c == 0xC2 && static_cast<unsigned char>(text[at + 1]) < 0xA0);
    if (length == 0 || control) {
      out += fmt::format("\\x{:02x}", c);
      ++at;
    } else {
      out.append(text.substr(at, static_cast<std::size_t>(length)));
      at += static_cast<std::size_t>(length);
    }
  }
  return out;
}

std::string printable(std::string_view text) {
  constexpr std::size_t kShown = 80;
  std::size_t end = std::min(text.size(), kShown);
  if (end == text.size()) return escaped(text);
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not within a character
  return escaped(text.substr(0, end)) + "...";
}

std::string quote(std::string_view text) { return '"' + printable(text) + '"'; }

std::string describe(const Node& node) {
  switch (node.kind) {
    case Kind::kNull: return "null";
    case Kind::kBool: return node.boolean ? "true" : "false";
    case Kind::kNumber:
    case Kind::kNotFinite: return node.text.size() > 40 ? node.text.substr(0, 40) + "..." : node.text;
    case Kind::kString: return "the text " + quote(node.text);
    case Kind::kArray: return fmt::format("a list of {}", node.items.size());
    case Kind::kObject: return "a section {...}";
  }
  return "null";
}

}  // namespace zeropage::json
