#include "zeropage/plan/files.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "zeropage/base/error.h"

namespace zeropage::plan {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path) {
  throw IoError(fmt::format("cannot read {}: {}; check the path of the model", path.string(), std::strerror(errno)));
}

}  // namespace

std::string read_start(const std::filesystem::path& path, std::uintmax_t bytes) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path);
  std::string text(bytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(bytes));
  if (file.bad()) fail(path);
  text.resize(static_cast<std::size_t>(file.gcount()));
  return text;
}

std::string read_file(const std::filesystem::path& path, std::uintmax_t max_bytes) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error)
    throw IoError(fmt::format("cannot read {}: {}; check the path of the model", path.string(), error.message()));
  if (bytes > max_bytes) {
    throw ConfigError(
        fmt::format("{}: expected at most {} bytes, got {}; is this the right file?", path.string(), max_bytes, bytes));
  }
  return read_start(path, bytes);
}

}  // namespace zeropage::plan
