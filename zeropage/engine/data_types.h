/// \file
/// The type of each parameter in an engine:
///
///   1. A precision named in the configuration applies to all floating-point parameters except those kept in fp32: by
///      name in data_types.keep_in_fp32_modules, or ("auto") as the model declares.
///   2. If it names none and some parameters are bf16, the run is a bf16 run: these parameters stay bf16 and get fp32
///      masters, as with the section bf16. All others are fp32.
///   3. Otherwise all are fp32.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <optional>
#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/engine/engine.h"

namespace zeropage::engine {

/// Sets `keep_fp32` of the parameters kept in fp32, and in case 2 the precision of `config`. `declared`: regular
/// expressions like those of the key, each matching consecutive whole parts of a name. Returns a warning when
/// parameters become wider. Errors: ConfigError for a name in the configuration that no parameter has, or that is not a
/// regular expression.
std::optional<std::string> settle_types(config::Config& config, const std::vector<std::string>& declared,
                                        std::vector<ParameterInput>& parameters);

/// The same for parameters of `Engine::add_parameters`, after settle_types: the precision does not change, and a name
/// may match none of them.
void settle_added_types(const config::Config& config, const std::vector<std::string>& declared,
                        std::vector<ParameterInput>& parameters);

}  // namespace zeropage::engine
