/// \file
/// Files that commands write for users.
#pragma once

#include <string>

namespace zeropage::cli {

/// Throws ConfigError naming `option` when the file exists already. For commands that take long before they write it.
void require_new_file(const std::string& option, const std::string& path);

/// Writes a file that must not exist, so that no file of the user is ever replaced. Errors:
/// ConfigError naming `option` when it exists, IoError when it cannot be written.
void write_new_file(const std::string& option, const std::string& path, const std::string& text);

}  // namespace zeropage::cli
