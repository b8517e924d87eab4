/// \file
/// Reads files, or the start of them, with errors that name the model's file.
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
