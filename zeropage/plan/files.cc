#include "zeropage/plan/files.h"

#include <fmt/format.h>

#include "zeropage/base/error.h"
#include "zeropage/base/read_file.h"

namespace zeropage::plan {

std::string read_start(const std::filesystem::path& path, std::uintmax_t bytes) {
  return zeropage::read_file(path.string(), "the model's file", "check the path of the model", bytes);
}

std::string read_file(const std::filesystem::path& path, std::uintmax_t max_bytes) {
  std::string text = read_start(path, max_bytes + 1);
  if (text.size() > max_bytes) {
    throw ConfigError(
        fmt::format("{}: expected at most {} bytes, got more; is this the right file?", path.string(), max_bytes));
  }
  return text;
}

}  // namespace zeropage::plan
