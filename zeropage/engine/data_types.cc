#include "zeropage/engine/data_types.h"

#include <fmt/format.h>

#include <algorithm>
#include <regex>

#include "zeropage/base/error.h"

namespace zeropage::engine {
namespace {

constexpr const char* kKey = "data_types.keep_in_fp32_modules";

std::regex expression_for(const std::string& name) {
  try {
    return std::regex("(^|\\.)(" + name + ")($|\\.)");
  } catch (const std::regex_error&) {
    throw ConfigError(
        fmt::format("{}: \"{}\" is not a regular expression; write a name, or escape special characters", kKey, name));
  }
}

/// Returns the number of parameters with this name.
int keep(const std::string& name, std::vector<ParameterInput>& parameters) {
  const auto expression = expression_for(name);
  int found = 0;
  for (auto& parameter : parameters) {
    if (!std::regex_search(parameter.name, expression)) continue;
    parameter.keep_fp32 = true;
    ++found;
  }
  return found;
}

bool is_bf16(const ParameterInput& parameter) { return parameter.tensor.scalar_type() == at::kBFloat16; }

void keep_own_types(std::vector<ParameterInput>& parameters) {
  for (auto& parameter : parameters) parameter.keep_fp32 = !is_bf16(parameter);
}

/// Case 2 of the header. Returns false in case 3.
bool take_types_of_the_model(config::Config& config, std::vector<ParameterInput>& parameters) {
  if (std::none_of(parameters.begin(), parameters.end(), is_bf16)) return false;
  config.precision = config::Precision::kBf16;
  keep_own_types(parameters);
  return true;
}

std::optional<std::string> warning_of_fp16(const std::vector<ParameterInput>& parameters) {
  const auto half = std::find_if(parameters.begin(), parameters.end(),
                                 [](const auto& parameter) { return parameter.tensor.scalar_type() == at::kHalf; });
  if (half == parameters.end()) return std::nullopt;
  return fmt::format(
      "parameters that are fp16, '{}' first, become fp32: 4 bytes each instead of 2. fp16 needs a loss scale; write "
      "\"fp16\": {{\"enabled\": true}}, or \"bf16\", for 2 bytes and fp32 masters",
      half->name);
}

void keep_declared(const config::Config& config, const std::vector<std::string>& declared,
                   std::vector<ParameterInput>& parameters) {
  if (!config.types.declared_in_fp32) return;
  for (const auto& name : declared) keep(name, parameters);
}

}  // namespace

std::optional<std::string> settle_types(config::Config& config, const std::vector<std::string>& declared,
                                        std::vector<ParameterInput>& parameters) {
  std::optional<std::string> warning;
  if (config.precision != config::Precision::kFp32) {
    keep_declared(config, declared, parameters);
  } else if (!config.types.named && !take_types_of_the_model(config, parameters)) {
    warning = warning_of_fp16(parameters);
  }
  for (const auto& name : config.types.in_fp32) {
    if (keep(name, parameters) > 0) continue;
    throw ConfigError(fmt::format("{}: no parameter is called \"{}\" or is in a module of that name; the first is '{}'",
                                  kKey, name, parameters.empty() ? "" : parameters.front().name));
  }
  return warning;
}

void settle_added_types(const config::Config& config, const std::vector<std::string>& declared,
                        std::vector<ParameterInput>& parameters) {
  if (config.precision == config::Precision::kFp32) return;
  if (config.types.named) {
    keep_declared(config, declared, parameters);
  } else {
    keep_own_types(parameters);
  }
  for (const auto& name : config.types.in_fp32) keep(name, parameters);
}

}  // namespace zeropage::engine
