#include "zeropage/launch/python_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "zeropage/base/error.h"
#include "zeropage/launch/host.h"

namespace zeropage::launch {

bool is_python_command(std::string_view name) {
  static constexpr std::array<std::string_view, 3> kNames = {"doctor", "report", "top"};
  return std::ranges::find(kNames, name) != kNames.end();
}

void run_python_command(char** argv) {
  std::string python = find_python(argv[0]);
  std::string option = "-m";
  std::string package = "zeropage";
  std::vector<char*> command = {python.data(), option.data(), package.data()};
  for (char** argument = argv + 1; *argument != nullptr; ++argument) command.push_back(*argument);
  command.push_back(nullptr);
  execvp(python.c_str(), command.data());
  throw IoError(fmt::format("{}: expected to start it, got: {}", python, std::strerror(errno)));
}

}  // namespace zeropage::launch
