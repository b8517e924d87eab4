#include "zeropage/launch/quote.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "zeropage/base/error.h"

namespace zeropage::launch {

std::string shell_quote(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) {
    throw ConfigError("an argument has a zero byte in it, which no program can receive; remove it");
  }
  const auto harmless = [](unsigned char c) {
    return (c < 128 && std::isalnum(c)) || c == '_' || c == '-' || c == '.' || c == '/' || c == ':' || c == ',' ||
           c == '@';
  };
  if (!text.empty() && std::all_of(text.begin(), text.end(), harmless)) return std::string(text);
  std::string quoted = "'";
  for (char c : text) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

std::string shell_join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += ' ';
    text += shell_quote(word);
  }
  return text;
}

std::vector<std::string> split_words(std::string_view text, const std::string& origin) {
  std::vector<std::string> words;
  std::string word;
  bool in_word = false;
  char quote = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote == 0 && (c == ' ' || c == '\t' || c == '\n')) {
      if (in_word) words.push_back(std::move(word));
      word.clear();
      in_word = false;
      continue;
    }
    in_word = true;
    if (c == '\\' && quote != '\'' && i + 1 < text.size()) {
      word += text[++i];
    } else if (quote == 0 && (c == '\'' || c == '"')) {
      quote = c;
    } else if (quote != 0 && c == quote) {
      quote = 0;
    } else {
      word += c;
    }
  }
  if (quote != 0)
    throw ConfigError(fmt::format("{} '{}': a {} is not closed; add the missing one", origin, text, quote));
  if (in_word) words.push_back(std::move(word));
  return words;
}

}  // namespace zeropage::launch
