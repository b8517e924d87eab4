/// \file
/// A reader for JSON that people write by hand. Every value has its line, duplicate keys are errors, comments are
/// allowed, and `NaN` / `Infinity` are returned as values so that the caller's error can name their key.
/// (nlohmann/json, which we use for files that programs write, does none of these.)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace zeropage::json {

enum class Kind { kNull, kBool, kNumber, kNotFinite, kString, kArray, kObject };

struct Member;

/// One value of a document.
struct Node {
  Kind kind = Kind::kNull;
  int line = 1;                         ///< where the value starts, from 1
  bool boolean = false;                 ///< kBool
  double number = 0;                    ///< kNumber
  std::optional<std::int64_t> integer;  ///< of a kNumber with an integral value that fits, in any spelling (5e8)
  std::string text;                     ///< kString: the unescaped text; kNumber, kNotFinite: as spelt
  std::vector<Node> items;              ///< kArray
  std::vector<Member> members;          ///< kObject, in the order of the document, names unique
};

struct Member {
  std::string name;
  int line = 1;
  Node value;
};

inline constexpr std::size_t kMaxDocumentBytes = std::size_t{1} << 20;
inline constexpr int kMaxDepth = 64;

/// Parses one JSON document (RFC 8259, UTF-8) plus `//`, `#` and `/* */` comments, `NaN`, `Infinity` and `-Infinity`.
/// Cost: linear in the text. Errors: ConfigError "origin:line: ..." with the dotted path of the key being read, for bad
/// syntax, duplicate keys, bad UTF-8, numbers beyond a double, more than kMaxDocumentBytes or kMaxDepth.
Node parse(std::string_view text, const std::string& origin);

/// The text with control characters (also those of two bytes, U+0080 to U+009F) and bytes that are not UTF-8 escaped: a
/// terminal shows the text and executes no control sequence in it. A string that is equal to its escaped form has none.
std::string escaped(std::string_view text);

/// The same, shortened when long.
std::string printable(std::string_view text);

/// The same in double quotes.
std::string quote(std::string_view text);

/// A description of a value for messages: `5.5`, `"text"`, `true`, `null`, `a list`, `a section {...}`.
std::string describe(const Node& node);

}  // namespace zeropage::json
