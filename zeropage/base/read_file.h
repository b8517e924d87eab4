/// \file
/// Reads files as text. Every file that a user names is read with these functions: it may be endless (/dev/zero), a
/// pipe without a writer, or a folder.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace zeropage {

inline constexpr std::size_t kMaxTextBytes = std::size_t{64} << 20;
inline constexpr std::chrono::milliseconds kPipePatience{10'000};

/// The whole file. `what` and `advice` go into messages: "cannot read the hostfile /a/b: Permission denied; make it
/// readable". A pipe or terminal has to end within `patience`. Errors: ConfigError when there are more than
/// `max_bytes`; IoError, also for folders.
std::string read_file(const std::string& path, const std::string& what, const std::string& advice,
                      std::size_t max_bytes = kMaxTextBytes, std::chrono::milliseconds patience = kPipePatience);

/// The first `bytes` bytes of the file, or the whole file when it has fewer. Otherwise as `read_file`.
std::string read_start(const std::string& path, const std::string& what, const std::string& advice, std::size_t bytes,
                       std::chrono::milliseconds patience = kPipePatience);

}  // namespace zeropage
