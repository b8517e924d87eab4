#include "zeropage/launch/exports.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "zeropage/base/error.h"
#include "zeropage/base/read_file.h"
#include "zeropage/launch/text_lines.h"

namespace zeropage::launch {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefixes[] = {"MLFLOW", "PYTHON", "MV2", "UCX", "NCCL"};

bool is_variable_name(std::string_view name) {
  const auto fits = [](unsigned char c) { return c < 128 && (std::isalnum(c) || c == '_'); };
  return !name.empty() && !std::isdigit(static_cast<unsigned char>(name.front())) &&
         std::all_of(name.begin(), name.end(), fits);
}

Variables variables_of(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return {};
  return parse_environment_file(read_file(path, "the environment file", "make it readable or remove it"),
                                path.string());
}

}  // namespace

Variables parse_environment_file(std::string_view text, const std::string& path) {
  Variables variables;
  int number = 0;
  while (!text.empty()) {
    std::string_view line = take_line(text);
    ++number;
    const std::size_t first = line.find_first_not_of(" \t");
    if (first == std::string_view::npos || line[first] == '#') continue;
    line.remove_prefix(first);
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos || !is_variable_name(line.substr(0, equals))) {
      throw ConfigError(fmt::format("{}:{}: expected NAME=VALUE, the name of letters, digits and '_'", path, number));
    }
    if (line.find('\0') != std::string_view::npos) {
      throw ConfigError(fmt::format("{}:{}: a zero byte, which no variable can hold; remove it", path, number));
    }
    merge_variables(variables, {{std::string(line.substr(0, equals)), std::string(line.substr(equals + 1))}});
  }
  return variables;
}

Variables exported_variables(const std::vector<std::string>& environment, const std::string& folder) {
  Variables variables;
  std::string python_path = folder;
  for (const std::string& entry : environment) {
    const std::string name = entry.substr(0, entry.find('='));
    const bool known = std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                                   [&](std::string_view prefix) { return name.rfind(prefix, 0) == 0; });
    if (!known || !is_variable_name(name) || name.size() == entry.size()) continue;
    if (name == "PYTHONPATH") {
      python_path.append(":").append(entry, name.size() + 1);
    } else {
      variables.emplace_back(name, entry.substr(name.size() + 1));
    }
  }
  variables.emplace_back("PYTHONPATH", python_path);
  return variables;
}

Variables environment_files() {
  const char* other = std::getenv("DS_ENV_FILE");
  const fs::path name = other && *other ? other : ".deepspeed_env";
  Variables variables;
  if (const char* home = std::getenv("HOME"); home && *home)
    merge_variables(variables, variables_of(fs::path(home) / name));
  merge_variables(variables, variables_of(fs::path(".") / name));
  return variables;
}

void merge_variables(Variables& base, const Variables& more) {
  for (const auto& [name, value] : more) {
    const auto found = std::find_if(base.begin(), base.end(), [&](const auto& v) { return v.first == name; });
    if (found == base.end()) {
      base.emplace_back(name, value);
    } else {
      found->second = value;
    }
  }
}

std::string names_of(const Variables& variables, std::string_view separator) {
  std::vector<std::string> names;
  for (const auto& variable : variables) names.push_back(variable.first);
  return fmt::format("{}", fmt::join(names, separator));
}

}  // namespace zeropage::launch
