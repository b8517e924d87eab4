/// \file
/// Decimal integers in variables, options and files that users write.
#pragma once

#include <charconv>
#include <climits>
#include <optional>
#include <string_view>

namespace zeropage {

/// All of `text` as an integer from `low` to `high`; nothing if it is anything else, blanks included.
inline std::optional<int> whole_number(std::string_view text, int low = INT_MIN, int high = INT_MAX) {
  int value = 0;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (error != std::errc() || end != last || value < low || value > high) return std::nullopt;
  return value;
}

}  // namespace zeropage
