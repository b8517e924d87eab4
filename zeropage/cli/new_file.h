/// \file
/// Files that commands write for people.
#pragma once

#include <string>

namespace zeropage::cli {

/// Errors: ConfigError naming `option` when there is a file of this name already. For commands that take long.
void require_new_file(const std::string& option, const std::string& path);

/// Writes a file that must not exist: a ready configuration never replaces one that somebody has written. Errors:
/// ConfigError naming `option` when it exists, IoError when it cannot be written.
void write_new_file(const std::string& option, const std::string& path, const std::string& text);

}  // namespace zeropage::cli
