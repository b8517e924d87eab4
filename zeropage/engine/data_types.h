/// \file
/// What type each parameter has in an engine:
///
///   1. A precision that the configuration names holds for all floating-point parameters but those that are kept in
///      fp32: by name in data_types.keep_in_fp32_modules, or ("auto") as the model declares.
///   2. Where it names none and some parameters are bf16, the run is one in bf16: these stay so and get fp32 masters,
///      as with the section bf16. All others are fp32.
///   3. Where none is bf16 all are fp32.
#pragma once

#include "zeropage/memory/torch_config.h"

#include <optional>
#include <string>
#include <vector>

#include "zeropage/config/config.h"
#include "zeropage/engine/engine.h"

namespace zeropage::engine {

/// Sets `keep_fp32` of the parameters that are, and, in case 2, the precision of `config`. `declared`: regular
/// expressions as those of the key, each for a run of whole parts of a name. Returns a warning when parameters become
/// wider than they were. Errors: ConfigError for a name in the configuration that no parameter has, or that is no
/// regular expression.
std::optional<std::string> settle_types(config::Config& config, const std::vector<std::string>& declared,
                                        std::vector<ParameterInput>& parameters);

/// The same for parameters of `Engine::add_parameters`, after settle_types: the precision stays, and a name may match
/// none of them.
void settle_added_types(const config::Config& config, const std::vector<std::string>& declared,
                        std::vector<ParameterInput>& parameters);

}  // namespace zeropage::engine
