/// \file
/// The one place where arguments become text for a shell, or text becomes arguments.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace zeropage::launch {

/// `text` as one word of a POSIX shell, whatever bytes it holds (a zero byte cannot be an argument: ConfigError). Words
/// of letters, digits and harmless signs stay as they are.
std::string shell_quote(std::string_view text);

/// The words quoted and joined by blanks: a shell that runs it gets exactly `words`.
std::string shell_join(const std::vector<std::string>& words);

/// The words of an option's value such as "-o 'User=a b'": separated by blanks, with '...', "..." and \c as in a shell,
/// and nothing else of a shell. Errors: ConfigError naming `origin` when a quote is not closed.
std::vector<std::string> split_words(std::string_view text, const std::string& origin);

}  // namespace zeropage::launch
