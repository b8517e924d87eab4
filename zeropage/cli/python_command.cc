#include "zeropage/cli/python_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/launch/host.h"

namespace zeropage::cli {

bool is_python_command(int argc, char** argv) {
  static constexpr std::array<std::string_view, 3> kNames = {"doctor", "report", "top"};
  const std::string_view name = argc > 1 ? argv[1] : "";
  if (name == "ckpt") return argc > 2 && std::string_view(argv[2]) == "import";  // it reads Python's pickles
  return std::ranges::find(kNames, name) != kNames.end();
}

void run_python_command(char** argv) {
  std::string python = launch::find_python(argv[0]);
  std::string safe_path = launch::kSafePath;
  std::string option = "-m";
  std::string package = "zeropage";
  std::vector<char*> command = {python.data(), safe_path.data(), option.data(), package.data()};
  for (char** argument = argv + 1; *argument != nullptr; ++argument) command.push_back(*argument);
  command.push_back(nullptr);
  execvp(python.c_str(), command.data());
  throw IoError(fmt::format("cannot start {}: {}", python, std::strerror(errno)));
}

}  // namespace zeropage::cli
