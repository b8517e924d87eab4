/// \file
/// Converts arguments to text for a shell, and text to arguments. No other code does this.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace zeropage::launch {

/// `text` as one word of a POSIX shell, for any bytes (except zero bytes, which cannot be in an argument: ConfigError).
/// Words of letters, digits and harmless characters stay unchanged.
std::string shell_quote(std::string_view text);

/// The words quoted and joined by blanks: a shell that runs it gets exactly `words`.
std::string shell_join(const std::vector<std::string>& words);

/// The words of an option's value such as "-o 'User=a b'": separated by blanks, with '...', "..." and \c as in a shell,
/// but no other syntax of shells. Errors: ConfigError naming `origin` when a quote is not closed.
std::vector<std::string> split_words(std::string_view text, const std::string& origin);

}  // namespace zeropage::launch
