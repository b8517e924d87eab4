/// \file
/// Reading the start of a file, with errors in words.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace zeropage::planner {

/// The whole file. Errors: IoError when it cannot be read, ConfigError when it has more than `max_bytes`.
std::string read_file(const std::filesystem::path& path, std::uintmax_t max_bytes);

/// Its first `bytes` bytes, fewer when it is shorter. Errors: IoError.
std::string read_start(const std::filesystem::path& path, std::uintmax_t bytes);

}  // namespace zeropage::planner
