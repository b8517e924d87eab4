#include "zeropage/base/read_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "zeropage/base/error.h"

namespace zeropage {

std::string read_file(const std::string& path, const std::string& what, const std::string& advice,
                      std::size_t max_bytes) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  std::array<char, 1 << 16> piece;
  while (file && text.size() < max_bytes) {
    file.read(piece.data(), static_cast<std::streamsize>(std::min(piece.size(), max_bytes - text.size())));
    text.append(piece.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad()) {
    throw IoError(fmt::format("cannot read {} {}: {}; {}", what, path, std::strerror(errno), advice));
  }
  return text;
}

}  // namespace zeropage
