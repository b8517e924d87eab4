#include "zeropage/cli/output_file.h"

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "zeropage/base/error.h"
#include "zeropage/launch/system_call.h"

namespace zeropage::cli {

void require_new_file(const std::string& option, const std::string& path) {
  if (std::filesystem::exists(path)) {
    throw ConfigError(option + ": " + path + " exists already: name another file, or remove it first");
  }
}

void write_new_file(const std::string& option, const std::string& path, const std::string& text) {
  require_new_file(option, path);
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (!file) launch::throw_errno("cannot write " + path, "check the folder and its free space");
}

}  // namespace zeropage::cli
